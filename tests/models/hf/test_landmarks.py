"""A past by landmarks: what passes is filed once, bytes stay, and one list holds past and store."""

from __future__ import annotations

import pytest
import torch

from models.hf.landmark_head import LandmarkHead, LandmarkHeadConfig, hidden_of, new_head
from models.hf.landmarks import Found, Past, PastConfig
from tests.models import tiny


def past(**changes: int) -> Past:
    """A past of chunks of 8 tokens."""
    torch.manual_seed(1)
    return Past(tiny.backbone(), new_head(tiny.backbone(), landmark=8), PastConfig(chunk=8, **changes))


@pytest.mark.parametrize("pieces", [[64], [3, 5, 40, 16], [1] * 64])
def test_chunks_are_filed_however_the_text_is_split(pieces: list[int]) -> None:
    """Landmarks are those of the hidden states of one reading; pending tokens wait."""
    backbone, ids, made = tiny.backbone(), [1, *tiny.ids(63)], past()
    cache = backbone.new_cache(tiny.budgets(ring=96, compressor="drop"))  # nothing evicted: one exact reading
    at = 0
    for count in pieces:
        made.read(ids[at : at + count], cache)
        at += count
    assert made.num_chunks == 8 and made.seen == cache.tokens_computed
    hidden = hidden_of(backbone, ids, made.head.config.layer)
    wanted = made.head(hidden, torch.arange(0, 65, 8))
    torch.testing.assert_close(made.landmarks[:8].float(), wanted, atol=2e-3, rtol=1e-2)


def test_the_oldest_leave_and_bytes_stay() -> None:
    """Numbers go on counting from the stream's beginning."""
    backbone, made = tiny.backbone(), past(most_chunks=3)
    cache, size = backbone.new_cache(tiny.budgets()), made.nbytes
    made.read(tiny.ids(80), cache)
    assert made.num_chunks == 10 and made.nbytes == size
    query = torch.randn(8)
    found = made.search(query, 5)
    assert sorted(one.number for one in found) == [7, 8, 9]
    for one in found:
        assert one.score == pytest.approx(float(made.landmarks[one.number % 3].float() @ query), abs=1e-5)


def test_past_and_store_are_one_list() -> None:
    """The best of both, best first, each known by its source."""
    backbone, made = tiny.backbone(), past()
    cache = backbone.new_cache(tiny.budgets())
    made.read(tiny.ids(64), cache)
    texts = [tiny.ids(9, seed=n) for n in range(5)]
    store = made.vectors(texts)
    torch.testing.assert_close(store.norm(dim=1), torch.ones(5))
    query = made.question(tiny.ids(4, seed=3), cache)
    found = made.search(query, 6, {"store": store})
    scores = torch.cat((made.landmarks[:8].float() @ query, store @ query))
    assert [one.score for one in found] == pytest.approx(scores.sort(descending=True).values[:6].tolist())
    assert {one.source for one in found} <= {"past", "store"}
    everything = made.search(query, 99, {"store": store})
    assert sorted(one.number for one in everything if one.source == "store") == list(range(5))
    assert isinstance(everything[0], Found)


def test_wrong_heads_and_widths_name_both_sides() -> None:
    """A head of another width; a store of another head."""
    head = LandmarkHead(LandmarkHeadConfig(width=31, layer=1, landmark=8))
    with pytest.raises(ValueError, match=r"reads layer 1 of width 31; .* has 4 layers of width 32"):
        Past(tiny.backbone(), head)
    with pytest.raises(
        ValueError, match=r"landmarks of store have shape \(2, 7\); the head makes \[chunks, 8\]"
    ):
        past().search(torch.randn(8), 1, {"store": torch.randn(2, 7)})
    with pytest.raises(ValueError, match="chunk: given 0"):
        PastConfig(chunk=0)
