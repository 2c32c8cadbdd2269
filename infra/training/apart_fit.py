"""Reading apart beside reading together: weights fitted, and every way judged at every choice (`apart_page` tells).

Fit by halves: the test questions are halved by a hash of their ids, each half answered with the weights of the
other, all sets in one fit. Fit by dev: the weights come from dev questions that the reader does not know
(RealTimeQA and newswire). Nothing is fitted on what it is judged by. Gains are over reading the same choice
together, question by question, with 95% bootstrap intervals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from infra.evaluation.policy_judge import paired
from infra.training.apart_join import (
    CROSSED,
    FITTED,
    INPUTS,
    PLAIN,
    Floats,
    Row,
    Said,
    answered,
    cost,
    fit,
    said_of,
    voters,
)

FIT_SETS, FIT_METHODS = ("rtqa", "newswire"), ("hybrid", "pair")
"""What weights are fitted on: dev questions of these sets, the choices of these methods."""
_GRID = ((0.25, 0.5, 1.0, 2.0), (0.25, 0.5, 1.0), (0.0, 0.25, 0.5), (0.0, 0.5, 1.0))
"""Tried for `crossed`: the sharpness of the pair score, the weights under one sentence, under none, under all."""


Weights = Mapping[str, Sequence[list[float] | None]]
"""By way: the weights for questions of the first half, and of the second."""


@dataclass(slots=True)
class Asked:
    """A question's row, its readings, and which half it falls into."""

    row: Row
    said: dict[tuple[int, ...], Said]
    half: int

    @classmethod
    def of(cls, row: Row) -> Asked:
        """From a row as it was written."""
        digest = hashlib.blake2b(f"half:{row['id']}".encode(), digest_size=1).digest()
        return cls(row, said_of(row), digest[0] % 2)


def judged(
    asked: Sequence[Asked],
    how: str,
    fit_sets: Sequence[str] = FIT_SETS,
    fit_methods: Sequence[str] = FIT_METHODS,
) -> dict[str, Any]:
    """Every way at every choice of every set's test questions, with the weights that were used.

    ValueError where the rows hold no test question, or no dev question to fit on.
    """
    test = [each for each in asked if each.row["split"] == "test"]
    dev = [each for each in asked if each.row["split"] == "dev" and each.row["dataset"] in fit_sets]
    if how == "dev" and not dev:
        raise ValueError(
            f"fit dev: the rows hold no dev question of {', '.join(fit_sets)}; give --fit halves"
        )
    if not test:
        raise ValueError("rows: given none of a test question; nothing can be judged")
    pools = [dev, dev] if how == "dev" else [[each for each in test if each.half != at] for at in (0, 1)]
    weights = {way: [fitted(pool, way, fit_methods) for pool in pools] for way in (*FITTED, CROSSED)}
    sets: dict[str, Any] = {}
    for dataset in sorted({each.row["dataset"] for each in test}):
        own = [each for each in test if each.row["dataset"] == dataset]
        names = list(own[0].row["chosen"])
        sets[dataset] = {"n": len(own), "choices": {name: _choice(own, name, weights) for name in names}}
    told = {way: each for way, each in weights.items() if each[0] is not None}
    return {
        "fit": how,
        "fit_questions": [len(pool) for pool in pools],
        "inputs": INPUTS,
        "weights": told,
        "sets": sets,
    }


def fitted(pool: Sequence[Asked], way: str, methods: Sequence[str]) -> list[float] | None:
    """Weights of a way from the choices of some methods on some questions; None where rows lack what it wants."""
    chosen = [
        (each, picks)
        for each in pool
        for name, picks in each.row["chosen"].items()
        if name.split(":")[0] in methods and len(picks) > 1
    ]
    if way != CROSSED:
        return fit([voters(each.row, each.said, picks, way) for each, picks in chosen])
    known = [
        (each, picks) for each, picks in chosen
        if not np.isnan(answered(each.row, each.said, picks, CROSSED, (1.0, 1.0, 0.0, 0.0)))
    ]  # fmt: skip
    if not known:
        return None
    known = known[:: max(1, len(known) // 2000)]

    def mean(weights: Sequence[float]) -> float:
        return float(
            np.mean([answered(each.row, each.said, picks, CROSSED, weights) for each, picks in known])
        )

    tried = [list(each) for each in product(*_GRID)]
    return max(tried, key=mean)


def _choice(own: Sequence[Asked], name: str, weights: Weights) -> dict[str, Any]:
    """One method at one limit: what each way gives and costs."""
    found: dict[str, Any] = {}
    base = f1_of(own, name, "together", None)
    for way in (*PLAIN, *FITTED, CROSSED):
        if way == "pair" and "pair" not in own[0].row["features"]:
            continue
        if way in weights and weights[way][0] is None:
            continue
        each = base if way == "together" else f1_of(own, name, way, weights.get(way))
        if np.isnan(each).any():
            continue
        costs = np.array([cost(one.row, one.row["chosen"][name], way) for one in own], float)
        found[way] = {
            "f1": round(100 * float(each.mean()), 2),
            "text": round(float(costs[:, 0].mean()), 1),
            "prompts": round(float(costs[:, 1].mean()), 1),
        } | ({"over_together": paired(each, base)} if way != "together" else {})
    return found


def f1_of(own: Sequence[Asked], name: str, way: str, weights: Sequence[list[float] | None] | None) -> Floats:
    """F1 question by question, each with the weights that its own half (or dev) did not make."""
    return np.array(
        [
            answered(one.row, one.said, one.row["chosen"][name], way, weights[one.half] if weights else None)
            for one in own
        ]
    )
