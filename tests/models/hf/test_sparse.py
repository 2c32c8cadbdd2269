"""Sparse retrieval attention as transformers' own switch: the plain model where all is chosen, the choice else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from models.hf.sparse import SparseConfig, choose, register_sparse, sparse_retrieval
from tests.models import tiny

EVERYTHING = SparseConfig(chunk=16, block=4, top_k=99)
FEW = SparseConfig(chunk=16, block=4, top_k=1, recent=1, first=1)


@contextmanager
def switched(model: Any, name: str) -> Iterator[Any]:
    """The model under another attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-4), (torch.bfloat16, 0.15)])
def test_choosing_all_chunks_is_the_plain_model(dtype: torch.dtype, most: float) -> None:
    """One pass, and token by token over transformers' own cache."""
    model = copy.deepcopy(tiny.backbone().model).to(dtype)
    ids = torch.tensor([[1, *tiny.ids(150)], [1, *tiny.ids(150, seed=1)]])
    with torch.no_grad():
        with switched(model, "sdpa"):
            plain = model(ids, use_cache=False).logits.float()
        with switched(model, register_sparse(EVERYTHING)):
            whole = model(ids, use_cache=False).logits.float()
            part = model(ids[:, :140], use_cache=True)
            rest = [
                model(ids[:, at : at + 1], past_key_values=part.past_key_values).logits[:, -1].float()
                for at in range(140, 151)
            ]
    assert float((whole - plain).abs().max()) < most
    assert float((torch.stack(rest, 1) - plain[:, 140:]).abs().max()) < most


def test_few_chunks_change_the_logits_but_not_the_beginning() -> None:
    """While everything fits the fixed chunks nothing is lost; later something is."""
    model, ids = tiny.backbone().model, torch.tensor([[1, *tiny.ids(150)]])
    with torch.no_grad():
        with switched(model, "sdpa"):
            plain = model(ids, use_cache=False).logits
        with switched(model, register_sparse(FEW)):
            few = model(ids, use_cache=False).logits
    torch.testing.assert_close(few[:, :32], plain[:, :32], atol=2e-4, rtol=1e-4)
    assert float((few - plain)[:, 100:].abs().max()) > 1e-2


@pytest.mark.parametrize("length", [1, 15, 16, 77, 160])
@pytest.mark.parametrize("steps", [1, 6, 160])
def test_what_is_chosen_is_the_best_and_never_later(length: int, steps: int) -> None:
    """Against plain loops: the first, the newest, the highest scored by the block's first query; none twice."""
    steps = min(steps, length)
    torch.manual_seed(length)
    query, key = torch.randn(2, steps, 4, 8), torch.randn(2, length, 2, 8)
    config = dataclasses.replace(FEW, top_k=2, recent=2)
    found = choose(query, key, config)
    for b in range(2):
        for block in range(-(-steps // 4)):
            first = length - steps + 4 * block
            last = min(first + 3, length - 1)
            for head in range(2):
                named = [c for c in found[b, block, head].tolist() if c >= 0]
                assert len(named) == len(set(named))
                always = {
                    c for c in range(last // 16 + 1) if c < config.first or c > first // 16 - config.recent
                }
                asked = query[b, 4 * block, 2 * head : 2 * head + 2].mean(0)
                others = [c for c in range(first // 16) if c not in always]
                others.sort(key=lambda c: -float(asked @ key[b, 16 * c : 16 * c + 16, head].mean(0)))
                assert set(named) == always | set(others[:2])


def test_what_it_cannot_read_is_refused() -> None:
    """Padding; capped logits; chunks that the kernel does not know."""
    model = tiny.backbone().model
    ids = torch.tensor([[1, *tiny.ids(20)]])
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    with (
        switched(model, register_sparse(EVERYTHING)),
        torch.no_grad(),
        pytest.raises(ValueError, match="hides more than later tokens"),
    ):
        model(ids, attention_mask=padded, use_cache=False)
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(ValueError, match=r"softcap 5\.0"):
        sparse_retrieval(None, q, q, q, None, config=FEW, softcap=5.0)
    with pytest.raises(ValueError, match="chunk: given 48; allowed: 16, 32, 64, 128"):
        SparseConfig(chunk=48)
    with pytest.raises(ValueError, match="recent: given 0"):
        SparseConfig(recent=0)
