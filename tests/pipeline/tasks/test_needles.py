"""Haystacks of any length with one needle that is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.tasks.needle_grammar import NeedleGrammar
from pipeline.tasks.needles import NeedleConfig, needle_cases

TEXTS = [
    " ".join(f"In chapter {chapter} sentence {n} tells of a quiet road and an old mill." for n in range(120))
    for chapter in range(6)
]


def words(text: str) -> int:
    """Tokens of the tests: words."""
    return len(text.split())


@settings(max_examples=15, deadline=None)
@given(st.integers(200, 1500), st.integers(0, 4), st.integers(0, 99), st.sampled_from(["train", "held_out"]))
def test_context_has_its_length_and_one_answer(length: int, distractors: int, seed: int, split: str) -> None:
    """Never longer than asked, nearly full; the needle stands once, its distractors with it."""
    config = NeedleConfig(length=length, count=4, distractors=distractors, seed=seed, split=split)  # type: ignore[arg-type]
    for case in needle_cases(TEXTS, config, words):
        assert length - 120 < words(case.context) <= length
        assert case.context.split("\n").count(case.needle.sentence) == 1
        assert case.context.count(case.needle.answer) == 1
        kinds = NeedleGrammar().kinds(split, words=not case.needle.answer.isdigit())  # type: ignore[arg-type]
        assert case.needle.kind in kinds
        assert case.context.count(case.needle.kind) == 1 + distractors


def test_same_seed_gives_the_same_cases_and_depths_cover_the_context() -> None:
    """A file can be made again; needles stand everywhere, not only early or late."""
    config = NeedleConfig(length=600, count=20, seed=3)
    first, again = (list(needle_cases(TEXTS, config, words)) for _ in range(2))
    assert first == again
    depths = sorted(case.depth for case in first)
    assert depths[0] < 0.15 and depths[-1] > 0.85
    assert all(abs(depth - (at + 0.5) / 20) < 0.12 for at, depth in enumerate(depths))
    found = [case.context.split("\n").index(case.needle.sentence) for case in first]
    shown = [round(case.depth * case.context.count("\n")) for case in first]
    assert found == shown


def test_keys_take_their_lengths_in_turn() -> None:
    """Also words."""
    config = NeedleConfig(length=300, count=4, digits=(5, 16, None, 10))
    answers = [case.needle.answer for case in needle_cases(TEXTS, config, words)]
    assert [len(a) if a.isdigit() else len(a.split()) for a in answers] == [5, 16, 2, 10]


def test_too_little_text_is_told() -> None:
    """The message has both sizes."""
    with pytest.raises(UsageError, match=r"hold \d+ tokens, less than a context of \d+"):
        list(needle_cases(["Short. Text."], NeedleConfig(length=500, count=1), words))


@pytest.mark.parametrize(
    "wrong", [{"length": 5}, {"count": 0}, {"distractors": 5}, {"split": "x"}, {"digits": ()}]
)
def test_impossible_settings_are_named(wrong: dict[str, object]) -> None:
    """The field, what was given, what is allowed."""
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: given .*allowed"):
        NeedleConfig(**wrong)  # type: ignore[arg-type]
