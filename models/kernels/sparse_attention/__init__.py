"""Attention over chunks chosen for each block of queries, forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from models.kernels.dispatch import (
    Implementation,
    check_floating,
    check_head_dim,
    check_same,
    check_scale,
    use_fused,
)
from models.kernels.sparse_attention.inverse import InverseIndex, invert_indices
from models.kernels.sparse_attention.naive import sparse_attention_naive

__all__ = ["InverseIndex", "invert_indices", "sparse_attention", "sparse_attention_naive"]

CHUNK_SIZES = (16, 32, 64, 128)


def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    *,
    chunk_size: int = 64,
    block_q: int = 64,
    scale: float | None = None,
    chunk_weights: torch.Tensor | None = None,
    causal: bool = False,
    query_start: int = 0,
    return_lse: bool = False,
    deterministic: bool = True,
    inverse: InverseIndex | None = None,
    implementation: Implementation = "auto",
    tiles: dict[str, Any] | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend from each block of `block_q` queries to its chosen chunks; differentiable in q, k, v and weights.

    q [B, Nq, Hq, D]; k, v [B, Nk, Hkv, D] with Hq a multiple of Hkv; indices int32
    [B, ceil(Nq / block_q), Hkv or 1, K]: chunk c is tokens c * chunk_size up to the next chunk or the end, -1 is
    an empty slot. All tensors of one dtype (float32, bfloat16, float16; float64 by the naive version).

    Without `chunk_weights`: one softmax over all chosen tokens (as NSA, 2502.11089). With them
    ([B, num_q_blocks, Hkv or 1, K]): a softmax inside each chunk, the results summed with these weights (as GCA,
    2410.01651), gradient to the weights included. `causal` hides keys whose position exceeds
    `query_start` + the query's. Rows with nothing to see give zeros.

    `return_lse` adds lse, float32 [B, Nq, Hq] (differentiable; not with weights), for joining softmaxes.
    `deterministic=False` adds dk and dv up with atomics instead of walking the inverted list (`inverse`, built
    here unless given). Returns out [B, Nq, Hq, D].
    """
    _check(q, k, v, indices, chunk_size, block_q, chunk_weights, return_lse, query_start)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    check_scale(scale)
    options: dict[str, Any] = {
        "chunk_size": chunk_size,
        "block_q": block_q,
        "scale": scale,
        "chunk_weights": chunk_weights,
        "causal": causal,
        "query_start": query_start,
    }
    if use_fused(implementation, q):
        check_head_dim(q.shape[-1])
        if q.dtype == torch.float64:
            raise ValueError(
                "the fused kernel takes float32, bfloat16 or float16; use implementation='naive'"
            )
        from models.kernels.sparse_attention.fused import sparse_attention_fused

        out, lse = sparse_attention_fused(
            q,
            k,
            v,
            indices,
            **options,
            inverse=inverse,
            deterministic=deterministic,
            lse_used=return_lse,
            tiles=tiles,
        )
    else:
        out, lse = sparse_attention_naive(q, k, v, indices, **options)
    return (out, lse) if return_lse else out


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    chunk_size: int,
    block_q: int,
    chunk_weights: torch.Tensor | None,
    return_lse: bool,
    query_start: int,
) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"q, k, v are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; "
            "expected [B, Nq, Hq, D] and twice [B, Nk, Hkv, D]"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit k {tuple(k.shape)}: batches and head widths must be equal and "
            "the query heads a multiple of the key heads"
        )
    check_floating("q", q)
    check_same("k", k, "q", q)
    check_same("v", v, "q", q)
    if chunk_size not in CHUNK_SIZES:
        raise ValueError(f"chunk_size is {chunk_size}; allowed: {', '.join(map(str, CHUNK_SIZES))}")
    if block_q < 1 or query_start < 0:
        raise ValueError(f"block_q is {block_q}, query_start {query_start}; allowed: at least 1 and 0")
    expected = (q.shape[0], -(-q.shape[1] // block_q))
    for name, table in (("indices", indices), ("chunk_weights", chunk_weights)):
        if table is None:
            continue
        if table.ndim != 4 or table.shape[:2] != expected or table.shape[2] not in (1, k.shape[2]):
            raise ValueError(
                f"{name} is {tuple(table.shape)}; expected [{expected[0]}, {expected[1]} (blocks of {block_q} "
                f"queries), {k.shape[2]} or 1, K]"
            )
    if indices.dtype != torch.int32 or indices.device != q.device:
        raise ValueError(f"indices are {indices.dtype} on {indices.device}; expected int32 on {q.device}")
    if indices.shape[3] == 0:
        raise ValueError("indices name no slot (last dimension 0); give at least one, -1 where it is empty")
    if chunk_weights is not None and chunk_weights.shape[3] != indices.shape[3]:
        raise ValueError(
            f"chunk_weights have {chunk_weights.shape[3]} slots, indices {indices.shape[3]}; "
            "give one weight per slot"
        )
    if chunk_weights is not None and return_lse:
        raise ValueError("return_lse needs one softmax over all chosen tokens; drop it or chunk_weights")
