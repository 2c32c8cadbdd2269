"""pipeline/tasks/scores.py: SQuAD's exact match and F1, and the rates of giving up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tasks.scores import (
    Reading,
    answer_f1,
    bootstrap_interval,
    exact_match,
    holds_answer,
    normalize_answer,
    score_readings,
)

TEXT = st.text(alphabet="abc the.,!A ", max_size=20)


def test_normalization_drops_case_articles_punctuation_and_spaces() -> None:
    """The normal form is SQuAD's."""
    assert normalize_answer(" The  Eiffel-Tower, (an) icon! ") == "eiffeltower icon"


@pytest.mark.parametrize(
    ("answer", "golds", "em", "f1"),
    [
        ("the cat", ["Cat"], 1.0, 1.0),
        ("black cat", ["cat"], 0.0, 2 / 3),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("dog", ["cat", "dog"], 1.0, 1.0),
        ("dog", ["cat"], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("cat", [], 0.0, 0.0),
    ],
)
def test_scores_of_worked_examples(answer: str, golds: list[str], em: float, f1: float) -> None:
    """Exact match and F1 are those worked out by hand."""
    assert exact_match(answer, golds) == em
    assert answer_f1(answer, golds) == pytest.approx(f1)


@given(TEXT, TEXT)
def test_f1_is_symmetric_bounded_and_one_where_exact(one: str, other: str) -> None:
    """F1 lies in [0, 1], does not depend on the order, and is 1 for an exact match."""
    f1 = answer_f1(one, [other])
    assert 0 <= f1 <= 1
    assert f1 == pytest.approx(answer_f1(other, [one]))
    if exact_match(one, [other]):
        assert f1 == 1


def test_an_answer_is_held_as_whole_words_only() -> None:
    """The text holds an answer where its words stand there, not inside other words."""
    assert holds_answer("He won 12 medals, in Rome.", ["rome"])
    assert not holds_answer("He won 120 medals.", ["12"])
    assert not holds_answer("anything", [""])


def test_giving_up_counts_as_zero_and_is_rated_by_what_the_text_tells() -> None:
    """A wrong giving up costs its question; rates are over telling and silent readings apart."""
    readings = [
        Reading(answer="cat", given_up=False, golds=("cat",), tells=True),
        Reading(answer="", given_up=True, golds=("dog",), tells=True, forced="dog"),
        Reading(answer="", given_up=True, golds=("cow",), tells=False, forced="pig"),
        Reading(answer="", given_up=True, golds=(), tells=False),
        Reading(answer="sun", given_up=False, golds=(), tells=False),
    ]
    scores = score_readings(readings)
    assert (scores.n, scores.num_silent) == (5, 3)
    assert scores.f1 == pytest.approx(33.33)
    assert scores.forced_f1 == pytest.approx(66.67)
    assert scores.gave_up_wrongly == 50
    assert scores.gave_up_rightly == pytest.approx(66.67)
    assert score_readings([]).f1 is None


def test_the_bootstrap_interval_holds_the_mean_and_repeats() -> None:
    """The same seed gives the same interval, and the mean lies inside."""
    values = [0.0, 1.0, 0.5, 0.5] * 25
    low, high = bootstrap_interval(values, seed=3)
    assert low < 50 < high
    assert (low, high) == bootstrap_interval(values, seed=3)
