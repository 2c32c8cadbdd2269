"""Composed wordings: many, true to their answers, and none of them a held-out one."""

from __future__ import annotations

import random
import re

import pytest

from pipeline.prepare.needle_stream import renamed
from pipeline.tasks.needle_composition import ASKS, PATTERNS, ComposedGrammar, compose
from pipeline.tasks.needle_grammar import Needle, NeedleGrammar
from pipeline.tasks.needle_words import KINDS_OF_DIGITS, KINDS_OF_WORDS, QUESTIONS, SENTENCES

GRAMMAR = ComposedGrammar(share=1.0)


def _drawn(count: int) -> list[Needle]:
    rng = random.Random(7)
    return [
        GRAMMAR.sample(rng, digits=rng.choice([5, 10, 16, None]), named=rng.random() < 0.9)
        for _ in range(count)
    ]


def test_thousands_of_wordings_are_drawn() -> None:
    """Hardly two of 4,000 needles are worded alike, whatever their kinds and secrets."""
    told, asked = set(), set()
    for needle in _drawn(4_000):
        told.add(needle.sentence.replace(needle.answer, "#").replace(needle.kind, "@"))
        asked.add(needle.question.replace(needle.kind, "@"))
    assert len(told) > 3_000
    assert len(asked) > 1_000


def test_the_answer_stands_in_the_sentence_and_never_in_the_question() -> None:
    """Once in the sentence; owner and kind in both; and so too with another owner's name."""
    for needle in _drawn(1_000):
        for each in [needle, renamed(needle, "Maple Ridge")] if needle.name else [needle]:
            assert each.sentence.count(each.answer) == 1
            assert each.answer not in each.question
            assert each.name in each.sentence and each.name in each.question
            assert (
                needle.kind.lower() in each.sentence.lower() and needle.kind.lower() in each.question.lower()
            )
            assert "{" not in each.sentence + each.question


def test_no_wording_is_a_held_out_one() -> None:
    """Neither the kinds nor three words in a row of any held-out form are drawn for training."""
    runs = set()
    for table in (SENTENCES, QUESTIONS):
        for pair in table["held_out"]:
            for literal in (part for form in pair for part in re.split(r"\{\w+\}", form)):
                words = re.findall(r"[a-z]+", literal.lower())
                runs |= {tuple(words[at : at + 3]) for at in range(len(words) - 2)}
    assert len(runs) > 40
    for needle in _drawn(6_000):
        for text in (needle.sentence, needle.question):
            words = re.findall(r"[a-z]+|#", text.lower().replace(needle.kind.lower(), "#"))
            found = {tuple(words[at : at + 3]) for at in range(len(words) - 2)} & runs
            assert not found, (found, text)
    kinds = {needle.kind for needle in _drawn(6_000)}
    assert not kinds & {*KINDS_OF_DIGITS["held_out"], *KINDS_OF_WORDS["held_out"]}


def test_other_splits_are_the_plain_grammars() -> None:
    """Held-out needles are those that anybody else's test draws."""
    for split in ("held_out", "held_out_kinds", "held_out_forms"):
        ours = [GRAMMAR.sample(random.Random(at), split) for at in range(20)]  # type: ignore[arg-type]
        assert ours == [NeedleGrammar().sample(random.Random(at), split) for at in range(20)]  # type: ignore[arg-type]


def test_every_pattern_can_be_filled() -> None:
    """No pattern names a word that the composer does not know."""
    rng = random.Random(0)
    for _ in range(30 * max(len(PATTERNS), len(ASKS))):
        compose(rng, "code", 5)


def test_wrong_shares_are_named() -> None:
    """What was given and what is allowed."""
    with pytest.raises(ValueError, match=r"share: given 1.5; allowed: 0 to 1"):
        ComposedGrammar(share=1.5)
