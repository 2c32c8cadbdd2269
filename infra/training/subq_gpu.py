"""Train and judge a sub-quadratic backbone on a bare GPU host, in calls of a few minutes.

    python3 -m infra.training.subq_gpu tests   --data DATA --work WORK --out OUT
    python3 -m infra.training.subq_gpu train   --data DATA --work WORK --out OUT --minutes 5 --seed 0
    python3 -m infra.training.subq_gpu needles --data DATA --work WORK --out OUT --seed 0 --lengths 16k,1M,16M
    python3 -m infra.training.subq_gpu bench   --data DATA --work WORK --out OUT

DATA is what `infra.training.subq_pack` wrote. WORK keeps the run's state and the finished model between calls: a
call of `train` that ends early (--call-seconds) is simply made again. Every stage writes JSON into OUT as it goes,
`train` the model in 8 bits, in files under 16 MiB (WORK keeps it in bf16 too; --checkpoint takes either). --tiny
takes a model that a CPU can train for a try. Needs torch, numpy, tokenizers and safetensors; uses fla where it is
installed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.subq import CURVE, SubqTrainConfig, SubqTrainer
from infra.training.subq_checks import checks
from infra.training.subq_needles import length_of
from infra.training.subq_needles import run_needles as needles
from infra.training.subq_recipe import Recipe, recipe_data, recipe_stream, tiny_form
from models.subq.baselines import BASELINES, baseline
from models.subq.checkpoint import save_checkpoint
from models.subq.config import SubqConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    given = _parser().parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    if given.stage == "train" and given.device.startswith("cuda"):  # the others compare with exact products
        torch.set_float32_matmul_precision("high")
    {"tests": run_tests, "train": run_train, "needles": run_needles, "bench": run_bench}[given.stage](given)


def recipe(vocabulary: int, given: argparse.Namespace) -> Recipe:
    """Five minutes on one H100 or H200: the figures are those of docs/subq.md. Or the tiny form of it."""
    tiny, on_gpu = given.tiny, given.device.startswith("cuda")
    model = SubqConfig(
        vocabulary=vocabulary, kernel=given.kernel, neighbours=given.neighbours, scale_max=given.scale_max,
        rerank=not given.fixed_weights, lookahead=given.lookahead, lookbehind=given.lookbehind,
    )  # fmt: skip
    # more batches than the time allows: the schedule follows the time
    most = given.steps or 100_000
    short = min(given.short_steps, most)
    phases = ((4_096, short), (16_384, most - short)) if most > short else ((4_096, short),)
    stream = recipe_stream(given.seed, phases, given.twins, given.twins_alike)
    train = SubqTrainConfig(
        save_every=1_000,  # a state is half a gigabyte; the end of a call saves too
        limit_s=60.0 * given.minutes,
        joined=True,
        forced_until=given.forced_until,
        compiled=on_gpu and not given.eager,
        workers=given.workers if on_gpu else 0,
        seed=given.seed,
        routing_first=given.routing_first,
        routing_after=given.routing_after,
    )
    if tiny:
        model, stream, train = tiny_form(model, stream, train)
        stream = replace(stream, phases=((512, most),))
        train = replace(train, save_every=20)
    model = baseline(given.method, model)
    if given.method == "gca":  # what the paper trains with: the loss on tokens alone
        train = replace(
            train, losses=replace(train.losses, contrastive=0.0), forced_until=0.0, cross=0.0, bank=0
        )
    if given.fade:
        train = replace(train, contrastive_until=(0.5, 0.8))
    return model, stream, train


def run_train(given: argparse.Namespace) -> None:
    """Train for the rest of this call, or to the end; at the end write the model."""
    data = recipe_data(given.data, given.frames)
    model, stream, config = recipe(data.tokenizer.vocabulary, given)
    began = time.monotonic()
    artifacts = given.work / "inductor.bin"
    if config.compiled and artifacts.exists():
        torch.compiler.load_cache_artifacts(artifacts.read_bytes())
    trainer = SubqTrainer(model, data, stream, config, _state(given), given.device)
    _say(f"{trainer.model.num_parameters()} parameters, at step {trainer.step}", began)
    curve = trainer.run(given.call_seconds - (time.monotonic() - began) - 20)
    if config.compiled and not artifacts.exists():
        saved = torch.compiler.save_cache_artifacts()
        if saved is not None:
            artifacts.write_bytes(saved[0])
    last = {k: round(v, 4) for k, v in curve[-1].items()} if curve else {}
    _say(
        f"step {trainer.step}, {trainer.seconds:.0f} s of training, {100 * trainer.progress:.0f}%: {last}",
        began,
    )
    lines = (_state(given) / CURVE).read_text(encoding="utf-8").splitlines()
    record: dict[str, Any] = {
        "stage": "train", "method": given.method, "seed": given.seed, "done": trainer.progress >= 1,
        "steps": trainer.step, "seconds": trainer.seconds, "tokens": trainer.step * stream.tokens,
        "device": _device(given), "parameters": trainer.model.num_parameters(), "made_from": trainer._made_from,
        "peak_bytes": torch.cuda.max_memory_allocated() if given.device.startswith("cuda") else 0,
        "curve": _thinned([json.loads(line) for line in lines]),
    }  # fmt: skip
    _write(given.out / f"train-{_name(given)}.json", record)
    if record["done"]:
        about = {key: record[key] for key in ("method", "seed", "steps", "seconds", "tokens", "device")}
        # what comes back from the host is what ships; needles can judge either
        small = f"{_name(given)}-int8"
        for folder, storage in (
            (given.work / _name(given), "bfloat16"), (given.work / small, "int8"), (given.out / small, "int8"),
        ):  # fmt: skip
            save_checkpoint(trainer.model, folder, tokenizer=data.tokenizer, storage=storage, about=about)
    else:
        _say("not finished: call again", began)


def run_needles(given: argparse.Namespace) -> None:
    """See infra.training.subq_needles."""
    needles(given, given.checkpoint or given.work / _name(given), _device(given))


def run_tests(given: argparse.Namespace) -> None:
    """Agreement of dtypes, kernels, mixers and streaming on this device; times of the kernels beside."""
    began = time.monotonic()
    record: dict[str, Any] = {"stage": "tests", "device": _device(given), "rows": []}
    for row in checks(given.device, given.tiny):
        record["rows"].append(row)
        _say(json.dumps(row), began)
        _write(given.out / "tests.json", record)
    record["failed"] = [row["check"] for row in record["rows"] if not row["ok"]]
    _write(given.out / "tests.json", record)
    if record["failed"]:
        raise SystemExit(f"failed: {', '.join(record['failed'])}")


def run_bench(given: argparse.Namespace) -> None:
    """`dysra bench subq` without the command line."""
    from infra.bench import page, subq

    began = time.monotonic()

    def keep(result: dict[str, Any]) -> None:
        _write(given.out / "bench-subq.json", result)
        (given.out / "bench-subq.md").write_text(page(result), encoding="utf-8")

    result = subq.run(
        tokens=[length_of(text) for text in given.lengths.split(",")],
        kinds=given.indexes.split(","),
        device=given.device,
        report=lambda row: _say(json.dumps(row), began),
        keep=keep,
    )
    _say(json.dumps(result["ratios"]), began)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("tests", "train", "needles", "bench"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of a run")
    parser.add_argument("--call-seconds", type=float, default=560.0, help="a call ends before this")
    parser.add_argument("--method", default="subq", choices=BASELINES)
    parser.add_argument("--neighbours", action="store_true", help="read chunk j + 1 beside j")
    parser.add_argument("--lookahead", type=int, default=0, help="tokens after a chunk that it has seen")
    parser.add_argument("--lookbehind", type=int, default=0, help="tokens before a chunk that it has seen")
    parser.add_argument("--workers", type=int, default=8, help="processes that make batches (CUDA)")
    parser.add_argument(
        "--kernel", default="auto", help="of the chunk reader in training: auto, plain or fused"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="updates at most (0: as many as the time allows)"
    )
    parser.add_argument("--twins", type=float, default=0.5, help="share of needles in another one's words")
    parser.add_argument(
        "--twins-alike",
        type=float,
        default=0.0,
        help="share of those whose owner shares a word with its owner",
    )
    parser.add_argument(
        "--frames", type=float, default=0.5, help="share of wordings made of the text's words"
    )
    parser.add_argument(
        "--fixed-weights", action="store_true", help="one weight a chunk for all heads: no reranking"
    )
    parser.add_argument(
        "--forced-until", type=float, default=0.25, help="share of the run in which gold chunks are forced in"
    )
    parser.add_argument(
        "--routing-first", type=float, default=0.0, help="share of the run that first teaches what to read"
    )
    parser.add_argument(
        "--routing-after", type=float, default=0.1, help="weight of the contrastive term after that stage"
    )
    parser.add_argument("--scale-max", type=float, default=60.0, help="largest factor of cosines")
    parser.add_argument(
        "--short-steps", type=int, default=1_500, help="batches of 4,096 tokens a sequence, first"
    )
    parser.add_argument("--fade", action="store_true", help="anneal the contrastive loss away")
    parser.add_argument("--checkpoint", type=Path, help="needles: instead of what train left in WORK")
    parser.add_argument("--lengths", default="16k,64k,256k,1M,4M,16M")
    parser.add_argument("--indexes", default="flat,tree,ivf,groups", help="bench: in this order")
    parser.add_argument("--trials", type=int, default=100, help="a cell up to 1M tokens")
    parser.add_argument("--trials-above", type=int, default=32, help="a cell above 1M tokens, at most")
    parser.add_argument(
        "--also",
        default="",
        help="other searches: k16, log1.5 (the same trials among distractors), tree8, ivf16 (the same streams)",
    )
    parser.add_argument("--also-from", type=length_of, default=1 << 20, help="shortest text of --also")
    parser.add_argument("--keys", type=int, default=128, help="keys in one stream (0: no stream rows)")
    parser.add_argument("--cells", default="", help="some cells of the table, by name")
    return parser


def _name(given: argparse.Namespace) -> str:
    options = ("-neighbours" if given.neighbours else "") + ("-fade" if given.fade else "")
    if given.routing_first:
        options += "-routing" + ("" if given.routing_after == 0.1 else f"{given.routing_after:g}")
    options += "-around" if given.lookahead or given.lookbehind else ""
    return f"{given.method}{options}-{given.seed}"


def _state(given: argparse.Namespace) -> Path:
    path: Path = given.work / f"state-{_name(given)}"
    return path


def _device(given: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if given.device.startswith("cuda") else "cpu"


def _thinned(curve: list[dict[str, float]], most: int = 200) -> list[dict[str, float]]:
    """At most `most` points, each the mean of its steps."""
    size = max(1, -(-len(curve) // most))
    groups = [curve[at : at + size] for at in range(0, len(curve), size)]
    return [
        {key: round(float(np.mean([step[key] for step in group])), 5) for key in group[0]} for group in groups
    ]


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _say(what: str, began: float) -> None:
    print(f"[{time.monotonic() - began:6.1f} s] {what}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
