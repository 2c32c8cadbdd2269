"""Figures of ranked passages, and gains beyond chance."""

from __future__ import annotations

import numpy as np

from infra.evaluation.recall import figures_of_each, gains_over_better, means


def test_recall_is_the_share_of_gold_and_mrr_the_first_one() -> None:
    """Computed by hand for one, two and no gold passages found."""
    golds = [frozenset("ab"), frozenset("c"), frozenset("d")]
    ranked = [["x", "a", "y", "z", "w", "b"], ["c"], [*(str(n) for n in range(20)), "d"]]
    assert means(figures_of_each(ranked, golds)) == {
        "recall@1": round((0 + 1 + 0) / 3, 4),
        "recall@5": round((0.5 + 1 + 0) / 3, 4),
        "recall@20": round((1 + 1 + 0) / 3, 4),
        "mrr": round((0.5 + 1 + 0) / 3, 4),
    }


def _each(found: np.ndarray) -> dict[str, np.ndarray]:
    return {name: found.astype(float) for name in ("recall@5", "recall@20", "mrr")}


def test_gain_is_paired_with_its_interval() -> None:
    """Against the better of the others; it agrees with the normal approximation and holds the difference."""
    chance = np.random.default_rng(1)
    dense = chance.random(800) < 0.7
    hybrid = np.where(chance.random(800) < 0.1, ~dense, dense)
    each = {"bm25": _each(chance.random(800) < 0.4), "dense": _each(dense), "hybrid": _each(hybrid)}
    gain = gains_over_better(each, "hybrid", ("bm25", "dense"))["recall@5"]
    paired = hybrid.astype(float) - dense
    assert gain["over"] == "dense"
    assert gain["difference"] == round(float(paired.mean()), 4)
    width = 1.96 * paired.std() / np.sqrt(len(paired))
    assert abs(gain["low"] - (paired.mean() - width)) < 0.15 * width
    assert abs(gain["high"] - (paired.mean() + width)) < 0.15 * width


def test_nothing_is_compared_where_a_method_lacks() -> None:
    """One cell of a table has one method."""
    assert gains_over_better({"hybrid": _each(np.ones(3))}, "hybrid", ("bm25", "dense")) == {}
