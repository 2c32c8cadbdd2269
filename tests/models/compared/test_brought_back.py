"""What was evicted comes back by the question's words, and is counted beside."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from models.compared import method
from models.compared.brought_back import BroughtBack, best_chunks
from models.compared.keys import KeyNorm
from models.compared.trace import read_exactly
from tests.models import tiny

RARE = [60, 61, 62, 63]


def context() -> list[int]:
    """Two letters for ever, a rare run in the middle."""
    plain = [5, 6] * 100
    return [1, *plain[:100], *RARE, *plain[100:]]


def test_the_chunk_with_the_question_s_rare_words_comes_back_at_its_place() -> None:
    """In every layer and head, beside all that the cache kept; its bytes are those fetched."""
    backbone = tiny.backbone()
    trace = read_exactly(backbone, context())
    ready = BroughtBack(inner=KeyNorm(), chunk=16, chunks=1).prepare(backbone)
    memory = ready.memory(trace, trace.full_bytes // 5)
    assert memory.nbytes <= trace.full_bytes // 5
    asked = memory.for_question([62, 63, 5])
    first = context().index(RARE[2]) // 16 * 16
    for before, after in zip(memory.held, asked.held, strict=True):
        for head, places in enumerate(after.places):
            wanted = set(before.places[head].tolist()) | set(range(first, first + 16))
            assert set(places.tolist()) == wanted
    assert memory.fetched_bytes == asked.nbytes - memory.nbytes > 0


def test_bringing_everything_back_is_the_full_cache() -> None:
    """As many chunks as there are: the logits of the exact context."""
    backbone = tiny.backbone()
    ids = [1, *tiny.ids(120)]
    trace = read_exactly(backbone, ids)
    ready = BroughtBack(inner=KeyNorm(), chunk=8, chunks=100).prepare(backbone)
    question = sorted(set(ids))
    found = backbone.logits(tiny.ids(7), ready.memory(trace, trace.full_bytes // 4).for_question(question))
    exact = backbone.logits(tiny.ids(7), method("full").memory(trace, trace.full_bytes).as_cache())
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


def test_words_that_every_chunk_has_bring_less_than_a_rare_one() -> None:
    """Best first; chunks that share nothing are not fetched."""
    chunks = [Counter([1, 1, 1, 2]), Counter([1, 2, 3, 4]), Counter([1, 5, 5, 5]), Counter([6])]
    assert best_chunks(chunks, [1, 3], 4)[0] == 1
    assert 3 not in best_chunks(chunks, [1, 3], 4)
    assert best_chunks(chunks, [9], 4) == []
    assert len(best_chunks(chunks, [1, 3], 2)) == 2


@pytest.mark.parametrize("wrong", [{"chunk": 0}, {"chunks": 0}])
def test_wrong_settings_are_named(wrong: dict[str, int]) -> None:
    """Given and allowed."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: given 0; allowed: 1 or more"):
        BroughtBack(**wrong)
