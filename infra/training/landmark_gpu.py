"""Landmark heads of a decoder trained and judged on a GPU host without Ray, taught by MiniLM or by labels alone.

    python3 -m infra.training.landmark_gpu --data build/landmark --reader READER \\
        --adapter models/weights/reader-lora --work WORK --out OUT --seconds 210

DATA is what `infra.training.landmark_data` wrote, READER a decoder's folder (its vocabulary may be cut). First the
teacher's vectors are made (`infra.training.landmark_taught`), then one process a run, side by side; states are kept
in WORK, so that a run that was ended goes on. OUT gets landmark.json (recall at 1, 5 and 20 by run, corpus and set,
beside BM25, MiniLM, MiniLM cut to the same bytes, and fusions; the page: `infra.training.landmark_report`) and
landmark-<run>.tar with each head, its card and what was learned beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infra.training.backbone_job import MODEL, BackboneJob, absolute, run_here
from infra.training.backbone_loop import LoopConfig, read_curve
from infra.training.landmark_taught import ABOUT
from infra.training.learners.landmark import LandmarkSpec
from infra.training.side_by_side import (
    limit_memory,
    pack_results,
    read_json,
    run_side_by_side,
    tell,
    tell_row,
    write_whole,
)
from models.hf.config import HfConfig

TAUGHT, FIGURES = "taught", "figures.json"
_TAUGHT: dict[str, Any] = {
    "taught": Path(TAUGHT), "practice": 0.0, "passages": 128, "questions": 64, "hard": 1, "most_tokens": 256,
    "tokens_at_once": 32768,
}  # fmt: skip
_ALONE: dict[str, Any] = {"questions": 128, "hard": 2, "most_tokens": 256, "tokens_at_once": 32768}
RUNS: dict[str, dict[str, Any]] = {
    "lora": {**_TAUGHT, "method": "lora", "rank": 32, "steps": 1600, "lr": 3e-3},
    "mixer": {**_TAUGHT, "method": "mixer", "steps": 600, "lr": 3e-3},
    "frozen": {**_TAUGHT, "method": "frozen", "steps": 400, "lr": 3e-3},
    "lora_labels": {**_ALONE, "method": "lora", "rank": 32, "steps": 800, "lr": 3e-3},
    "frozen_labels": {**_ALONE, "method": "frozen", "steps": 1500, "lr": 2e-3},
}
"""Settings of each run beside LandmarkSpec's defaults; `*_labels` learn from labels and practice alone.

The runs that adapt nothing in the decoder have fewer steps: they leave the device to `lora`.
"""
DEFAULT_RUNS = ("lora", "mixer", "frozen")
MEMORY = {"lora": 0.45, "lora_labels": 0.45, "mixer": 0.16, "frozen": 0.12, "frozen_labels": 0.3}
"""Share of the device's memory that a run may take: others beside it need theirs."""


def spec_of(name: str, given: argparse.Namespace) -> LandmarkSpec:
    """The settings of one run."""
    backbone = HfConfig(model=str(given.reader), adapter=given.adapter, device=given.device)
    spec = LandmarkSpec(
        data=given.data, backbone=backbone, embedder=embedder_of(given), seed=given.seed, **RUNS[name]
    )
    changes: dict[str, Any] = {"steps": given.steps} if given.steps else {}
    if given.questions:
        changes["questions"] = given.questions
    if spec.taught is not None:
        changes["taught"] = given.work / TAUGHT
    return replace(spec, **changes)


def prepare(given: argparse.Namespace) -> None:
    """The teacher's vectors, once for all runs, in a process of its own: it leaves the device free again."""
    if not any("taught" in RUNS[name] for name in given.runs) or (given.work / TAUGHT / ABOUT).is_file():
        return
    command = [
        "-m", "infra.training.landmark_taught", "--data", str(given.data), "--reader", str(given.reader),
        "--out", str(given.work / TAUGHT), "--embedder", embedder_of(given), "--passages", str(given.passages),
        "--seed", str(given.seed),
    ]  # fmt: skip
    # the only process now: its tokenizers may have some cores
    threads = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "6"}
    codes = run_side_by_side({TAUGHT: command}, given.work / "logs", given.preparing, environment=threads)
    if codes[TAUGHT]:
        raise SystemExit(f"{given.work / 'logs' / TAUGHT}.log tells why there are no teacher's vectors")


def embedder_of(given: argparse.Namespace) -> str:
    """The embedder that teaches and that is compared with: a folder, MiniLM's wheel, or none."""
    return str(given.minilm) if given.minilm is not None else embedder()


def embedder() -> str:
    """MiniLM where its wheel can be imported, else none."""
    from models.embed.minilm import minilm_folder

    try:
        minilm_folder()
    except RuntimeError:
        return ""
    return "minilm"


def one_run(name: str, given: argparse.Namespace) -> None:
    """Train and judge one head; its model and figures are in WORK/<name>/model."""
    spec = spec_of(name, given)
    loop = LoopConfig(steps=spec.steps, save_every=400, report_every=50, keep=1, limit_s=given.training)
    job = BackboneJob(
        kind="landmark", out=given.work / name, spec=spec, loop=loop,
        command=f"python3 -m infra.training.landmark_gpu (run {name}, seed {spec.seed})",
    )  # fmt: skip
    began = time.monotonic()
    limit_memory(MEMORY[name], given.device)
    curve = run_smaller(job, given.device)
    tell(json.dumps({"run": name, "steps": len(curve), "seconds": round(time.monotonic() - began, 1)}))


def run_smaller(job: BackboneJob, device: str, tries: int = 3) -> list[dict[str, float]]:
    """The job's curve; where the memory does not do, from the start again with half of each part."""
    for left in reversed(range(tries)):
        try:
            return run_here(absolute(job), device, tell_row)
        except torch.cuda.OutOfMemoryError:
            if not left:
                raise
        half = {"passages": max(16, job.spec.passages // 2), "questions": max(8, job.spec.questions // 2)}
        job = replace(job, spec=replace(job.spec, **half))
        tell(f"out of memory: again with {half}")
        shutil.rmtree(job.out, ignore_errors=True)
        gc.collect()
        torch.cuda.empty_cache()
    raise AssertionError("unreachable")


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the runs, wait for them, gather what they found; or be one of them (--run)."""
    given = _parser().parse_args(arguments)
    if given.run:
        one_run(given.run, given)
        return 0
    began = time.monotonic()
    prepare(given)
    left = given.seconds - (time.monotonic() - began)
    # loading and judging take their share
    given.training = given.training or max(5.0, left - 55.0)
    told = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        name: ["-m", "infra.training.landmark_gpu", *told, "--run", name, "--training", str(given.training)]
        for name in given.runs
        if read_json(given.work / name / MODEL / FIGURES) is None
    }
    # a host may go away before the slowest run has ended: what has ended is home by then
    codes = run_side_by_side(
        commands, given.work / "logs", left + 10.0, on_end=lambda so_far: gather(given, so_far)
    )
    return gather(given, codes)


def gather(given: argparse.Namespace, codes: dict[str, int]) -> int:
    """Write OUT/landmark.json and OUT/landmark.tar of the runs that were judged."""
    found: dict[str, Any] = {}
    for name in given.runs:
        figures = read_json(given.work / name / MODEL / FIGURES)
        if figures is not None:
            curve = read_curve(given.work / name)
            found[name] = figures | {"code": codes.get(name, 0), "curve": _some(curve)}
    write_whole(given.out / "landmark.json", json.dumps(found, default=str))
    for name in found:
        pack_results({name: given.work / name / MODEL}, given.out / f"landmark-{name}.tar")
    for name, figures in found.items():
        for corpus, judged in figures["judged"].items():
            shown = {
                key: value for key, value in judged["all"].items() if key.endswith(("recall_1", "recall_5"))
            }
            tell(f"{name} {corpus}: {json.dumps(shown)}")
    return 0 if found else 1


def _some(curve: Sequence[dict[str, float]], most: int = 100) -> list[dict[str, float]]:
    """Evenly spread rows of a curve, and those with a look at the questions kept back."""
    step = max(1, len(curve) // most)
    return [row for at, row in enumerate(curve) if at % step == 0 or "dev_recall_5" in row]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--reader", type=Path, required=True, help="folder of the decoder")
    parser.add_argument(
        "--adapter", default="none", help="of the frozen decoder: what sessions read with; none, or a folder"
    )
    parser.add_argument("--minilm", type=Path, help="its folder; default: its wheel, if it can be imported")
    parser.add_argument("--work", type=Path, required=True, help="states and models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=list(DEFAULT_RUNS), choices=list(RUNS))
    parser.add_argument("--passages", type=int, default=40_000, help="passages to be taught with, at most")
    parser.add_argument("--preparing", type=float, default=90.0, help="seconds for the teacher, at most")
    parser.add_argument("--seconds", type=float, default=210.0, help="of everything")
    parser.add_argument(
        "--training", type=float, default=0.0, help="of training alone (0: what is left but 55 s)"
    )
    parser.add_argument("--steps", type=int, default=0, help="updates, for a try (0: each run's own)")
    parser.add_argument("--questions", type=int, default=0, help="questions of a part, likewise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", choices=list(RUNS), help="be this run")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
