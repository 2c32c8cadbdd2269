"""Sparse retrieval attention for any transformers decoder, registered beside its own: nothing is patched.

    name = register_sparse(SparseConfig(top_k=16))
    model.set_attn_implementation(name)      # transformers' own switch; "sdpa" brings the plain one back

In full-attention layers a block of queries reads the first chunk, the newest chunks, and the `top_k` others whose
landmark (mean key, turned) its first query scores highest, in one softmax over their tokens (models/kernels). The
first query alone chooses, so that no later token decides what an earlier one reads. Sliding-window layers are read
as ever. Where all chunks are chosen the result is the plain model's (docs/kernels.md states the difference).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from models.hf.attention import attend, causal_mask
from models.kernels.dispatch import HEAD_DIMS
from models.kernels.sparse_attention import CHUNK_SIZES, sparse_attention


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig:
    """What a block of queries reads."""

    chunk: int = field(
        default=64, metadata={"help": f"tokens of a chunk: {', '.join(map(str, CHUNK_SIZES))}"}
    )
    block: int = field(default=16, metadata={"help": "queries that choose together"})
    top_k: int = field(default=16, metadata={"help": "chunks chosen by score"})
    recent: int = field(default=8, metadata={"help": "newest chunks that are always read"})
    first: int = field(default=1, metadata={"help": "first chunks that are always read (attention sinks)"})

    def __post_init__(self) -> None:
        if self.chunk not in CHUNK_SIZES:
            raise ValueError(f"chunk: given {self.chunk}; allowed: {', '.join(map(str, CHUNK_SIZES))}")
        for name, least in (("block", 1), ("top_k", 0), ("recent", 1), ("first", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: given {value!r}; allowed: whole numbers of at least {least}")

    @property
    def name(self) -> str:
        """What `attn_implementation` is called."""
        return f"dysra_sparse_c{self.chunk}_b{self.block}_k{self.top_k}_r{self.recent}_f{self.first}"


def register_sparse(config: SparseConfig | None = None) -> str:
    """Make the attention known to transformers and return its name; calling it again changes nothing."""
    config = config or SparseConfig()
    AttentionInterface.register(config.name, partial(sparse_retrieval, config=config))
    AttentionMaskInterface.register(config.name, sdpa_mask)
    return config.name


def sparse_retrieval(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    config: SparseConfig,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of `query [B, heads, T, d]` over `key, value [B, H, n, d]`; returns `[B, T, heads, d]`."""
    num_tokens, num_keys = query.shape[2], key.shape[2]
    scaling = scaling or query.shape[-1] ** -0.5
    window = sliding_window or getattr(module, "sliding_window", None)
    if window is not None:
        mask = attention_mask
        if mask is None:
            mask = causal_mask(num_tokens, num_keys, window, query.device)
        out = attend(query, key, value, mask, scaling, softcap)
        return out.transpose(1, 2).contiguous(), None
    if softcap is not None:
        raise ValueError(
            f"the layer caps its logits (softcap {softcap}); sparse retrieval reads without a cap: use eager"
        )
    _check_mask(attention_mask, num_tokens, num_keys)
    q, k, v = (each.transpose(1, 2).contiguous() for each in (query, key, value))
    indices = choose(q, k, config)
    fits = query.shape[-1] in HEAD_DIMS and query.is_cuda
    read = sparse_attention(
        q,
        k,
        v,
        indices,
        chunk_size=config.chunk,
        block_q=config.block,
        scale=scaling,
        causal=True,
        query_start=num_keys - num_tokens,
        implementation="auto" if fits else "naive",
    )
    assert isinstance(read, Tensor)
    return read, None


@torch.no_grad()
def choose(query: Tensor, key: Tensor, config: SparseConfig) -> Tensor:
    """Chunks that each block of queries reads, int32 `[B, blocks, H, K]`, -1 where a slot is empty.

    `query [B, T, heads, d]` are the last T of the tokens of `key [B, n, H, d]`. Chosen chunks are named once.
    """
    batch, num_tokens = query.shape[:2]
    num_keys, kv_heads = key.shape[1], key.shape[2]
    blocks, chunks = -(-num_tokens // config.block), -(-num_keys // config.chunk)
    start = num_keys - num_tokens
    firsts = start + torch.arange(blocks, device=query.device) * config.block
    own_first = firsts // config.chunk
    own_last = (firsts + config.block - 1).clamp_max(num_keys - 1) // config.chunk
    number = torch.arange(chunks, device=query.device)
    fixed = (number < config.first) | (number > own_first[:, None] - config.recent)
    fixed = fixed & (number <= own_last[:, None])  # [blocks, chunks]
    candidates = ~fixed & (number < own_first[:, None])
    widest = int(fixed.sum(1).max())
    slots = min(config.top_k, int(candidates.sum(1).max()))
    whole = num_keys // config.chunk * config.chunk
    # [B, whole chunks, H, d] and [B, blocks, H, d]
    landmarks = torch.unflatten(key[:, :whole].float(), 1, (whole // config.chunk, config.chunk)).mean(2)
    asked = torch.unflatten(query[:, :: config.block].float(), 2, (kv_heads, -1)).mean(3)
    marked = torch.full((batch, blocks, kv_heads, chunks), float("-inf"), device=query.device)
    scores = torch.einsum("bqhd,bchd->bqhc", asked, landmarks)
    marked[..., : scores.shape[-1]] = scores
    marked = marked.masked_fill(~candidates[:, None], float("-inf"))
    best = marked.topk(slots, -1)
    chosen = best.indices.masked_fill(best.values == float("-inf"), -1)
    order = fixed.int().argsort(dim=1, descending=True, stable=True)[:, :widest]
    always = order.masked_fill(torch.arange(widest, device=query.device) >= fixed.sum(1, keepdim=True), -1)
    always = always[None, :, None].expand(batch, -1, kv_heads, -1)
    return torch.cat((always, chosen), -1).to(torch.int32)


def _check_mask(mask: Tensor | None, num_tokens: int, num_keys: int) -> None:
    """Raise ValueError unless the mask is the causal one: padding would be read as text."""
    if mask is None:
        return
    plain = causal_mask(num_tokens, num_keys, None, mask.device)
    seen = mask if mask.dtype == torch.bool else mask == 0
    if not bool((seen if plain is None else seen == plain).all()):
        raise ValueError(
            "the attention mask hides more than later tokens (padding, packed texts); sparse retrieval reads texts "
            "without padding: give them one by one or of equal length"
        )
