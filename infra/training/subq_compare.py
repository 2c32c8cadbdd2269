"""Language models of equal size, tokens and batches side by side: who profits from far text, and how much.

    python3 -m infra.training.subq_compare --data DATA --work WORK --out OUT --seconds 330
    python3 -m infra.training.subq_compare … --runs subq-lean:0,1,2 no-retrieval:0,1,2 --length 32768 --batch 1

Runs every method with every seed as a process of its own, several at a time, seed after seed, and ends by
--seconds; a call that ended early is made again and goes on with what is missing. Each run leaves
WORK/lm-<method>-<seed>.json, the summary OUT/subq-compare.json is written again after each. --tiny takes sizes for
a try on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from infra.training.side_by_side import runs_parser
from infra.training.subq_data import SubqData
from infra.training.subq_lm import LmConfig, train_and_judge
from models.subq.baselines import baseline
from models.subq.config import SubqConfig

METHODS = ("subq", "subq-lean", "no-retrieval", "transformer", "mamba-2", "gca", "linear-transformer")
"""In this order within a seed: what the bar asks for comes first."""
LABELLED = ("subq", "subq-lean")
"""These learn what to read from hindsight too; gca from the loss on tokens alone."""
SIZES = SubqConfig(
    width=256, lower_blocks=2, upper_blocks=2, head_dim=64, feed_forward=640, window=128, near=2, landmark_dim=128,
    encoder_heads=8, top_k=8, rerank=True, kernel="plain",
)  # fmt: skip
TINY = replace(
    SIZES, width=32, lower_blocks=1, upper_blocks=1, head_dim=16, feed_forward=48, window=32, chunk=32,
    landmark_dim=16, encoder_heads=4, top_k=2, kv_heads=1,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    given = _parser().parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.method:
        one(given)
    else:
        everything(given)


def settings(
    given: argparse.Namespace, method: str, seed: int, vocabulary: int
) -> tuple[SubqConfig, LmConfig]:
    """Shape and run of a method; what is compared differs in mixers and reading alone."""
    sizes = replace(TINY if given.tiny else SIZES, vocabulary=vocabulary)
    run = LmConfig(
        tokens=given.tokens, seed=seed, judged=given.judged, length=given.length, batch=given.batch,
        hindsight=given.hindsight if method in LABELLED else 0.0, compiled=given.compiled,
    )  # fmt: skip
    if given.tiny:
        run = replace(run, length=512, warmup=5, lr=4e-3, muon=False)
    return replace(baseline(method, sizes), context_tokens=run.length), run


def one(given: argparse.Namespace) -> None:
    """Train and judge one method with one seed."""
    if given.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    train, test = (SubqData.load(given.data, part) for part in ("train", "test"))
    model, run = settings(given, given.method, given.seed, train.tokenizer.vocabulary)
    began = time.monotonic()

    def say(step: int, loss: float) -> None:
        print(f"{step}/{run.steps} {loss} {time.monotonic() - began:.1f} s", flush=True)  # noqa: T201

    record = {"method": given.method, "seed": given.seed}
    record |= train_and_judge(model, run, train.tokens, test.tokens, given.device, say)
    path = _path(given, given.method, given.seed)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    partial.replace(path)


def everything(given: argparse.Namespace) -> None:
    """All runs that are missing, `--jobs` at a time, until --seconds; then the summary."""
    began = time.monotonic()
    waiting = [key for key in wanted(given) if not _path(given, *key).exists()]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    written = -1
    try:
        while (waiting or running) and time.monotonic() - began < given.seconds:
            while waiting and len(running) < given.jobs:
                method, seed = waiting.pop(0)
                running[method, seed] = _start(given, method, seed)
            time.sleep(0.5)
            for key, process in list(running.items()):
                if process.poll() is not None:
                    del running[key]
                    if process.returncode:
                        failed.append(f"{key[0]}-{key[1]} (see {_log(given, *key).name} in --work)")
            finished = len(list(given.work.glob("lm-*.json")))
            if finished != written:
                written = finished
                _summarise(given, failed)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    missing = [f"{method}-{seed}" for method, seed in [*running, *waiting]]
    ratios = _summarise(given, failed)
    print(json.dumps(ratios), flush=True)  # noqa: T201
    if failed or missing:
        print(f"failed: {failed}; not finished, call again: {missing}", flush=True)  # noqa: T201


def wanted(given: argparse.Namespace) -> list[tuple[str, int]]:
    """Methods and seeds in the order that they are begun: --runs as given, else seed after seed."""
    if not given.runs:
        return [(method, seed) for seed in range(given.seeds) for method in given.methods.split(",")]
    found = []
    for text in given.runs:
        method, _, seeds = text.partition(":")
        if method not in METHODS or not all(seed.isdigit() for seed in seeds.split(",")):
            raise SystemExit(f"--runs: given {text!r}; allowed: METHOD:SEED,SEED with {', '.join(METHODS)}")
        found += [(method, int(seed)) for seed in seeds.split(",")]
    return found


def _start(given: argparse.Namespace, method: str, seed: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "infra.training.subq_compare", "--data", given.data, "--work", given.work, "--out",
        given.out, "--method", method, "--seed", seed, "--device", given.device, "--tokens", given.tokens,
        "--judged", given.judged, "--hindsight", given.hindsight, "--length", given.length, "--batch", given.batch,
        *(["--tiny"] if given.tiny else []), *(["--compiled"] if given.compiled else []),
    ]  # fmt: skip
    # a process a run: more threads than that would only fight for the processors
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with _log(given, method, seed).open("wb") as log:
        return subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=environment)


def _summarise(given: argparse.Namespace, failed: Sequence[str]) -> dict[str, Any]:
    records = [json.loads(path.read_text()) for path in sorted(given.work.glob("lm-*.json"))]
    on_gpu = given.device.startswith("cuda")
    summary = {
        "bench": "subq-compare",
        "device": torch.cuda.get_device_name() if on_gpu and torch.cuda.is_available() else "cpu",
        "text": given.text, "jobs": given.jobs, "failed": list(failed), "ratios": ratios_of(records),
        "runs": records,
    }  # fmt: skip
    partial = given.out / ".subq-compare.partial"
    partial.write_text(json.dumps(summary, indent=1), encoding="utf-8")
    partial.replace(given.out / "subq-compare.json")
    return dict(summary["ratios"])


def ratios_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Perplexity of each method (mean and spread of its seeds), and what retrieval gains in nats, seed by seed."""
    losses = {(record["method"], record["seed"]): record["loss"] for record in records}
    found: dict[str, Any] = {}
    for method in dict.fromkeys(record["method"] for record in records):
        own = [loss for (name, _), loss in losses.items() if name == method]
        found[f"ppl_{method.replace('-', '_')}"] = round(math.exp(mean(own)), 3)
        found[f"loss_spread_{method.replace('-', '_')}"] = round(stdev(own), 5) if len(own) > 1 else None
        found[f"seeds_{method.replace('-', '_')}"] = len(own)
    for method, name in (("subq", ""), ("subq-lean", "_lean"), ("gca", "_gca")):
        gains = [
            losses["no-retrieval", seed] - loss
            for (each, seed), loss in losses.items()
            if each == method and ("no-retrieval", seed) in losses
        ]
        if gains:
            found[f"lm_loss_gain_of_retrieval{name}"] = round(mean(gains), 5)
            found[f"lm_loss_gain_of_retrieval{name}_least"] = round(min(gains), 5)
            found[f"lm_loss_gain_of_retrieval{name}_spread"] = (
                round(stdev(gains), 5) if len(gains) > 1 else None
            )
    return found


def _path(given: argparse.Namespace, method: str, seed: int) -> Path:
    path: Path = given.work / f"lm-{method}-{seed}.json"
    return path


def _log(given: argparse.Namespace, method: str, seed: int) -> Path:
    path: Path = given.work / f"lm-{method}-{seed}.log"
    return path


def _parser() -> argparse.ArgumentParser:
    parser = runs_parser(__doc__, 330.0)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--runs", nargs="+", default=[], help="instead: METHOD:SEED,SEED in the order to begin"
    )
    parser.add_argument("--text", default="books", help="what the text is, for the report")
    parser.add_argument("--length", type=int, default=16_384, help="tokens a sequence")
    parser.add_argument("--batch", type=int, default=2, help="sequences an update")
    parser.add_argument("--compiled", action="store_true", help="compile blocks and the encoder (CUDA)")
    parser.add_argument("--methods", default=",".join(METHODS), help="which, in this order within a seed")
    parser.add_argument("--tokens", type=int, default=20_000_000, help="trained on by each run")
    parser.add_argument("--judged", type=int, default=32, help="unseen sequences")
    parser.add_argument("--hindsight", type=float, default=0.1, help="weight of the hindsight loss of subq")
    parser.add_argument("--method", default="", choices=("", *METHODS), help="only this run, in this process")
    parser.add_argument("--seed", type=int, default=0, help="of --method")
    return parser


if __name__ == "__main__":
    main()
