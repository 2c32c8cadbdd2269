"""Framed wordings: as many as the text has sentences, true to their answers, and none of them a held-out one."""

from __future__ import annotations

import random

import pytest

from pipeline.prepare.needle_stream import renamed
from pipeline.tasks.needle_frames import FramedGrammar, frames_of, held_out_runs, plain_words
from pipeline.tasks.needle_grammar import Needle, NeedleGrammar
from pipeline.tasks.needle_words import KINDS_OF_DIGITS, KINDS_OF_WORDS

WORDS = ("river", "stone", "walked", "over", "green", "hills", "while", "nobody", "answered", "from", "the", "tall",
         "windows", "again", "slowly", "they", "sang")  # fmt: skip


def _text(seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 30))).capitalize() + "." for _ in range(300))


def _drawn(count: int, share: float = 1.0) -> list[Needle]:
    grammar, rng = FramedGrammar(list(frames_of([_text()])), share), random.Random(3)
    return [
        grammar.sample(rng, digits=rng.choice([5, 16, None]), named=rng.random() < 0.9) for _ in range(count)
    ]


def test_frames_hold_nothing_that_is_held_out() -> None:
    """No digits, no held-out kind, no three words in a row of a held-out form; short runs are left out."""
    held = "Whoever deals with rivers needs nothing. It was a passport number then. He paid 40 crowns. Too short."
    assert list(frames_of([held])) == []
    found = list(frames_of([held + " " + _text()]))
    assert len(found) > 200
    runs = held_out_runs()
    assert len(runs) > 40
    for frame in found:
        words = plain_words(frame)
        assert 3 <= len(frame.split(" ")) <= 12
        assert not {tuple(words[at : at + 3]) for at in range(len(words) - 2)} & runs


def test_hardly_two_needles_are_worded_alike() -> None:
    """Without kind and secret, nearly all of 2,000 needles are told and asked in a way of their own."""
    told, asked = set(), set()
    for needle in _drawn(2_000):
        told.add(needle.sentence.replace(needle.answer, "#").replace(needle.kind, "@"))
        asked.add(needle.question.replace(needle.kind, "@"))
    assert len(told) > 1_900 and len(asked) > 1_700


def test_the_answer_stands_in_the_sentence_and_never_in_the_question() -> None:
    """Once in the sentence; owner and kind in both; and so too with another owner's name."""
    for needle in _drawn(1_000):
        for each in [needle, renamed(needle, "Maple Ridge")] if needle.name else [needle]:
            assert each.sentence.count(each.answer) == 1
            assert each.answer not in each.question
            for text in (each.sentence, each.question):
                assert each.name.lower() in text.lower() and each.kind.lower() in text.lower()
                assert "{" not in text
    kinds = {needle.kind for needle in _drawn(3_000)}
    assert not kinds & {*KINDS_OF_DIGITS["held_out"], *KINDS_OF_WORDS["held_out"]}
    assert len(kinds) > 200


def test_other_splits_are_the_plain_grammars_and_shares_are_kept() -> None:
    """Held-out needles are those that anybody else's test draws; without a share the wordings are composed ones."""
    grammar = FramedGrammar(list(frames_of([_text()])))
    for split in ("held_out", "held_out_kinds", "held_out_forms"):
        ours = [grammar.sample(random.Random(at), split) for at in range(20)]  # type: ignore[arg-type]
        assert ours == [NeedleGrammar().sample(random.Random(at), split) for at in range(20)]  # type: ignore[arg-type]
    framed = [
        needle for needle in _drawn(500, 0.0) if "river" in needle.sentence.replace(needle.kind, "").lower()
    ]
    assert framed == []


def test_too_few_frames_and_wrong_shares_are_named() -> None:
    """What was given and what is allowed."""
    with pytest.raises(ValueError, match="frames: given 1; allowed: 2 or more"):
        FramedGrammar(["one frame only"])
    with pytest.raises(ValueError, match=r"share: given 1.5; allowed: 0 to 1"):
        FramedGrammar(["one frame only", "and another one"], share=1.5)
