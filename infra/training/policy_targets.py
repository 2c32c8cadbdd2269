"""What a pair reader over the decoder teaches: examples drawn of a run's and of made questions, scored in shards.

A plan is the same in every process; OUT/taught has a file for each of its shards once a teacher has scored it.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from infra.training.made_questions import read_made
from infra.training.policy_made import MADE
from infra.training.policy_pairs import DECODER, PLACES, PairBase, fold_of, texts_of
from models.retriever.pair_reader import PairScorer
from models.retriever.pair_taught import Plan, draw_plan
from models.retriever.pair_training import PairTrainConfig
from pipeline.tasks.material import Material

TEACHERS = {"made": MADE, "fold0": "fold1", "fold1": "fold0"}
"""Which of the decoder's readers scores a plan: a fold's questions are scored by the one that did not see them."""
CHUNK = 1_024
Given = argparse.Namespace
"""The options of `infra.training.policy_distill`."""


def scored_shards(out: Path, plan: str) -> list[Path]:
    """The files of a plan whose shards are all scored; none where one is missing."""
    found = sorted((out / "taught").glob(f"{plan}-*of*.npz"))
    for count in sorted({int(path.stem.rpartition("of")[2]) for path in found}):
        own = [path for path in found if path.stem.endswith(f"of{count}")]
        if len(own) == count:
            return own
    return []


def target_path(out: Path, plan: str, part: str) -> Path:
    """Where one shard (`i/n`) of a plan is kept."""
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


def score_targets(given: Given) -> None:
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
    path = target_path(given.out, plan, part)
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


def read_plan(out: Path, plan: str) -> Plan:
    """A plan with what its teachers left."""
    shards = scored_shards(out, plan)
    if not shards:
        raise FileNotFoundError(f"{out / 'taught'} has not all of {plan}: run the stage of its targets first")
    return Plan.join([Plan.load(path) for path in shards])


def say(what: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)  # noqa: T201
