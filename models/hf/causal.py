"""Causal attention of many tokens over what came before and over themselves, without a mask of all by all.

A step of 8,192 tokens over 11,000 keys has a mask of 370 million entries for four heads to a key head, written,
widened and read again in every full-attention layer. Here the tokens before are read without a mask, the step's own
causally, both by the library's fused kernel, and the two are joined by their log-sums (as in 2205.14135). The first
call checks it against `attend`; where the kernel is absent or wrong the masked way is taken, and that is said once.
"""

from __future__ import annotations

import structlog
import torch
from torch import Tensor

LEAST_TOKENS = 1024  # a smaller step's mask is cheap

_log = structlog.get_logger()
_found_good: dict[tuple[str, torch.dtype, int], bool] = {}


def can_serve(query: Tensor) -> bool:
    """Whether a step of this many queries `[1, heads, T, d]` is worth it, and nothing spoke against it yet."""
    if query.shape[2] < LEAST_TOKENS or not query.is_cuda or torch.is_grad_enabled():
        return False
    return query.dtype != torch.float32 and _found_good.get(_kind(query), True)


def attend_causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention `[1, heads, T, d]` of the last `T` tokens of `key, value [1, H, n, d]`, each up to itself."""
    groups, before = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    own, own_sum = _fused(query, keys[:, :, before:], values[:, :, before:], True, scaling)
    if before == 0:
        return own
    past, past_sum = _fused(query, keys[:, :, :before], values[:, :, :before], False, scaling)
    whole = torch.logaddexp(own_sum, past_sum)
    out = own * (own_sum - whole).exp()[..., None] + past * (past_sum - whole).exp()[..., None]
    return out.to(query.dtype)


def checked(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, masked: Tensor | None
) -> Tensor | None:
    """`attend_causal`, or None where it is not to be had; `masked` is the right answer of a kind's first call."""
    kind = _kind(query)
    try:
        out = attend_causal(query, key, value, scaling)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _found_good[kind] = False
        _log.warning("fused_attention_absent", error=f"{type(error).__name__}: {error}"[:200])
        return None
    if masked is not None:
        error_share = float((out.float() - masked.float()).norm() / masked.float().norm().clamp_min(1e-12))
        _found_good[kind] = error_share <= 0.02
        if not _found_good[kind]:
            _log.warning("fused_attention_differs", relative_error=error_share, allowed=0.02)
            return None
    return out


def unchecked(query: Tensor) -> bool:
    """Whether this kind's first call is still to come."""
    return _kind(query) not in _found_good


def _kind(query: Tensor) -> tuple[str, torch.dtype, int]:
    return (str(query.device), query.dtype, query.shape[-1])


def _fused(
    query: Tensor, keys: Tensor, values: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of its weights' sum `[1, heads, T]`, in float32."""
    if query.is_cuda:
        found = torch.ops.aten._scaled_dot_product_flash_attention(
            query, keys, values, 0.0, causal, False, scale=scaling
        )
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, causal, scale=scaling
        )
    return found[0], found[1]
