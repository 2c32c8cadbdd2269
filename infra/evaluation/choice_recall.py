"""What is chosen, judged without a reader: whether it holds the telling sentence, or an answer, at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.retriever.choosing import sufficient
from models.retriever.selecting import Chosen, fill
from models.retriever.table import FEATURES, GOLD, TableBatch

SIMPLE = {"bm25": "bm25", "dense": "dense", "hybrid": "fused"}
"""Methods that a single feature ranks: name to feature."""


def simple_choices(tables: TableBatch, method: str, budget: int, seed: int = 0) -> list[Chosen]:
    """What bm25, dense, hybrid, random or the oracle (gold first) chooses within the budget."""
    scores: np.ndarray[Any, Any]
    if method == "random":
        scores = np.random.default_rng(seed).random(tables.present.shape)
    elif method == "oracle":
        best = tables.labels.max(1, keepdims=True)
        scores = np.where((tables.labels == best) & (best > 0), 1.0, 0.0) + 1e-3 * tables.features[:, :, 5]
        wanted = np.where(
            tables.needs_all, ((tables.labels == best) & (best > 0)).sum(1), (best[:, 0] > 0).astype(int)
        )
        found = fill(tables, scores, budget)
        return [_first(tables, row, chosen, max(1, int(wanted[row]))) for row, chosen in enumerate(found)]
    elif method in SIMPLE:
        scores = tables.features[:, :, FEATURES.index(SIMPLE[method])]
    else:
        raise ValueError(f"method: given {method!r}; allowed: {', '.join((*SIMPLE, 'random', 'oracle'))}")
    return fill(tables, scores, budget)


def recall(tables: TableBatch, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Percent of questions whose choice holds the telling sentence (`gold`, over those that have one among the
    candidates), or any answer string (`holds`), and the mean tokens and sentences read.
    """
    picked = np.zeros(tables.present.shape, bool)
    for row, choice in enumerate(chosen):
        picked[row, list(choice.picks)] = True
    has_gold = (tables.labels == GOLD).any(1)
    gold = sufficient(np.where(tables.labels == GOLD, GOLD, 0), picked, tables.needs_all)
    holds = (picked & (tables.labels > 0)).any(1)
    return {
        "n": len(tables),
        "gold": round(100 * float(gold[has_gold].mean()), 2) if has_gold.any() else None,
        "holds": round(100 * float(holds.mean()), 2),
        "tokens": round(float(np.mean([choice.tokens for choice in chosen])), 1),
        "sentences": round(float(np.mean([len(choice.picks) for choice in chosen])), 2),
        "gold_among_candidates": round(100 * float(has_gold.mean()), 2),
    }


def _first(tables: TableBatch, row: int, chosen: Chosen, count: int) -> Chosen:
    """The first few of a choice, with what they cost."""
    picks = chosen.picks[:count]
    heads: dict[int, int] = {int(tables.groups[row, at]): int(tables.heads[row, at]) for at in picks}
    return Chosen(picks, int(tables.tokens[row, list(picks)].sum()) + sum(heads.values()))
