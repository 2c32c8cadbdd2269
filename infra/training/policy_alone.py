"""What the best candidates of training questions are worth, read alone and in twos: the stage `alone`.

Each question is read by the reader that does not know it (`policy_readers`), made questions by the shipped one,
to which they are unknown too. A run's questions have their best candidates by the pair reader that was not trained
on them, made ones by hybrid ranking; what tells is among them always. Readings are kept in shards under
OUT/alone/train and OUT/alone/made as any others are; a shard that is there is passed over. Imports nothing that a
GPU host lacks.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra.training.made_questions import read_made
from infra.training.policy_opened import Given, open_material, say
from infra.training.policy_readers import open_readers, readings_of
from infra.training.policy_stages import load_readings
from models.retriever.pair_rewarded import ReadQuestion
from models.retriever.table import ALL_FEATURES, FEATURES, GOLD, TableBatch
from pipeline.tasks.material import Material
from rl.episodes import OutcomeReader, Readings, Request

ALONE = "alone"
TRAIN, MADE = "train", "made"
CHUNK = 128
"""Questions of a shard: some 2,500 readings, one call to the reader."""
MOST_READERS = 6
"""Processes that read at once, at most: each holds three readers, and a call fills the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AloneConfig:
    """How much of a question is read."""

    alone: int = field(default=12, metadata={"help": "candidates read alone"})
    twos: int = field(default=4, metadata={"help": "of these, the best that are read in twos (0: none)"})

    def __post_init__(self) -> None:
        if self.alone < 1 or not 0 <= self.twos <= self.alone:
            raise ValueError(
                f"twos: given {self.twos} of {self.alone} candidates; allowed: 0 to all of 1 or more"
            )


def config_of(given: Given, plan: str) -> AloneConfig:
    """How much of a run's (TRAIN) or of made questions is read."""
    return (
        AloneConfig(alone=given.alone, twos=min(given.twos, given.alone))
        if plan == TRAIN
        else AloneConfig(alone=max(1, given.alone - 2), twos=min(max(0, given.twos - 1), given.alone))
    )


def picks_for(
    tables: TableBatch, row: int, scores: npt.NDArray[np.float32], config: AloneConfig
) -> npt.NDArray[np.int64]:
    """The candidates of a question that are read alone, the best first; what tells takes the last places else."""
    here = np.flatnonzero(tables.present[row])
    order = here[np.argsort(-scores[here], kind="stable")]
    best, rest = order[: config.alone], order[config.alone :]
    told = rest[tables.labels[row, rest] == GOLD][: max(0, len(best) - 1)]
    return np.concatenate([best[: len(best) - len(told)], told]).astype(np.int64)


def requests_for(row: int, picks: npt.NDArray[np.int64], config: AloneConfig) -> list[Request]:
    """Reading nothing, each candidate alone, and the best in twos."""
    singles = picks.tolist()
    two = [tuple(sorted(each)) for each in combinations(singles[: config.twos], 2)]
    return [(row, ()), *((row, (at,)) for at in singles), *((row, each) for each in two)]


def plan_of(given: Given, plan: str) -> tuple[Material, npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """A plan's material, the rows of it that are read, and the scores [N, K] that order their candidates."""
    if plan == TRAIN:
        material = open_material(given)
        rows = material.rows("train", answerable=True)
        return material, rows, material.tables.features[..., ALL_FEATURES.index("pair")]
    material = read_made(given.made)
    rows = material.rows(answerable=True)
    some = np.random.default_rng(7).permutation(rows)[: given.alone_made]
    return material, np.sort(some), material.tables.features[..., FEATURES.index("fused")]


def read_alone(given: Given, until: float) -> None:
    """This worker's shards: a run's questions first, all of them, then as many made ones as there is time for."""
    plans = (TRAIN, MADE) if given.made is not None and given.alone_made else (TRAIN,)
    workers = readers_at_once(given)
    for plan in plans:
        material, rows, scores = plan_of(given, plan)
        config, folder = config_of(given, plan), given.out / ALONE / plan
        folder.mkdir(parents=True, exist_ok=True)
        own = _as_read(given, plan)
        reader = OutcomeReader(open_readers(own, material)(True))
        name, began, count = readings_of(own, material), time.monotonic(), 0
        for at in range(given.worker * CHUNK, len(rows), CHUNK * workers):
            path = folder / f"readings-{at:06d}.npz"
            if path.exists():
                continue
            if time.monotonic() > until:
                say(f"alone {plan}: worker {given.worker} out of time, questions from {at} on are left")
                if plan == TRAIN:
                    raise SystemExit(1)
                return
            asked = [
                each
                for row in rows[at : at + CHUNK].tolist()
                for each in requests_for(row, picks_for(material.tables, row, scores[row], config), config)
            ]
            readings = Readings(reader, name)
            readings.read(asked)
            readings.save(path)
            count += readings.num_read
        took = time.monotonic() - began
        say(f"alone {plan}: worker {given.worker} {count:,} readings in {took:.0f} s with opening")


def readers_at_once(given: Given) -> int:
    """How many processes read."""
    return max(1, min(int(given.workers), MOST_READERS))


def load_alone(given: Given, plan: str, material: Material) -> Readings:
    """What the stage left of a plan; none where it did not run."""
    readings = Readings(None, readings_of(_as_read(given, plan), material))
    load_readings([given.out / ALONE / plan], readings)
    return readings


def worth_of(tables: TableBatch, row: int, picks: Sequence[int], f1: float, price: float) -> float:
    """F1 less the price of the tokens read, the heads of their texts with them."""
    heads = {int(tables.groups[row, at]): int(tables.heads[row, at]) for at in picks}
    return f1 - price * (int(tables.tokens[row, list(picks)].sum()) + sum(heads.values()))


def read_questions(
    material: Material, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], readings: Readings,
    config: AloneConfig, price: float,
) -> list[ReadQuestion]:  # fmt: skip
    """The rows whose readings alone are all known, with what each is worth; twos where they are known."""
    tables, found = material.tables, []

    def f1_of(row: int, picks: tuple[int, ...]) -> float:
        (outcome,) = readings.read([(row, picks)])
        return worth_of(tables, row, picks, outcome.f1, price)

    for row in rows.tolist():
        picks = picks_for(tables, row, scores[row], config)
        if not len(picks) or not all(readings.knows(row, each) for each in ((), *((p,) for p in picks))):
            continue
        best = picks[: config.twos].tolist()
        twos = np.full((len(best), len(best)), np.nan, np.float32)
        for i, j in combinations(range(len(best)), 2):
            if readings.knows(row, (best[i], best[j])):
                twos[i, j] = twos[j, i] = f1_of(row, (best[i], best[j]))
        alone = [readings.read([(row, (int(pick),))])[0] for pick in picks]
        found.append(
            ReadQuestion(
                row,
                picks,
                np.array([f1_of(row, (int(pick),)) for pick in picks], np.float32),
                np.array([each.loss for each in alone], np.float32),
                f1_of(row, ()),
                twos if len(best) > 1 else np.zeros((0, 0), np.float32),
            )
        )
    return found


def told_of(material: Material, questions: Sequence[ReadQuestion]) -> dict[str, float]:
    """What the readings say in short: questions, mean worth of the first, of the best, of what is labelled to tell.

    `misled`: share of the questions with a labelled candidate among those read, where another is worth more by .3.
    """
    if not questions:
        return {"questions": 0}
    first = [each.alone[0] for each in questions]
    best = [each.alone.max() for each in questions]
    gold = [each.alone[material.tables.labels[each.row, each.picks] == GOLD] for each in questions]
    labelled = [(own.max(), top) for own, top in zip(gold, best, strict=True) if len(own)]
    return {
        "questions": len(questions),
        "first": round(float(np.mean(first)), 4),
        "best": round(float(np.mean(best)), 4),
        "labelled": round(float(np.mean([own for own, _ in labelled])), 4) if labelled else math.nan,
        "misled": round(float(np.mean([top > own + 0.3 for own, top in labelled])), 4)
        if labelled
        else math.nan,
        "nothing": round(float(np.mean([each.nothing for each in questions])), 4),
    }


def _as_read(given: Given, plan: str) -> Given:
    """The run's options as they read a plan: made questions by the shipped reader alone."""
    return given if plan == TRAIN else argparse.Namespace(**{**vars(given), "fold_readers": None})


def shards(out: Path, plan: str) -> int:
    """How many shards of a plan are there."""
    return len(list((out / ALONE / plan).glob("readings-*.npz")))
