"""Launches the forward kernels of sparse attention and joins both passes to autograd."""

from __future__ import annotations

import math
from typing import Any

import torch

from models.kernels.dispatch import last_contiguous
from models.kernels.sparse_attention.forward import forward_kernel
from models.kernels.sparse_attention.inverse import InverseIndex
from models.kernels.sparse_attention.launch_backward import launch_backward
from models.kernels.sparse_attention.launching import (
    LOG2E,
    chosen_tiles,
    constants,
    descriptor,
    even,
    form_for,
    hopper_fits,
    strides,
)
from models.kernels.sparse_attention.tuning import Tiles


class _SparseAttention(torch.autograd.Function):
    """Forward and backward over (q, k, v, weights); everything else is constant."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        weights: torch.Tensor | None,
        indices: torch.Tensor,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = launch_forward(q, k, v, weights, indices, options)
        ctx.save_for_backward(q, k, v, weights, indices, out, lse)
        ctx.options = options
        return out, lse * math.log(2) if options["lse_used"] else lse

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, lse_grad: torch.Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        q, k, v, weights, indices, out, lse = ctx.saved_tensors
        dq, dk, dv, dweights = launch_backward(
            q,
            k,
            v,
            weights,
            indices,
            out,
            lse,
            grad,
            lse_grad if ctx.options["lse_used"] else None,
            ctx.options,
        )
        return dq, dk, dv, dweights, None, None


def sparse_attention_fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    *,
    chunk_size: int,
    block_q: int,
    scale: float,
    chunk_weights: torch.Tensor | None = None,
    causal: bool = False,
    query_start: int = 0,
    inverse: InverseIndex | None = None,
    deterministic: bool = True,
    lse_used: bool = False,
    tiles: dict[str, Tiles] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `sparse_attention_naive`, by the kernels; indices are read there, chosen chunks are never copied."""
    options = {
        "chunk_size": chunk_size,
        "block_q": block_q,
        "scale": scale,
        "causal": causal,
        "query_start": query_start,
        "inverse": inverse,
        "deterministic": deterministic,
        "lse_used": lse_used,
        "tiles": tiles or {},
    }
    q, k, v, indices = (last_contiguous(tensor) for tensor in (q, k, v, indices))
    weights = None if chunk_weights is None else last_contiguous(chunk_weights)
    out, lse = _SparseAttention.apply(q, k, v, weights, indices, options)  # type: ignore[no-untyped-call]
    return out, lse


def launch_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weights: torch.Tensor | None,
    indices: torch.Tensor,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, Nq, Hq, D] and its lse in base 2, float32 [B, Nq, Hq] (unset with weights: no one softmax exists)."""
    batch, num_q, q_heads, dim = q.shape
    rows = (q_heads // k.shape[2]) * options["block_q"]
    tiles = chosen_tiles("forward", q, k, options, weights is not None)
    out = torch.empty((batch, num_q, q_heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, num_q, q_heads), dtype=torch.float32, device=q.device)
    if weights is not None:
        lse.fill_(float("-inf"))
    grid = (-(-rows // tiles.block_m), indices.shape[1], batch * k.shape[2])
    tma = tiles.tma and tiles.step == 1 and even(k, v, options["chunk_size"])
    if tiles.hopper and hopper_fits(q, k, v, weights, options):
        from models.kernels.sparse_attention.ahead import launch_ahead
        from models.kernels.sparse_attention.hopper import launch_hopper

        launch = launch_hopper if form_for(tiles, "forward", indices, options) == 1 else launch_ahead
        launch(q, k, v, indices, out, lse, options["scale"] * LOG2E)
    elif out.numel() and indices.shape[1]:
        forward_kernel[grid](
            q,
            descriptor(k, options["chunk_size"]) if tma else k,
            descriptor(v, options["chunk_size"]) if tma else v,
            indices,
            weights if weights is not None else indices,
            out,
            lse,
            options["scale"] * LOG2E,
            num_q,
            k.shape[1],
            options["query_start"],
            *strides(q, k, v, indices, weights),
            **constants(q, k, indices, weights, options, tiles),
            STEP=tiles.step,
            TMA=tma,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out, lse
