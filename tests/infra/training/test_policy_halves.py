"""infra/training/policy_halves.py: points are chosen on questions other than those that they are told on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.training.policy_evaluation import Curves
from infra.training.policy_halves import (
    agreement,
    by_halves,
    by_others,
    by_the_same,
    half_of,
    load_scores,
    save_scores,
    table,
    ways,
)
from infra.training.policy_report import page, result_of

N = 40


def add(
    curves: Curves, dataset: str, split: str, name: str, f1: np.ndarray[Any, Any], tokens: float,
    bias: float = 0.0,
) -> None:  # fmt: skip
    """A point of a curve, with F1 question by question."""
    figures = {"name": name, "budget": 128, "stop_bias": bias, "tokens": tokens}
    curves.add(dataset, split, figures | {"forced_f1": round(100 * float(f1.mean()), 2)}, f1)


def flat(value: float) -> np.ndarray[Any, Any]:
    return np.full(N, value)


def simple_and_oracle(curves: Curves, dataset: str, split: str) -> None:
    """Hybrid is the best simple method: 50 at 120 tokens; the oracle stands at 90."""
    for name, f1 in (("random", 0.1), ("bm25", 0.3), ("dense", 0.4), ("hybrid", 0.5), ("oracle", 0.9)):
        add(curves, dataset, split, name, flat(f1), 120.0)


def two_halves() -> tuple[Curves, np.ndarray[Any, Any]]:
    """Bias 0 is right on the first half alone, bias -4 on the second alone, bias -12 a little on both."""
    curves, second = Curves(), np.arange(N) % 2 == 1
    simple_and_oracle(curves, "nq", "test")
    add(curves, "nq", "test", "reinforce-0", np.where(second, 0.2, 0.8), 100.0, 0.0)
    add(curves, "nq", "test", "reinforce-0", np.where(second, 0.8, 0.2), 100.0, -4.0)
    add(curves, "nq", "test", "reinforce-0", flat(0.45), 100.0, -12.0)
    add(curves, "nq", "test", "plain_ppo_apart-0", flat(0.6), 110.0)
    return curves, second


def test_what_is_best_on_one_half_is_told_on_the_other() -> None:
    """Chosen on the same questions a half's luck counts (50 of .8 and .2); told on the other half it is 20."""
    curves, second = two_halves()
    test, each = curves.of("nq", "test"), curves.scores["test", "nq"]
    found = by_halves("nq", test, each, second)
    assert found["reinforce"]["f1"] == pytest.approx(20.0)
    assert found["reinforce"]["gap_closed"] == pytest.approx(-30 / 40)
    assert found["plain_ppo_apart"]["f1"] == pytest.approx(60.0)
    assert found["plain_ppo_apart"]["over_simple"] == {"gain": 10.0, "low": 10.0, "high": 10.0}
    # each half picks REINFORCE by its own 80, and the other half shows it
    assert found["policy"]["kind"] == "reinforce / reinforce"
    assert found["policy"]["f1"] == pytest.approx(20.0)
    assert found["simple"]["f1"] == pytest.approx(50.0)
    assert by_halves("nq", test, each, np.ones(N, bool)) == {}
    assert by_the_same(curves, "nq")["policy"]["kind"] == "plain_ppo_apart"


def test_halves_are_of_the_questions_and_unequal_halves_count_by_their_size() -> None:
    """A question falls to the same half in any order; about half of many fall to each; tokens follow the sizes."""
    ids = [f"nq-{at}" for at in range(2000)]
    half = half_of(ids)
    np.testing.assert_array_equal(half_of(ids[::-1]), half[::-1])
    assert 900 < half.sum() < 1100
    curves, _ = two_halves()
    second = np.arange(N) < 10
    add(curves, "nq", "test", "supervised-0", np.where(second, 1.0, 0.0), 40.0, 0.0)
    add(curves, "nq", "test", "supervised-0", np.where(second, 0.0, 1.0), 80.0, -4.0)
    found = by_halves("nq", curves.of("nq", "test"), curves.scores["test", "nq"], second)["supervised"]
    # chosen on the ten: 40 tokens, told on the thirty; chosen on the thirty: 80 tokens, told on the ten
    assert (found["f1"], found["tokens"]) == (0.0, 0.75 * 40 + 0.25 * 80)


def test_the_other_sets_choose_without_the_set_itself() -> None:
    """Dev questions like bias 0, this set's test questions -4, those of the two other sets -12, which is told."""
    curves = Curves()
    likes = {"nq": -4.0, "squad": -12.0, "rtqa": -12.0}
    for dataset, liked in likes.items():
        for split in ("dev", "test") if dataset != "rtqa" else ("test",):
            simple_and_oracle(curves, dataset, split)
            for bias in (0.0, -4.0, -12.0):
                best = bias == (0.0 if split == "dev" else liked)
                add(
                    curves,
                    dataset,
                    split,
                    "reinforce-0",
                    flat(0.7 if best else 0.55 + bias / 1000),
                    100.0,
                    bias,
                )
    found = by_others(curves, "nq")
    assert found["policy"]["kind"] == "reinforce"
    assert found["reinforce"]["f1"] == pytest.approx(53.8)
    assert found["reinforce"]["guide_f1"] == pytest.approx(70.0)
    assert by_the_same(curves, "nq")["reinforce"]["f1"] == pytest.approx(70.0)
    agreed = agreement(curves, "nq")
    assert agreed["points"] == 3
    assert agreed["simple_dev_less_test"] == 0.0
    assert agreement(curves, "rtqa") == {}


def test_a_point_that_was_not_read_is_chosen_by_nobody() -> None:
    """Where the best point on the other sets was not read here, the next best stands."""
    curves = Curves()
    for dataset in ("nq", "squad"):
        simple_and_oracle(curves, dataset, "test")
        add(curves, dataset, "test", "reinforce-0", flat(0.6), 100.0, 0.0)
    add(curves, "squad", "test", "reinforce-0", flat(0.8), 100.0, -4.0)
    unread = {"name": "reinforce-0", "budget": 128, "stop_bias": -4.0, "tokens": 100.0}
    curves.add("nq", "test", unread, None)
    assert by_others(curves, "nq")["reinforce"]["f1"] == pytest.approx(60.0)


def test_scores_come_home_beside_the_curves_and_the_page_shows_every_way(tmp_path: Path) -> None:
    """What was saved gives the same halves again; scores of another run are refused; the page has the column."""
    curves, second = two_halves()
    halves = {"nq": second}
    first = ways(curves, halves)
    save_scores(curves, halves, tmp_path / "scores.npz")
    again = Curves(sets=curves.sets)
    known = load_scores(again, tmp_path / "scores.npz")
    assert again.scores["test", "nq"].keys() == curves.scores["test", "nq"].keys()
    np.testing.assert_allclose(again.scores["test", "nq"]["plain_ppo_apart-0", 128, 0.0, 1.0], 0.6, atol=1e-3)
    assert ways(again, known)["nq"]["halves"]["policy"]["kind"] == first["nq"]["halves"]["policy"]["kind"]
    found = {
        "summary": {}, "sets": curves.sets, "records": {}, "ways": first,
        "questions": {"test": {"nq": [N, 0.925]}},
    }  # fmt: skip
    text = page(found, "CPU", "abc", "What is weak: all of it.\n")
    assert text.index("What is weak: all of it.") < text.index("| set | best simple |")
    assert f"test nq {N} (92%)" in text
    assert "| the other half |" in text
    assert "reinforce / reinforce: 20.0 (100), -0.75" in text
    assert "the other half" not in "\n".join(table(ways(Curves(sets=curves.sets))))
    assert result_of(found, "CPU", "abc")["ways"] == first
    curves.sets["nq"]["test"].append(dict(curves.sets["nq"]["test"][-1], budget=64))
    with pytest.raises(ValueError, match="take both files of one run"):
        load_scores(Curves(sets=curves.sets), tmp_path / "scores.npz")


def test_the_page_says_whether_dev_questions_were_known_to_their_reader() -> None:
    """With fold readers the table does not say that the judged reader was trained on dev questions."""
    assert any("trained on" in line for line in table({})) and any("most dev" in line for line in table({}))
    assert not any("most dev" in line for line in table({}, folds=True))
    assert any("readers that do not know them" in line for line in table({}, folds=True))
