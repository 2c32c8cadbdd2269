"""models/retriever/trust.py: which of several readings is trusted, and weights learned from what was right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.retriever import TableBatch
from models.retriever.trust import (
    PLAIN,
    UNREAD,
    VERIFIED,
    Combination,
    FitConfig,
    SingleReadings,
    fit,
    inputs_of,
    most_trusted,
)
from tests.rl.toy import tables


def described(count: int = 60, width: int = 6) -> TableBatch:
    """The toy with fifteen features, of chance."""
    batch = tables(count, width)
    noise = np.random.default_rng(1).random((*batch.present.shape, 15)).astype(np.float32)
    return TableBatch(**(batch.arrays() | {"features": noise}))


def read(batch: TableBatch, sure_of_right: float = 1.0) -> SingleReadings:
    """Every candidate read: the telling one rightly, with a surer answer; what was padding was not read."""
    right = batch.labels > 0
    chance = np.random.default_rng(2)
    groups = np.where(batch.present, np.arange(batch.present.size).reshape(batch.present.shape), UNREAD)
    nothing = np.where(batch.present, 0.0, np.nan).astype(np.float32)
    sure = -2.0 + sure_of_right * right + 0.1 * chance.standard_normal(right.shape)
    return SingleReadings(
        f1=np.where(batch.present, right, np.nan).astype(np.float32),
        margin=nothing,
        sure=np.where(batch.present, sure, np.nan).astype(np.float32),
        lengths=nothing + 2,
        groups=groups,
        loss=nothing,
    )


def test_readings_of_the_same_answer_add_up() -> None:
    """Two that agree beat a surer one; among them the surer one answers; trust is over everything that was read."""
    found = most_trusted([1.0, 0.6, 0.8], [7, 4, 4])
    assert [answer.at for answer in found] == [0, 0, 2]
    weights = np.exp([1.0, 0.6, 0.8])
    assert found[0].trust == pytest.approx(weights[0] / (1 + weights[0]))
    assert found[2].trust == pytest.approx(weights[1:].sum() / (1 + weights.sum()))
    assert most_trusted([], []) == []


def test_fitted_weights_find_the_answers_that_are_right() -> None:
    """Where right answers are surer, trust goes by that, and answers questions that were not fitted to."""
    batch = described()
    singles = read(batch)
    half = np.arange(30)
    found = fit(batch.take(half), singles.take(half), PLAIN, FitConfig(steps=200, draws=2))
    assert found.weights[PLAIN.index("sure")] > 0.5
    rest = np.arange(30, 60)
    logits = found.logits(batch.take(rest), singles.take(rest))
    there = singles.take(rest).read
    chosen = np.where(there, logits, -np.inf).argmax(1)
    right = singles.take(rest).f1[np.arange(30), chosen].mean()
    blind = fit(batch.take(half), singles.take(half), ("dense", "bm25"), FitConfig(steps=200, draws=2))
    guess = np.where(there, blind.logits(batch.take(rest), singles.take(rest)), -np.inf).argmax(1)
    assert right > 0.9
    assert singles.take(rest).f1[np.arange(30), guess].mean() < 0.6


def test_what_was_not_read_is_zero_and_unknown_names_are_refused() -> None:
    """NaN of unread candidates reaches no weight; a verifier's column needs its scores."""
    batch = described(4)
    singles = read(batch)
    found = inputs_of(batch, singles, PLAIN)
    assert np.isfinite(found).all()
    assert (found[~singles.read] == 0).all()
    with pytest.raises(ValueError, match="given 'verified'"):
        inputs_of(batch, singles, ("verified",))
    with pytest.raises(ValueError, match="given 'pair'"):
        inputs_of(batch, singles, VERIFIED, np.zeros(singles.f1.shape, np.float32))
    with pytest.raises(ValueError, match="no reading"):
        fit(batch.take([]), singles.take([]), PLAIN)


def test_a_combination_is_kept_as_it_was(tmp_path: Path) -> None:
    """What is loaded gives the same trust; names and weights that do not fit are refused."""
    made = Combination(("margin", "sure"), (0.5, -1.25), 0.125)
    made.save(tmp_path / "a.json")
    assert Combination.load(tmp_path / "a.json") == made
    (tmp_path / "b.json").write_text('{"names": ["margin"], "weights": [], "constant": 0}')
    with pytest.raises(ValueError, match="0 weights for 1 names"):
        Combination.load(tmp_path / "b.json")
