"""The grammar of needles: distinct, split, and true to their answers."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tasks.needle_grammar import SPLITS, Needle, NeedleGrammar, _fill, num_wordings
from pipeline.tasks.needle_words import KINDS_OF_DIGITS, KINDS_OF_WORDS, NAMES, QUESTIONS, SENTENCES, WORDS

GRAMMAR = NeedleGrammar()
LENGTHS = st.sampled_from([5, 10, 16, None])
splits = st.sampled_from(sorted(SPLITS))
seeds = st.integers(0, 2**32)


def test_there_are_hundreds_of_wordings_and_no_two_alike() -> None:
    """Every pair of kind, sentence and question gives another text."""
    assert num_wordings("train") >= 2000
    assert num_wordings("held_out") >= 300
    for table in (SENTENCES, QUESTIONS):
        for named in (0, 1):
            texts = [pair[named] for part in table.values() for pair in part]
            assert len(set(texts)) == len(texts)
    nouns = [*itertools.chain(*KINDS_OF_DIGITS.values(), *KINDS_OF_WORDS.values())]
    assert len(set(nouns)) == len(nouns)
    assert len(set(NAMES)) == len(NAMES) and len(set(WORDS)) == len(WORDS)


def test_every_form_names_what_it_must() -> None:
    """A sentence tells the value and the kind; a question asks for the kind and never tells the value."""
    for pair in itertools.chain(*SENTENCES.values()):
        assert all("{value}" in text and "{noun}" in text for text in pair)
        assert "{name}" in pair[0] and "{name}" not in pair[1]
    for pair in itertools.chain(*QUESTIONS.values()):
        assert all("{noun}" in text and "{value}" not in text for text in pair)
        assert "{name}" in pair[0] and "{name}" not in pair[1]


def test_trained_and_held_out_parts_share_nothing() -> None:
    """Neither kinds nor forms of the held-out split are drawn for training."""
    for words in (False, True):
        assert not set(GRAMMAR.kinds("train", words=words)) & set(GRAMMAR.kinds("held_out", words=words))
    for forms in (GRAMMAR.sentence_forms, GRAMMAR.question_forms):
        train, held = forms("train"), forms("held_out")
        assert not {f.number for f in train} & {f.number for f in held}
        assert not {f.named for f in train} & {f.named for f in held}
    drawn: dict[str, list[Needle]] = {
        split: [GRAMMAR.sample(random.Random(seed), split) for seed in range(200)]  # type: ignore[arg-type]
        for split in ("train", "held_out")
    }
    for part in ("kind", "form"):
        sets = [{getattr(needle, part) for needle in needles} for needles in drawn.values()]
        assert not sets[0] & sets[1]


@given(seeds, splits, LENGTHS, st.booleans())
def test_the_answer_stands_in_the_sentence_and_not_in_the_question(
    seed: int, split: str, digits: int | None, named: bool
) -> None:
    """Also the owner's name, which sentence and question share."""
    needle = GRAMMAR.sample(random.Random(seed), split, digits, named=named)  # type: ignore[arg-type]
    assert needle.answer in needle.sentence
    assert needle.answer not in needle.question
    told = GRAMMAR.sentence_forms("train") + GRAMMAR.sentence_forms("held_out")
    opening = next(f for f in told if f.unnamed.startswith("{value}") or f.named.startswith("{value}"))
    value = GRAMMAR.sample(random.Random(seed), digits=None).answer
    assert value in _fill(opening, opening, "password", "", value).sentence
    if digits is not None:
        assert needle.answer.isdigit() and len(needle.answer) == digits
    if named:
        assert all(needle.name.lower() in text.lower() for text in (needle.sentence, needle.question))
    assert needle == GRAMMAR.sample(random.Random(seed), split, digits, named=named)  # type: ignore[arg-type]


@given(seeds, splits, LENGTHS, st.integers(0, 6))
def test_distractors_differ_in_owner_and_secret_only(
    seed: int, split: str, digits: int | None, count: int
) -> None:
    """Same kind and form; only the name tells which is asked for."""
    rng = random.Random(seed)
    needle = GRAMMAR.sample(rng, split, digits)  # type: ignore[arg-type]
    others = GRAMMAR.distractors(rng, needle, count)
    assert len({needle.name, *(o.name for o in others)}) == count + 1
    assert len({needle.answer, *(o.answer for o in others)}) == count + 1
    assert {(o.kind, o.form, len(o.answer.split())) for o in others} <= {
        (needle.kind, needle.form, len(needle.answer.split()))
    }
    assert all(o.question != needle.question for o in others)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"split": "test"}, "held_out_kinds"),
        ({"digits": 1}, "2 to 32"),
        ({"kind": "badge number"}, "access code"),
        ({"kind": "password"}, "access code"),
    ],
)
def test_what_there_is_not_is_named(wrong: dict[str, object], told: str) -> None:
    """The error says what was given and what there is."""
    with pytest.raises(ValueError, match=told) as error:
        GRAMMAR.sample(random.Random(0), **wrong)  # type: ignore[arg-type]
    assert str(next(iter(wrong.values()))) in str(error.value)


def test_a_needle_without_an_owner_has_no_distractor() -> None:
    """Two secrets that nobody owns could not be told apart."""
    with pytest.raises(ValueError, match="named=True"):
        GRAMMAR.distractor(random.Random(0), GRAMMAR.sample(random.Random(0), named=False))
