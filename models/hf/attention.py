"""Our attention, registered with transformers beside its own: `attn_implementation="dysra"`.

How keys reach the cache before rotary embedding without patching a model: the decoder is called with every
position id 0, so that its own rotary embedding turns nothing (cosine 1, sine 0, exactly, in every dtype). The
cache's `update` stores what it gets and returns keys turned by place; this function turns the queries. The
cache comes along as the keyword argument `memory`, which decoders hand through to their attention.
Without it (a plain forward) this is ordinary attention with transformers' own mask and rotary embedding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

from models.cache.layers import MemoryLayer
from models.hf import causal

NAME = "dysra"


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    memory: Cache | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of `query [1, heads, T, d]` over `key, value [1, H, n, d]`; returns `[1, T, heads, d]`."""
    if s_aux is not None:
        raise ValueError(
            "models with learned attention sinks (s_aux) are not supported by the dysra attention"
        )
    num_tokens, num_keys = query.shape[2], key.shape[2]
    if memory is not None:
        layer = memory.layers[module.layer_idx]
        assert isinstance(layer, MemoryLayer)
        rows = getattr(layer, "attend_rows", None)  # batches of unequal memories (models/hf/batch.py)
        if rows is not None:
            return rows(query, scaling or query.shape[-1] ** -0.5, softcap).transpose(1, 2).contiguous(), None
        layer.observe(query[0])
        places = torch.arange(layer.query_place, layer.query_place + num_tokens, device=query.device)
        query = layer.spec.rotary.turn(query, places)
        own = getattr(layer, "attend", None)  # layers whose pairs carry weights (models/compared/kept.py)
        if own is not None:
            out = own(query, key, value, scaling or query.shape[-1] ** -0.5, softcap)
            return out.transpose(1, 2).contiguous(), None
        if _in_windows(layer, num_tokens, softcap):
            assert layer.spec.window is not None
            out = attend_windows(query, key, value, layer.spec.window, scaling or query.shape[-1] ** -0.5)
            return out.transpose(1, 2).contiguous(), None
        if (
            layer.spec.window is None
            and layer.allowed is None
            and softcap is None
            and causal.can_serve(query)
        ):
            return _causally(query, key, value, scaling or query.shape[-1] ** -0.5), None
        attention_mask = causal_mask(num_tokens, num_keys, layer.spec.window, query.device)
        if layer.allowed is not None:
            allowed = layer.allowed[None, :, None]
            attention_mask = allowed if attention_mask is None else attention_mask & allowed
    elif attention_mask is None:
        attention_mask = causal_mask(num_tokens, num_keys, sliding_window, query.device)
    out = attend(query, key, value, attention_mask, scaling or query.shape[-1] ** -0.5, softcap)
    return out.transpose(1, 2).contiguous(), None


def _causally(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention `[1, T, heads, d]` of many tokens, by the fused kernels where these are right."""

    def masked() -> Tensor:
        return attend(
            query, key, value, causal_mask(query.shape[2], key.shape[2], None, query.device), scaling
        )

    known = masked() if causal.unchecked(query) else None
    out = causal.checked(query, key, value, scaling, known)
    if out is None:
        out = masked() if known is None else known
    return out.transpose(1, 2).contiguous()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention with grouped heads, `[B, heads, T, d]`; `mask` is True where a query may look."""
    batch, heads, num_tokens, dim = query.shape
    groups = heads // key.shape[1]
    if softcap is not None:
        keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.tanh(query @ keys.transpose(-1, -2) * (scaling / softcap)) * softcap
        if mask is not None:
            if mask.ndim == 4 and mask.shape[1] > 1:
                mask = mask.repeat_interleave(groups, 1)
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values
    # heads that share a key head become further queries of it: keys and values are not copied
    query = query.reshape(batch, key.shape[1], groups * num_tokens, dim)
    if mask is not None and groups > 1:
        mask = mask.repeat(*[1] * (mask.ndim - 2), groups, 1)
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, num_tokens, value.shape[-1])


def _in_windows(layer: MemoryLayer, num_tokens: int, softcap: float | None) -> bool:
    window = layer.spec.window
    return window is not None and num_tokens >= 2 * window and layer.allowed is None and softcap is None


def attend_windows(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float) -> Tensor:
    """Sliding-window attention `[1, heads, T, d]` of many queries, the last of the keys' tokens.

    Queries are cut into pieces of a window, each of which can see two windows of keys at most: the work grows with
    `T`, not with its square. Equal to `attend` under `causal_mask` with a window.
    """
    _, heads, num_tokens, dim = query.shape
    kv_heads, before = key.shape[1], key.shape[2] - num_tokens
    pieces = -(-num_tokens // window)
    behind = pieces * window - num_tokens
    front = window - min(before, window)
    skipped = max(0, before - window)
    keys, values = (
        functional.pad(x[0, :, skipped:], (0, 0, front, behind)).unfold(1, 2 * window, window)
        for x in (key, value)
    )  # [H, pieces, d, 2 window]
    queries = functional.pad(query[0], (0, 0, 0, behind)).reshape(kv_heads, -1, pieces, window, dim)
    queries = queries.permute(2, 0, 1, 3, 4).reshape(pieces, kv_heads, -1, dim)
    column, row = torch.arange(2 * window, device=query.device), torch.arange(window, device=query.device)
    mask = (column > row[:, None]) & (column <= row[:, None] + window)
    masks = mask.expand(pieces, 1, -1, -1)
    if front:
        first = (mask & (column >= front))[None, None]
        masks = torch.cat((first, masks[1:]))
    masks = masks.repeat(1, 1, heads // kv_heads, 1)
    out = functional.scaled_dot_product_attention(
        queries, keys.permute(1, 0, 3, 2), values.permute(1, 0, 3, 2), attn_mask=masks, scale=scaling
    )
    out = out.reshape(pieces, heads, window, dim).permute(1, 0, 2, 3).reshape(1, heads, pieces * window, dim)
    return out[:, :, :num_tokens]


@lru_cache(maxsize=16)
def causal_mask(num_tokens: int, num_keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """`[T, n]`, True where the query may look: the queries are the last `T` of the keys' tokens."""
    if num_tokens == 1 and (window is None or num_keys <= window):
        return None
    places = torch.arange(num_keys, device=device)
    queries = places[num_keys - num_tokens :, None]
    mask = places <= queries
    return mask if window is None else mask & (places > queries - window)


def register() -> None:
    """Make `dysra` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
