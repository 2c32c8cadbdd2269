"""Needles in training sequences: where they stand, what is asked, and that a batch is always the same."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.prepare.needle_stream import (
    QUESTION_FIELDS,
    NeedleStream,
    NeedleStreamConfig,
    needle_ids,
    question_ids,
    renamed,
)
from pipeline.tasks.needle_grammar import REAL, Needle, NeedleGrammar

CONFIG = NeedleStreamConfig(
    tokens=8_192, targets=1_024, phases=((2_048, 3), (4_096, 2)), longest=4_096, chunk=64, far=3
)


def _encode(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Characters as ids: every span can be read off."""
    return [ord(c) for c in text], [(at, at + 1) for at in range(len(text))]


def _stream(**changes: object) -> NeedleStream:
    text = np.full(20_000, ord("~"), np.uint16)
    return NeedleStream(text, _encode, replace(CONFIG, **changes), ("Alder", "Birch", "Cedar", "Dogwood"))  # type: ignore[arg-type]


def _text(ids: np.ndarray) -> str:
    return "".join(chr(i) for i in ids)


@pytest.mark.parametrize("number", [0, 3])
def test_questions_stand_where_the_batch_says(number: int) -> None:
    """The question ends on the first token of its chunk, the answer follows, the key stands in the gold chunks."""
    batch = _stream().batch(number)
    flat = batch.ids.reshape(-1)
    assert len(batch.questions) > 3
    for row in batch.questions:
        q = dict(zip(QUESTION_FIELDS, row.tolist(), strict=True))
        assert q["position"] == q["asking"] * 64
        answer = _text(flat[q["position"] + 1 : q["position"] + 1 + q["length"]])
        assert answer.endswith(".")
        gold = _text(flat[q["gold_first"] * 64 : (q["gold_last"] + 1) * 64])
        assert answer[:-1].strip() in gold
        assert q["first"] <= q["gold_first"] <= q["gold_last"] <= q["last"]
        assert q["asking"] - q["last"] >= 3
        per = batch.ids.shape[1] // 64
        assert q["asking"] // per == q["first"] // per


def test_targets_are_the_next_tokens_and_keys_are_none() -> None:
    """Every target is the token after its position; a needle's own key is never one, its answer always is."""
    stream = _stream(anonymous=0.0, word_keys=0.0, asked=1.0)
    batch = stream.batch(1)
    flat = batch.ids.reshape(-1)
    inner = (batch.at + 1) % batch.ids.shape[1] != 0
    assert np.array_equal(flat[batch.at[inner] + 1], batch.targets[inner])
    assert len(np.unique(batch.at)) == len(batch.at) == 1_024
    digits = (batch.targets >= ord("0")) & (batch.targets <= ord("9"))
    assert digits.any() and np.array_equal(digits, digits & batch.is_answer)
    told = sum(int(row[7]) for row in batch.questions)
    assert batch.is_answer.sum() == told


def test_batch_depends_on_seed_and_number_alone() -> None:
    """A run goes on where it was ended: batch 4 is the same whether or not others were made before."""
    first, second = _stream(), _stream()
    first.batch(0)
    for name in ("ids", "at", "targets", "is_answer", "questions", "anonymous"):
        assert np.array_equal(getattr(first.batch(4), name), getattr(second.batch(4), name))
    assert not np.array_equal(first.batch(4).ids, _stream(seed=1).batch(4).ids)


def test_phases_give_their_lengths() -> None:
    """Sequences are as long as their phase says, and all are used up in order."""
    stream = _stream(longer=0.0)
    assert [stream.batch(n).ids.shape for n in range(5)] == [(4, 2_048)] * 3 + [(2, 4_096)] * 2
    assert CONFIG.batches == 5


def test_ownerless_needles_are_marked() -> None:
    """Chunks of an ownerless needle and of its question are known, so that they are no negatives elsewhere."""
    batch = _stream(anonymous=1.0).batch(0)
    rows = [dict(zip(QUESTION_FIELDS, row.tolist(), strict=True)) for row in batch.questions]
    owned = [q for q in rows if not q["anonymous"]]
    ownerless = [q for q in rows if q["anonymous"]]
    assert ownerless and owned
    for q in ownerless:
        assert batch.anonymous[q["first"] : q["last"] + 1].all() and batch.anonymous[q["asking"]]


def test_key_and_answer_are_found_by_their_tokens() -> None:
    """Where the key stands in its sentence, and where the question ends, for digits and for words."""
    rng, grammar = random.Random(0), NeedleGrammar()
    for digits in (5, 16, None):
        for _ in range(50):
            needle = renamed(grammar.sample(rng, "held_out", digits), "Alder Birch")
            assert "Alder Birch" in needle.sentence and "Alder Birch" in needle.question
            ids, (first, last) = needle_ids(_encode, needle, rng)
            assert _text(np.array(ids[first:last])) == needle.answer
            asked, answer = question_ids(_encode, needle)
            assert _text(np.array(answer)) == f"{needle.answer}."
            assert _text(np.array(asked)).strip() == needle.question.strip()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": ((1_000, 2),)}, r"phases: given \(1000, 2\); allowed: lengths of whole chunks of 64"),
        ({"phases": ((512, 2),), "far": 6}, "phases: given length 512; allowed: 768 or more"),
        ({"targets": 0}, "targets: given 0; allowed: 1 to tokens"),
        ({"asked": 1.5}, "asked: given 1.5; allowed: 0 to 1"),
        ({"digits": (40,)}, r"digits: given \(40,\)"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    """The error says the field, what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_real_questions_stand_beside_made_ones() -> None:
    """A needle of a real question is told and asked in its own words, and is wrong for no other sequence."""
    real = Needle("Tarn: The mill was built in 1871.", "When was the mill built?", "1871", REAL, "nq", "q1")
    text = np.full(20_000, ord("~"), np.uint16)
    stream = NeedleStream(
        text, _encode, replace(CONFIG, real=1.0, anonymous=0.0, asked=1.0), ("Alder",), real=[real]
    )
    batch = stream.batch(0)
    assert len(batch.questions)
    flat = batch.ids.reshape(-1)
    for row in batch.questions:
        q = dict(zip(QUESTION_FIELDS, row.tolist(), strict=True))
        assert _text(flat[q["position"] + 1 : q["position"] + 1 + q["length"]]) == "1871."
        assert _text(flat[: q["position"] + 1]).endswith("\nWhen was the mill built? ")
        assert q["anonymous"] == 1
        assert batch.anonymous[q["first"] : q["last"] + 1].all()


def test_twins_are_worded_as_another_needle_of_the_sequence() -> None:
    """All needles of a sequence of twins share kind and sentence; owners and keys differ."""
    names = tuple(f"N{at}ame" for at in range(50))
    text = np.full(20_000, ord("~"), np.uint16)
    stream = NeedleStream(text, _encode, replace(CONFIG, twins=1.0, anonymous=0.0, asked=1.0), names)
    batch = stream.batch(0)
    per = batch.ids.shape[1]
    chunks = per // 64
    for row in range(len(batch.ids)):
        told = [
            (_text(batch.ids[row]), q)
            for q in (dict(zip(QUESTION_FIELDS, each.tolist(), strict=True)) for each in batch.questions)
            if q["asking"] // chunks == row
        ]
        wordings, keys = set(), set()
        for whole, q in told:
            at = q["position"] - row * per
            key = whole[at + 1 : at + q["length"]].strip()
            place = whole.index(key)
            keys.add(key)
            wordings.add(re.sub(r"N\d+ame N\d+ame", "@", whole[:place].rsplit("~", 1)[-1]).strip())
        assert len(keys) == len(told)
        assert len(wordings) <= 1, wordings
    assert len(batch.questions) > 4


def _sharing(twins_alike: float) -> tuple[float, float]:
    """Of sequences of five needles: the share of twins, and of twins that share their elder's word of the name."""
    names = tuple(f"N{at}ame" for at in range(400))
    config = replace(CONFIG, twins=0.5, twins_alike=twins_alike, alike=0.0)
    stream = NeedleStream(np.full(20_000, ord("~"), np.uint16), _encode, config, names)
    rng, twins, sharing, needles = random.Random(1), 0, 0, 0
    for _ in range(200):
        taken: list[Needle] = []
        for _ in range(5):
            needle = stream._named(rng, taken)
            worded = _worded(needle)
            elders = [other for other in taken if _worded(other) == worded]
            needles += bool(taken)
            twins += bool(elders)
            words = needle.name.split(" ")
            sharing += any(
                own == its for other in elders for own, its in zip(words, other.name.split(" "), strict=True)
            )
            taken.append(needle)
    return twins / needles, sharing / max(twins, 1)


def _worded(needle: Needle) -> str:
    return needle.sentence.replace(needle.answer, "#").replace(needle.name, "@")


def test_twins_own_names_that_share_a_word_where_that_is_asked_for() -> None:
    """Half of the needles are twins; all of these share a word with an elder of their wording, or half, or none."""
    for wanted in (0.0, 0.5, 1.0):
        twins, sharing = _sharing(wanted)
        assert twins == pytest.approx(0.5, abs=0.06)
        assert sharing == pytest.approx(wanted, abs=0.06), wanted


def test_batches_of_before_are_the_same() -> None:
    """An option that is off draws nothing: what earlier runs were trained on is what a run is trained on."""
    batch = _stream(twins=0.5, alike=0.4).batch(0)
    assert (int(batch.ids.sum()), len(batch.questions)) == (917_566, 20)
