"""Recall and reciprocal ranks of ranked passages, and whether one method is better than another beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CUTS = (1, 5, 20)
COMPARED = ("recall@5", "recall@20", "mrr")
_RESAMPLES = 10_000

Each = dict[str, NDArray[np.float64]]


def figures_of_each(ranked: Sequence[Sequence[str]], golds: Sequence[frozenset[str]]) -> Each:
    """recall@1, @5, @20 and mrr of every question: arrays [N].

    Recall is the share of a question's gold passages in the first k; mrr one over the rank of the first gold one
    among 20, 0 beyond.
    """
    rows: dict[str, list[float]] = {name: [] for name in (*(f"recall@{cut}" for cut in CUTS), "mrr")}
    for names, gold in zip(ranked, golds, strict=True):
        for cut in CUTS:
            rows[f"recall@{cut}"].append(len(gold.intersection(names[:cut])) / len(gold))
        first = next((rank for rank, name in enumerate(names[: CUTS[-1]], 1) if name in gold), 0)
        rows["mrr"].append(1 / first if first else 0.0)
    return {name: np.array(values) for name, values in rows.items()}


def means(each: Each) -> dict[str, float]:
    """The mean of every figure, to four places; 0 without questions."""
    return {name: round(float(values.mean()), 4) if len(values) else 0.0 for name, values in each.items()}


def gains_over_better(
    each: Mapping[str, Each], method: str, others: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """What `method` gains over the better of `others`, by figure: {over, difference, low, high}; {} if one lacks.

    low and high are the 95% interval of the paired difference, questions drawn anew 10,000 times with replacement.
    """
    if any(name not in each for name in (method, *others)):
        return {}
    gains = {}
    for figure in COMPARED:
        better = max(others, key=lambda name: float(each[name][figure].mean()))
        paired = each[method][figure] - each[better][figure]
        if not len(paired):
            continue
        # A question counts as often as it is drawn: counts weigh the differences, drawn a thousand at a time.
        chance = np.random.default_rng(seed)
        even = np.full(len(paired), 1 / len(paired))
        drawn = np.concatenate(
            [chance.multinomial(len(paired), even, size=1_000) @ paired for _ in range(_RESAMPLES // 1_000)]
        )
        low, high = np.quantile(drawn / len(paired), (0.025, 0.975))
        gains[figure] = {
            "over": better,
            "difference": round(float(paired.mean()), 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
        }
    return gains
