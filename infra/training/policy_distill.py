"""MiniLM's pair reader taught by the decoder's, in a run folder of its own beside the decoder's run.

    python3 -m infra.training.policy_distill --run /tmp/work/policy --out /tmp/work/policy_small --made /tmp/made \\
        --carried /tmp/carried --reader /tmp/reader --seconds 600

RUN is a folder of `policy_gpu --pair-base decoder|both`: its material is linked, its pair readers over the decoder
teach. Stages, each waiting for what RUN has not made yet (the decoder's made reader comes before its folds):

* *made-targets*: the decoder after the made questions alone scores what is drawn of them: no fold's questions are
  known to it, so none gets into the student that every fold goes on from;
* *made*: the student learns these, OUT/pairs/made;
* *fold-targets*: each training question's draws are scored by the decoder's fold that did not see its title;
* *folds*: three students go on, fold0, fold1 and whole, and score their rows as pair readers of a run do.

What is left is a run of `policy_gpu --pair-base minilm --out OUT` with its stage pairs done: teach, reward and
judge follow (job policy_small.sh). Devices in CUDA_VISIBLE_DEVICES are dealt among the processes of a stage. What
is done is passed over; teachers that the clock cut leave the rest to the labels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infra.training.policy_made import MADE
from infra.training.policy_pairs import DECODER, FOLDS, MINILM, PLACES
from infra.training.policy_ranks import NAMES, pair_orders, ranks_of, table_of
from infra.training.policy_student import train_student
from infra.training.policy_targets import Given, say, score_targets, scored_shards, target_path
from models.retriever.pair_reader import CONFIG
from pipeline.tasks.material import Material

STAGES = ("made-targets", "made", "fold-targets", "folds")
SHARES = {"made-targets": 150, "made": 110, "fold-targets": 110, "folds": 120}


def main() -> None:
    """Entry point: the stages in order, their processes dealt among the devices; or one of them (--work)."""
    given = _given()
    if given.work:
        WORK[given.work.partition(":")[0]](given)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + given.seconds
    link_material(given.run, given.out, until)
    stages = [name for name in STAGES if name in given.stage]
    for at, stage in enumerate(stages):
        left = stages[at:]
        share = (until - time.monotonic()) * SHARES[stage] / sum(SHARES[name] for name in left)
        began = time.monotonic()
        # a teacher may come late: waiting is at the expense of the whole, not of the stage
        _wait([given.run / PLACES[DECODER] / name / CONFIG for name in _teachers(stage)], until)
        if stage == "made-targets":
            _wait([given.made / "manifest.json"], until)
        waited = time.monotonic() - began
        share = max(30.0, min(share, (until - time.monotonic()) * 0.95))
        if not _processes(given, stage, share):
            raise SystemExit(f"{stage} did not end well: see the lines above; start again, it goes on")
        say(f"{stage}: waited {waited:.0f} s, then {time.monotonic() - began - waited:.0f} s of {share:.0f}")
    if "folds" in stages:
        told = write_ranks_beside(given.run, given.out)
        for split in ("dev", "test"):
            say(f"ranks\n{table_of(told, split)}")


def _teachers(stage: str) -> tuple[str, ...]:
    return {"made-targets": (MADE,), "fold-targets": ("fold0", "fold1")}.get(stage, ())


def _wait(paths: Sequence[Path], until: float) -> None:
    while missing := [path for path in paths if not path.exists()]:
        if time.monotonic() > until - 30:
            raise SystemExit(f"{missing[0]} is not there; look at the log of the job that makes it")
        time.sleep(0.5)


def link_material(run: Path, out: Path, until: float = 0.0) -> None:
    """The run's material is the student's, the same files: what one has read the other need not."""
    _wait([run / "material" / "manifest.json"], max(until, time.monotonic() + 31))
    if not (out / "material").exists():
        (out / "material").symlink_to((run / "material").resolve(), target_is_directory=True)


def _processes(given: Given, stage: str, seconds: float) -> bool:
    """Start a stage's processes and wait for them; whether all ended well."""
    gpus = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "1"}
    own = [
        sys.executable,
        "-m",
        "infra.training.policy_distill",
        *sys.argv[1:],
        "--seconds",
        f"{seconds:.0f}",
    ]
    children = [
        subprocess.Popen(
            [*own, "--work", work],
            env=environment | ({"CUDA_VISIBLE_DEVICES": gpus[at % len(gpus)]} if gpus else {}),
        )
        for at, work in enumerate(works(given, stage, max(1, len(gpus))))
    ]
    limit = time.monotonic() + 1.6 * seconds + 60
    good = True
    for child in children:
        try:
            good &= child.wait(timeout=max(1.0, limit - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            good = False
    return good


def works(given: Given, stage: str, devices: int) -> list[str]:
    """What the processes of a stage do: `targets:PLAN:shard/shards` or `student:FOLD`; what is done is left out."""
    if stage == "made":
        return [] if (given.out / PLACES[MINILM] / MADE / CONFIG).exists() else [f"student:{MADE}"]
    if stage == "folds":
        left = [name for name in FOLDS if not (given.out / PLACES[MINILM] / name / "scores.npz").exists()]
        return [f"student:{fold}" for fold in reversed(left)]
    plans = (MADE,) if stage == "made-targets" else ("fold0", "fold1")
    shards = max(1, devices // len(plans))
    return [
        f"targets:{plan}:{at}/{shards}"
        for plan in plans
        if not scored_shards(given.out, plan)
        for at in range(shards)
        if not target_path(given.out, plan, f"{at}/{shards}").exists()
    ]


def write_ranks_beside(run: Path, out: Path) -> dict[str, Any]:
    """OUT/ranks_beside.json: how early the student's order finds what tells, beside those of the run's readers."""
    material = Material.load(out / "material")
    student = pair_orders(material, out)[NAMES[MINILM]]
    found = ranks_of(material, {"pair_taught": student, **pair_orders(material, run)})
    (out / "ranks_beside.json").write_text(json.dumps(found, indent=1))
    return found


WORK = {"targets": score_targets, "student": train_student}


def _given() -> Given:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = partial(parser.add_argument)
    add("--run", type=Path, required=True, help="the decoder's run: material and pairs_decoder")
    add("--out", type=Path, required=True, help="the student's run")
    add("--carried", type=Path, required=True)
    add(
        "--reader",
        type=Path,
        help="folder of the reader, whose base the teacher is over (default: --carried)",
    )
    add("--made", type=Path, required=True, help="folder of made_questions")
    add("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    add("--seconds", type=float, default=600.0, help="of everything, waiting included")
    add("--made-passes", type=float, default=2.0, help="times that a made question is drawn")
    add(
        "--made-examples", type=int, default=48_000, help="of them, at most: the teacher's time goes by these"
    )
    add("--made-candidates", type=int, default=16, help="candidates of a made question in a draw")
    add("--passes", type=float, default=4.0, help="times that a training question is drawn")
    add("--candidates", type=int, default=24, help="candidates of a training question in a draw")
    add("--questions", type=int, default=64, help="examples of a step on made questions; half of it by fold")
    add("--lr", type=float, default=1.5e-4, help="on made questions; half of it by fold")
    add("--soft", type=float, default=0.7, help="share of the loss that is the teacher's")
    add("--temperature", type=float, default=2.0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--work", default="", help="(its own) what this process does")
    return parser.parse_args()


if __name__ == "__main__":
    main()
