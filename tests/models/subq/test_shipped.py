"""The weights that ship: they load, and find and read keys that no window can see."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch

from models.shipped import SUBQ
from models.subq import SubqBackbone
from pipeline.newswire.simulate import generate
from pipeline.prepare.needle_stream import renamed
from pipeline.tasks.needle_grammar import Needle, NeedleGrammar, Split

pytestmark = pytest.mark.skipif(not (SUBQ / "config.json").is_file(), reason="models/weights/subq is absent")
OWNERS = ("Maple Ridge", "Pastel Harbour", "Copper Lane", "Maple Court", "Silver Gate", "Pastel Ridge",
          "Amber Field", "Grey Harbour")  # fmt: skip


def _text(chars: int) -> str:
    """News of our own; the same every time."""
    records = (event.record for event in islice(generate(3, 200), 200))
    return "\n".join(str(record["text"]) for record in records if record.get("text"))[:chars]


def _needles(split: Split) -> list[Needle]:
    rng, grammar = random.Random(1), NeedleGrammar()
    kind = grammar.kinds(split)[0]
    return [renamed(grammar.sample(rng, split, 5, kind=kind), owner) for owner in OWNERS]


@pytest.mark.parametrize(
    ("split", "asked", "least"),
    [("train", 4, 3), pytest.param("held_out", 8, 4, marks=pytest.mark.slow)],
    ids=["known wording", "held-out wording"],
)
def test_keys_are_read_out_of_sight(split: Split, asked: int, least: int) -> None:
    """Eight owners' keys of one kind, told 3,200 tokens and more before the questions; a window reaches 3,084.

    Five of the eight names share a word with another: harder than the cells of the result, where one of four does.
    """
    backbone, needles, text = SubqBackbone.load(SUBQ), _needles(split), _text(20_000)
    told = "".join(
        f"{text[600 * at : 600 * (at + 1)]}\n{needle.sentence}\n" for at, needle in enumerate(needles)
    )
    after = backbone.encode(text[600 * len(needles) :])[:3_200]
    assert len(after) == 3_200
    cache = backbone.new_cache()
    backbone.read([*backbone.bos, *backbone.encode(told), *after[:-1]], cache)
    # the upper half reads the window here, once, and not for every question
    cache.stream.logits(torch.tensor(after[-1:]))
    right = 0
    for needle in needles[:asked]:
        ids = backbone.encode(f"\n{needle.question} ")
        right += backbone.decode(backbone.generate(ids, cache, max_new_tokens=6)) == f"{needle.answer}."
    assert right >= least
