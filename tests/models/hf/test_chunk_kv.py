"""Chunks encoded once and read at any place: agreement with the plain model, and refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.cache.rotating import CacheView
from models.hf.chunk_kv import encode_chunk, insert, view_with_chunks
from tests.models import tiny


def logits(view: CacheView, ids: list[int]) -> torch.Tensor:
    """Logits of a question behind a view."""
    out = tiny.backbone()._forward(ids, view, len(ids))
    assert out is not None
    return out


def test_a_chunk_at_its_own_place_is_a_prefill() -> None:
    """After <bos>: the logits of reading everything in one go, chunks longer than the sliding window included."""
    backbone, question = tiny.backbone(), tiny.ids(6, seed=4)
    for count in (5, 40):
        ids = tiny.ids(count, seed=count)
        view = view_with_chunks(backbone, None, [encode_chunk(backbone, ids)], len(question))
        plain = backbone.logits([1, *ids, *question])[-6:]
        torch.testing.assert_close(logits(view, question), plain, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [1, 77, 4_000])
def test_a_chunk_means_the_same_at_every_place(shift: int) -> None:
    """Nothing else is held: only distances count, so the question's logits do not move."""
    backbone, question = tiny.backbone(), tiny.ids(6, seed=4)
    chunk = encode_chunk(backbone, tiny.ids(9), after=())
    found = []
    for first in (0, shift):
        view = CacheView.empty(backbone.specs, 20)
        for at, layer in enumerate(view.views):
            layer._next_place = first
            layer.spec.rotary.reserve(first + 40)
            insert(layer, chunk.keys[at], chunk.values[at])
        found.append(logits(view, question))
    torch.testing.assert_close(found[0], found[1], atol=2e-4, rtol=1e-4)


def test_several_chunks_are_the_plain_model_under_a_block_mask() -> None:
    """Chunks do not see each other, the question sees all: transformers' own forward with that mask."""
    backbone, question = tiny.backbone(), tiny.ids(4, seed=9)
    texts = [tiny.ids(3, seed=1), tiny.ids(2, seed=2)]  # with the question within the sliding window of 12
    view = CacheView.empty(backbone.specs, 20)
    for chunk in (encode_chunk(backbone, ids, after=()) for ids in texts):
        for at, layer in enumerate(view.views):
            insert(layer, chunk.keys[at], chunk.values[at])
    ids = [*texts[0], *texts[1], *question]
    owner = torch.tensor([0] * 3 + [1] * 2 + [2] * 4)
    places = torch.arange(len(ids))
    seen = (places[:, None] >= places) & ((owner[:, None] == owner) | (owner[:, None] == 2))
    mask = torch.zeros(len(ids), len(ids)).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        plain = backbone.model(
            torch.tensor([ids]),
            attention_mask={"full_attention": mask, "sliding_attention": mask},
            position_ids=places[None],
            use_cache=False,
        ).logits[0, -4:]
    torch.testing.assert_close(logits(view, question), plain, atol=2e-4, rtol=1e-4)


def test_chunks_stand_behind_a_session_and_change_it_not() -> None:
    """The session's bytes stay; the answer does read the chunk; 16 bits are half the bytes."""
    backbone, question = tiny.backbone(), tiny.ids(4, seed=9)
    cache = backbone.new_cache(tiny.budgets())
    backbone.read(tiny.ids(64), cache)
    before = cache.to_bytes()
    chunk = encode_chunk(backbone, tiny.ids(9, seed=6))
    with_chunk = logits(view_with_chunks(backbone, cache, [chunk], 4), question)
    without = logits(view_with_chunks(backbone, cache, [], 4), question)
    assert cache.to_bytes() == before and not torch.allclose(with_chunk, without, atol=1e-3)
    torch.testing.assert_close(without, backbone.logits(question, cache), atol=2e-4, rtol=1e-4)
    half = chunk.to(dtype=torch.float16)
    assert 2 * half.nbytes == chunk.nbytes
    near = logits(view_with_chunks(backbone, cache, [half], 4), question)
    assert float((near - with_chunk).abs().max()) < 0.05


def test_what_does_not_belong_together_is_refused() -> None:
    """An empty chunk; another model's; pairs of another shape."""
    backbone = tiny.backbone()
    chunk = encode_chunk(backbone, tiny.ids(3))
    with pytest.raises(ValueError, match="the chunk is empty"):
        encode_chunk(backbone, [])
    with pytest.raises(ValueError, match="was encoded by other, this backbone is"):
        view_with_chunks(backbone, None, [dataclasses.replace(chunk, model="other")], 1)
    layer = CacheView.empty(backbone.specs, 8).views[0]
    with pytest.raises(ValueError, match=r"keys have shape \(2, 3, 8\); layer 0 takes \[2, 3, 16\]"):
        insert(layer, chunk.keys[0][..., :8], chunk.values[0])
