"""A reader trained to read its compressed cache, beside one trained on the same contexts in full, on a GPU host.

    python3 -m infra.training.reader_latents --data build/latents --reader READER \\
        --adapter models/weights/reader-lora --work WORK --out OUT --seconds 150

DATA is what `infra.training.reader_latents_data` wrote, READER a decoder's folder (its vocabulary may be cut).
`start` judges the reader as it is, `latents` trains over contexts held as latents or heavy hitters at 5 to 20% of
the bytes, `full` over the same contexts held in full: what it gains is not owed to the compression. All are judged
on test questions over 24 passages in every form. Processes side by side; states are kept in WORK, so that a run
that was ended goes on. OUT gets latents.json (the page: infra.training.latents_report) and latents.tar (the adapter
of `latents`).
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

from infra.training.backbone_job import MODEL, BackboneJob, absolute, build, run_here
from infra.training.backbone_loop import LoopConfig, read_curve
from infra.training.learners.latents import LatentsSpec
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

RUNS: dict[str, dict[str, Any]] = {"start": {}, "latents": {}, "full": {"full_share": 1.0}}
FIGURES = "figures.json"


def one_run(name: str, given: argparse.Namespace) -> None:
    """Train (`start`: not at all) and judge; figures are in WORK/<name>/model."""
    began = time.monotonic()
    limit_memory(given.memory, given.device)
    backbone = HfConfig(model=str(given.reader), adapter=given.adapter, device=given.device)
    spec = replace(
        LatentsSpec(
            data=given.data, backbone=backbone, forms=tuple(given.forms), keeps=tuple(given.keeps),
            steps=given.updates, accumulate=given.contexts, lr=given.lr, judged=given.judged, seed=given.seed,
        ),
        **RUNS[name],
    )  # fmt: skip
    if given.passages:
        spec = replace(spec, passages=tuple(given.passages))
    loop = LoopConfig(
        steps=spec.steps,
        accumulate=spec.accumulate,
        save_every=50,
        report_every=20,
        keep=1,
        limit_s=given.training,
    )
    job = BackboneJob(
        kind="latents", out=given.work / name, spec=spec, loop=loop,
        command=f"python3 -m infra.training.reader_latents (run {name}, seed {spec.seed})",
    )  # fmt: skip
    if name == "start":
        learner: Any = build(absolute(job), given.device)
        folder = given.work / name / MODEL
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FIGURES).write_text(json.dumps({"about": {"steps": 0}, "judged": learner.judge()}))
    else:
        run_here(absolute(job), given.device, tell_row)
    tell(f"{name}: {time.monotonic() - began:.0f} s")


def gather(given: argparse.Namespace, codes: dict[str, int]) -> int:
    """Write OUT/latents.json and OUT/latents.tar of the runs that were judged."""
    found: dict[str, Any] = {}
    for name in given.runs:
        figures = read_json(given.work / name / MODEL / FIGURES)
        if figures is not None:
            curve = read_curve(given.work / name)
            found[name] = figures | {"code": codes.get(name, 0), "curve": curve[:: max(1, len(curve) // 150)]}
    write_whole(given.out / "latents.json", json.dumps(found, default=str))
    # the control's adapter stays behind: one file of at most 16 MiB travels
    kept = {name: given.work / name / MODEL for name in found if name == "latents"}
    pack_results(kept, given.out / "latents.tar")
    for name, figures in found.items():
        shown = {cell: values.get("nats_all") for cell, values in figures["judged"].items()}
        tell(f"{name}, nats an answer token: {json.dumps(shown)}")
    return 0 if found else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the runs, wait for them, gather what they found; or be one of them (--run)."""
    given = _parser().parse_args(arguments)
    given.training = given.training or max(5.0, given.seconds - 60.0)  # loading and judging take their share
    if given.run:
        one_run(given.run, given)
        return 0
    told = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        name: ["-m", "infra.training.reader_latents", *told, "--run", name, "--training", str(given.training)]
        for name in given.runs
        if read_json(given.work / name / MODEL / FIGURES) is None
    }
    # a host may go away before the slowest run has ended: what has ended is home by then
    codes = run_side_by_side(
        commands, given.work / "logs", given.seconds + 20.0, on_end=lambda so_far: gather(given, so_far)
    )
    return gather(given, codes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--reader", type=Path, required=True, help="folder of the decoder")
    parser.add_argument("--adapter", default="none", help="folder of the adapter to begin with")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--forms", nargs="+", default=["latents", "hitters"])
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--passages", type=int, nargs="+", default=[], help="of a context (none: 8, 16, 24)")
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--contexts", type=int, default=4, help="of an update")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--judged", type=int, default=90, help="test contexts, at most")
    parser.add_argument("--seconds", type=float, default=150.0, help="of everything")
    parser.add_argument("--training", type=float, default=0.0, help="of training alone (0: all but 60 s)")
    parser.add_argument("--memory", type=float, default=0.25, help="share of the device that each may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", choices=list(RUNS), help="be this run")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
