"""Landmark heads of a decoder trained and judged on a GPU host without Ray: frozen, adapted, without practice.

    python3 -m infra.training.landmark_gpu --data build/landmark --reader READER \\
        --adapter models/weights/reader-lora --work WORK --out OUT --seconds 170

DATA is what `infra.training.landmark_data` wrote, READER a decoder's folder (its vocabulary may be cut). One
process a run, side by side; states are kept in WORK, so that a run that was ended goes on. OUT gets landmark.json
(recall at 1, 5 and 20 by run, corpus and set, beside BM25, MiniLM where it is found, MiniLM cut to the
same bytes, and fusions) and landmark.tar with the heads, their cards and curves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.training.backbone_job import MODEL, BackboneJob, absolute, run_here
from infra.training.backbone_loop import LoopConfig, read_curve
from infra.training.learners.landmark import LandmarkSpec
from infra.training.side_by_side import pack_results, read_json, run_side_by_side, tell, tell_row
from models.hf.config import HfConfig

RUNS: dict[str, dict[str, Any]] = {
    "frozen": {"method": "frozen", "questions": 256, "hard": 2, "steps": 1500, "lr": 2e-3},
    "frozen_no_practice": {
        "method": "frozen", "questions": 256, "hard": 2, "steps": 1500, "lr": 2e-3, "practice": 0.0,
    },
    "lora": {"method": "lora", "questions": 128, "hard": 2, "steps": 800, "lr": 3e-3, "rank": 16},
    "lora_no_practice": {
        "method": "lora", "questions": 128, "hard": 2, "steps": 800, "lr": 3e-3, "rank": 16, "practice": 0.0,
    },
}  # fmt: skip
"""Settings of each run beside LandmarkSpec's defaults."""


def spec_of(name: str, given: argparse.Namespace) -> LandmarkSpec:
    """The settings of one run."""
    backbone = HfConfig(model=str(given.reader), adapter=given.adapter, device=given.device)
    minilm = str(given.minilm) if given.minilm is not None else embedder()
    spec = LandmarkSpec(data=given.data, backbone=backbone, embedder=minilm, seed=given.seed, **RUNS[name])
    changes = {"steps": given.steps} if given.steps else {}
    if given.questions:
        changes["questions"] = given.questions
    return replace(spec, **changes)


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
    curve = run_here(absolute(job), given.device, tell_row)
    tell(json.dumps({"run": name, "steps": len(curve), "seconds": round(time.monotonic() - began, 1)}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the runs, wait for them, gather what they found; or be one of them (--run)."""
    given = _parser().parse_args(arguments)
    # loading, encoding and judging take their share
    given.training = given.training or max(5.0, given.seconds - 60.0)
    if given.run:
        one_run(given.run, given)
        return 0
    told = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        name: ["-m", "infra.training.landmark_gpu", *told, "--run", name, "--training", str(given.training)]
        for name in given.runs
    }
    codes = run_side_by_side(commands, given.work / "logs", given.seconds + 30.0)
    return gather(given, codes)


def gather(given: argparse.Namespace, codes: dict[str, int]) -> int:
    """Write OUT/landmark.json and OUT/landmark.tar of the runs that were judged."""
    found: dict[str, Any] = {}
    for name in given.runs:
        figures = read_json(given.work / name / MODEL / "figures.json")
        if figures is not None:
            curve = read_curve(given.work / name)
            found[name] = figures | {"code": codes.get(name, 0), "curve": curve[:: max(1, len(curve) // 100)]}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "landmark.json").write_text(json.dumps(found, default=str))
    pack_results({name: given.work / name / MODEL for name in found}, given.out / "landmark.tar")
    for name, figures in found.items():
        for corpus, judged in figures["judged"].items():
            shown = {
                key: value for key, value in judged["all"].items() if key.endswith(("recall_1", "recall_5"))
            }
            tell(f"{name} {corpus}: {json.dumps(shown)}")
    return 0 if found else 1


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
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seconds", type=float, default=170.0, help="of everything")
    parser.add_argument("--training", type=float, default=0.0, help="of training alone (0: all but 60 s)")
    parser.add_argument("--steps", type=int, default=0, help="updates, for a try (0: each run's own)")
    parser.add_argument("--questions", type=int, default=0, help="questions of a part, likewise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", choices=list(RUNS), help="be this run")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
