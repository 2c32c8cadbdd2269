"""What the stages of `policy_gpu` open of a run: its material with pair features, its readings, and its trust."""

from __future__ import annotations

import argparse
import time

import numpy as np

from infra.training import policy_points as points
from infra.training.policy_apart import (
    choosable,
    load_spoken,
    load_verified,
)
from infra.training.policy_pairs import (
    BOTH,
    PAIRS_BOTH,
    PLACES,
    kinds_of,
    with_scores,
)
from infra.training.policy_readers import open_readers, readings_of
from models.retriever.trust import KINDS, Combination
from pipeline.tasks.material import Material
from rl.episodes import Outcome, OutcomeReader, Readings

Given = argparse.Namespace
"""The options of `infra.training.policy_gpu`."""


def seen_place(given: Given) -> str:
    """Where under OUT the scores lie that policies see."""
    return PAIRS_BOTH if given.pair_features == BOTH else PLACES[kinds_of(given.pair_base)[0]]


def open_material(given: Given) -> Material:
    """The material with the pair reader's features, where it has looked."""
    material = Material.load(given.out / "material")
    pairs = given.out / seen_place(given)
    return with_scores(material, pairs) if pairs.exists() else material


def open_apart(given: Given, material: Material) -> points.ApartTable | None:
    """Everything that reading apart is judged with, None where nothing is read apart.

    FileNotFoundError where the stage trust has not ended.
    """
    if given.together:
        return None
    spoken = load_spoken(given.out / "readings", readings_of(given, material))
    width = material.tables.num_candidates
    singles = spoken.singles(len(material), width)
    verified = np.nan_to_num(load_verified(given.out / "trust", len(material), width))
    combined = {kind: Combination.load(given.out / "trust" / f"{kind}.json") for kind in KINDS}
    return points.ApartTable(
        singles=singles,
        logits={kind: each.logits(material.tables, singles, verified) for kind, each in combined.items()},
        allowed=choosable(material),
        prompts=np.load(given.out / "material" / "prompts.npy"),
    )


def remember(readings: Readings, apart: points.ApartTable | None) -> None:
    """What was read alone need not be read again where a choice is of one candidate."""
    if apart is None:
        return
    singles = apart.singles
    rows, picks = np.nonzero(singles.read)
    outcomes = [
        Outcome(f1, loss, margin)
        for f1, loss, margin in zip(
            singles.f1[rows, picks].tolist(), singles.loss[rows, picks].tolist(),
            singles.margin[rows, picks].tolist(), strict=True,
        )
    ]  # fmt: skip
    readings.add(rows.tolist(), [1 << int(pick) for pick in picks], outcomes)


def reader_of(given: Given, material: Material) -> Readings:
    """Readings by the readers of the run, each question by the one that does not know it."""
    return Readings(OutcomeReader(open_readers(given, material)(False)), readings_of(given, material))


def say(what: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)  # noqa: T201
