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
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.cards import card_text
from infra.training.made_questions import read_made
from infra.training.policy_made import LOWER, MADE
from infra.training.policy_pairs import (
    DECODER,
    FOLDS,
    MINILM,
    PLACES,
    PairBase,
    fold_of,
    fold_rows,
    pair_features,
    texts_of,
)
from infra.training.policy_ranks import NAMES, pair_orders, ranks_of, table_of
from models.retriever.pair_reader import CONFIG, PairReader, PairScorer, from_minilm, save_pair_reader
from models.retriever.pair_taught import (
    WORDS,
    Plan,
    TaughtConfig,
    draw_plan,
    measured,
    train_taught,
)
from models.retriever.pair_training import PairTrainConfig
from pipeline.tasks.material import Material

STAGES = ("made-targets", "made", "fold-targets", "folds")
SHARES = {"made-targets": 150, "made": 110, "fold-targets": 110, "folds": 120}
TEACHERS = {"made": MADE, "fold0": "fold1", "fold1": "fold0"}
"""Which of the decoder's readers scores a plan: a fold's questions are scored by the one that did not see them."""
HELD_OUT = 256
"""Examples of the made questions that no student learns: they tell how near it came to its teacher."""
CHUNK = 1_024
SAYS = (
    "Reads a question and a candidate sentence together, one score each against none of these (docs/policy.md); "
    "six features of the retriever's policy are made of it. all-MiniLM-L6-v2 (Apache-2.0) fine-tuned with one "
    "linear head, taught by a pair reader over Gemma-3-270M: its scores beside the labels. Matrices in 8 bits, a "
    "scale for each row; words' vectors are MiniLM's own. Licence: Apache-2.0, as what it comes from."
)
ASKED = {True: "made of Wikipedia sentences", False: "of training: NQ, SQuAD 2, HotpotQA, MuSiQue, newswire"}
Given = argparse.Namespace


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
        if not _target(given.out, plan, f"{at}/{shards}").exists()
    ]


def scored_shards(out: Path, plan: str) -> list[Path]:
    """The files of a plan whose shards are all scored; none where one is missing."""
    found = sorted((out / "taught").glob(f"{plan}-*of*.npz"))
    for count in sorted({int(path.stem.rpartition("of")[2]) for path in found}):
        own = [path for path in found if path.stem.endswith(f"of{count}")]
        if len(own) == count:
            return own
    return []


def _target(out: Path, plan: str, part: str) -> Path:
    at, of = part.split("/")
    return out / "taught" / f"{plan}-{at}of{of}.npz"


def plan_config(given: Given, plan: str) -> PairTrainConfig:
    """How a plan's examples are drawn."""
    wide = given.made_candidates if plan == MADE else given.candidates
    return PairTrainConfig(candidates=wide, seed={MADE: 11, "fold0": 12, "fold1": 13}[plan])


def material_of(given: Given, plan: str) -> Material:
    """The questions of a plan: the made ones, or the run's."""
    return read_made(given.made) if plan == MADE else Material.load(given.out / "material")


def plan_of(given: Given, plan: str, material: Material) -> Plan:
    """What is drawn of a plan's questions; the same in every process."""
    config = plan_config(given, plan)
    if plan == MADE:
        rows = material.rows(answerable=True)
        examples = min(given.made_examples, math.ceil(given.made_passes * len(rows)))
    else:
        every = material.rows("train", answerable=True)
        rows = every[np.array([fold_of(material, int(row)) for row in every]) == int(plan[-1])]
        examples = math.ceil(given.passes * len(rows))
    return draw_plan(material.tables, rows, examples, config)


def _targets(given: Given) -> None:
    """Score one shard of a plan by its teacher, in chunks, until the clock says no."""
    _, plan, part = given.work.split(":")
    at, of = map(int, part.split("/"))
    began = time.monotonic()
    material = material_of(given, plan)
    whole = plan_of(given, plan, material)
    own = whole.take(np.arange(at, len(whole), of))
    from infra.training.reader_gpu import unpack_weights

    folder = given.reader or given.carried
    unpack_weights(folder)
    teacher = PairBase(DECODER, folder).load(given.run / PLACES[DECODER] / TEACHERS[plan], given.device)
    say(f"targets {plan} {part}: {own.num_rows:,} rows, begins after {time.monotonic() - began:.0f} s")
    scored = taught_by(teacher, own, material, began + 1.5 * given.seconds)
    path = _target(given.out, plan, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    scored.save(path)
    known = int((~np.isnan(scored.scores)).sum())
    rate = known / max(1e-9, time.monotonic() - began)
    say(f"targets {plan} {part}: {known:,} rows scored, {rate:,.0f} a second with all that comes before")


def taught_by(teacher: PairScorer, plan: Plan, material: Material, until: float) -> Plan:
    """The plan with the teacher's scores; rows from where the clock ended it stay NaN."""
    scores = np.full(plan.num_rows, np.nan, np.float32)
    for first in range(0, len(plan), CHUNK):
        if time.monotonic() > until:
            say(f"targets: out of time after {first:,} of {len(plan):,} examples; the labels teach the rest")
            break
        part = plan.take(np.arange(first, min(first + CHUNK, len(plan))))
        here = np.unique(part.questions)
        small = replace(part, questions=np.searchsorted(here, part.questions))
        texts = texts_of(teacher, material.take(here))
        start = int(plan.starts[first])
        scores[start : start + part.num_rows] = teacher.scores(small.rows(texts))
    return plan.scored(scores)


def _student(given: Given) -> None:
    """Train one student, save it (8 bits), and let it score its rows."""
    fold = given.work.partition(":")[2]
    folder = given.out / PLACES[MINILM] / fold
    base = PairBase(MINILM, given.carried / "minilm")
    if not (folder / CONFIG).exists():
        learn(given, base, fold, folder)
    if fold == MADE:
        return
    material = Material.load(given.out / "material")
    _, scored = fold_rows(material, fold)
    columns = pair_features(load_student(folder, base, given.device), material, scored)
    part = folder / "scores.part.npz"
    np.savez(part, rows=scored, columns=columns)
    part.replace(folder / "scores.npz")


def learn(given: Given, base: PairBase, fold: str, folder: Path) -> dict[str, Any]:
    """Train a student and save it; what is said of it."""
    began = time.monotonic()
    first = fold == MADE
    plans = (MADE,) if first else ("fold0", "fold1") if fold == "whole" else (fold,)
    material = material_of(given, plans[0])
    config = TaughtConfig(
        lr=given.lr if first else LOWER * given.lr, soft=given.soft, temperature=given.temperature,
        questions=given.questions if first else max(1, given.questions // 2), limit_s=1.2 * given.seconds,
    )  # fmt: skip
    plan = Plan.join([read_plan(given.out, name) for name in plans])
    held = _apart(plan) if first else np.zeros(0, np.int64)
    before = folder.parent / MADE
    reader: PairScorer = (
        from_minilm(base.folder, given.device) if first else load_student(before, base, given.device)
    )
    texts = texts_of(reader, material)
    kept = np.setdiff1d(np.arange(len(plan)), held)
    say(f"student {fold}: {len(kept):,} examples, begins after {time.monotonic() - began:.0f} s")
    started = time.monotonic()

    def tell(step: dict[str, float]) -> None:
        if int(step["step"]) % 100 == 0:
            figures = {name: round(value, 5) for name, value in step.items()}
            say(f"student {fold} {time.monotonic() - started:.0f} s {json.dumps(figures)}")

    records = train_taught(reader, plan.take(kept), texts, config, on_step=tell)
    seconds = round(time.monotonic() - started, 1)
    taught = float(np.mean(~np.isnan(plan.scores)))
    about: dict[str, Any] = {
        "taught_by": f"the decoder's pair reader, its {' and '.join(TEACHERS[name] for name in plans)}",
        "trained_on": f"{len(np.unique(plan.questions[plan.starts[:-1]])):,} questions "
        + ASKED[first],
        "fold": fold, "after_made": not first, "examples": len(kept), "rows_taught": round(taught, 4),
        "steps": int(records[-1]["step"]) + 1, "steps_planned": math.ceil(len(kept) / config.questions),
        "loss": _last(records, "loss"), "soft_loss": _last(records, "soft"), "right": _last(records, "right"),
        "seconds": seconds, "candidates": plan_config(given, plans[0]).candidates, **asdict(config),
    }  # fmt: skip
    if len(held):
        about["held_out"] = measured(reader, plan.take(held), texts)
    card = card_text("Pair reader", SAYS, about, {"Curve": records, **_before(folder)}, _command())
    save_pair_reader(reader, folder, about, card)
    (folder / "curve.json").write_text(json.dumps(records))
    told = {name: about[name] for name in ("steps", "steps_planned", "loss", "soft_loss", "right", "seconds")}
    say(f"student {fold}: {json.dumps(told | {'held_out': about.get('held_out')})}")
    return about


def read_plan(out: Path, plan: str) -> Plan:
    """A plan with what its teachers left."""
    shards = scored_shards(out, plan)
    if not shards:
        raise FileNotFoundError(f"{out / 'taught'} has not all of {plan}: run the stage of its targets first")
    return Plan.join([Plan.load(path) for path in shards])


def load_student(folder: Path, base: PairBase, device: str) -> PairScorer:
    """A saved student with its words as they were learned with: MiniLM's as carried, not their 8 bits."""
    reader = base.load(folder, device, learns=True)
    assert isinstance(reader, PairReader)
    own = from_minilm(base.folder).model.state_dict()[WORDS]
    with torch.no_grad():
        dict(reader.model.named_parameters())[WORDS].copy_(own.to(device))
    return reader


def write_ranks_beside(run: Path, out: Path) -> dict[str, Any]:
    """OUT/ranks_beside.json: how early the student's order finds what tells, beside those of the run's readers."""
    material = Material.load(out / "material")
    student = pair_orders(material, out)[NAMES[MINILM]]
    found = ranks_of(material, {"pair_taught": student, **pair_orders(material, run)})
    (out / "ranks_beside.json").write_text(json.dumps(found, indent=1))
    return found


def _apart(plan: Plan) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Examples of some questions, all of theirs: what is measured was never learned."""
    asked = plan.questions[plan.starts[:-1]]
    every = np.unique(asked)
    some = np.random.default_rng(3).permutation(every)[: min(HELD_OUT, len(every) // 20)]
    return np.flatnonzero(np.isin(asked, some))


def _before(folder: Path) -> dict[str, Any]:
    path = folder.parent / MADE / "curve.json"
    return {"Curve before it, on made questions": json.loads(path.read_text())} if path.exists() else {}


def _last(records: Sequence[dict[str, float]], name: str) -> float:
    return round(float(np.mean([each[name] for each in records[-5:]])), 4)


def _command() -> str:
    return f"python3 -m infra.training.policy_distill {' '.join(sys.argv[1:])}"


def say(what: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)  # noqa: T201


WORK = {"targets": _targets, "student": _student}


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
