"""What the stages of `policy_gpu` open of a run: its material with pair features, its readings, and its trust."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from infra.training import policy_points as points
from infra.training.policy_apart import (
    choosable,
    load_spoken,
    load_verified,
)
from infra.training.policy_pairs import (
    BOTH,
    FOLDS,
    PAIRS_BOTH,
    PLACES,
    kinds_of,
    with_scores,
)
from infra.training.policy_readers import open_readers, readings_of
from infra.training.policy_stages import REWARDED
from models.retriever.trust import KINDS, Combination
from pipeline.tasks.material import Material
from rl.episodes import Outcome, OutcomeReader, Readings

Given = argparse.Namespace
"""The options of `infra.training.policy_gpu`."""


ARMS = "arms.json"
"""What `policy_rewarded` says of its pair readers, under OUT."""
LABELS = "labels"
"""The arm without reward."""
LONGER = "longer"
"""With REWARDED: the scores that policies see of the best arm, and of the one without reward."""


def seen_place(given: Given) -> str:
    """Where under OUT the scores lie that policies see."""
    return PAIRS_BOTH if given.pair_features == BOTH else PLACES[kinds_of(given.pair_base)[0]]


def arm_home(out: Path, arm: str) -> Path:
    """Where an arm's pair readers lie, as a run's own do under OUT."""
    return out / "arms" / arm


def best_arm(out: Path) -> str:
    """The form whose first picks are worth most; FileNotFoundError before the stage `rewarded` has ended."""
    path = out / ARMS
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the stage rewarded to its end first")
    return str(json.loads(path.read_text())["best"])


def seen_by(given: Given, scores: str, seed: int = 0) -> Path:
    """Where the scores lie that a policy of this seed sees: `scores` is "", `rewarded` or `longer`.

    Of `rewarded` the seed's own pair readers (seeds in turn) where all their folds are there, else the first's;
    FileNotFoundError where there are none.
    """
    if not scores:
        return Path(given.out / seen_place(given))
    arm = LABELS if scores == LONGER else best_arm(given.out)
    own = seed % given.arm_seeds
    for name in (*([f"{arm}-{own}"] if scores == REWARDED and own else []), arm):
        place = arm_home(given.out, name) / seen_place(given)
        if all((place / fold / "scores.npz").exists() for fold in FOLDS):
            return place
    raise FileNotFoundError(f"{place} has not all folds: run the stage rewarded_whole to its end first")


def open_material(given: Given, scores: str = "", seed: int = 0) -> Material:
    """The material with the pair reader's features, where it has looked; `scores` as in `seen_by`."""
    material = Material.load(given.out / "material")
    pairs = seen_by(given, scores, seed)
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
