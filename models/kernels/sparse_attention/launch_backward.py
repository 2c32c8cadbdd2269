"""Launches the backward kernels of sparse attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from models.kernels.sparse_attention.backward import delta_kernel, dkv_kernel, dq_kernel
from models.kernels.sparse_attention.inverse import InverseIndex, invert_indices
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


@dataclass(frozen=True, slots=True)
class Saved:
    """What the backward kernels read; grad and delta [B, Nq, Hq(, D)] contiguous, lse in base 2."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    weights: torch.Tensor | None
    indices: torch.Tensor
    lse: torch.Tensor
    grad: torch.Tensor
    delta: torch.Tensor
    rows: torch.Tensor | None = None  # what the kernels for Hopper read in place of lse and delta


def launch_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weights: torch.Tensor | None,
    indices: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    lse_grad: torch.Tensor | None,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """dq, dk, dv and dweights, in the dtypes of their inputs."""
    saved = prepare(q, k, v, weights, indices, out, lse, grad.contiguous(), lse_grad, options)
    if options["deterministic"]:
        dq, dweights = launch_dq(saved, options, None)
        inverse = options["inverse"] or invert_indices(indices, -(-k.shape[1] // options["chunk_size"]))
        dk, dv = launch_dkv(saved, options, inverse)
    else:
        sums = torch.zeros((2, *k.shape), dtype=torch.float32, device=k.device)
        dq, dweights = launch_dq(saved, options, sums)
        dk, dv = sums[0].to(k.dtype), sums[1].to(v.dtype)
    return dq, dk, dv, dweights


def prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weights: torch.Tensor | None,
    indices: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    lse_grad: torch.Tensor | None,
    options: dict[str, Any],
) -> Saved:
    """What the backward kernels read, in the forms that the chosen ones read it."""
    kinds = [chosen_tiles(kernel, q, k, options, True) for kernel in ("dq", "dkv")]
    fitting = options["deterministic"] and hopper_fits(q, k, v, weights, options)
    on_hopper = [fitting and tiles.hopper for tiles in kinds]
    rows = None
    if any(on_hopper):
        from models.kernels.sparse_attention.hopper_shared import launch_rows

        rows = launch_rows(out, grad, lse, lse_grad)
    needs_delta = weights is None and not all(on_hopper)
    delta = launch_delta(out, grad, lse_grad) if needs_delta else lse
    return Saved(q, k, v, weights, indices, lse, grad, delta, rows)


def launch_delta(out: torch.Tensor, grad: torch.Tensor, lse_grad: torch.Tensor | None) -> torch.Tensor:
    """rowsum(out * grad), less the gradient of lse; float32 [B, Nq, Hq]."""
    delta = torch.empty(out.shape[:3], dtype=torch.float32, device=out.device)
    block = 32
    delta_kernel[(-(-delta.numel() // block),)](
        out,
        grad,
        lse_grad.contiguous() if lse_grad is not None else delta,
        delta,
        delta.numel(),
        DIM=out.shape[3],
        BLOCK=block,
        LSE_GRAD=lse_grad is not None,
    )
    return delta


def launch_dq(
    saved: Saved, options: dict[str, Any], sums: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dq and, with weights, dweights; `sums` float32 [2, B, Nk, Hkv, D] takes dk and dv by atomics if given."""
    q, k, weights, indices = saved.q, saved.k, saved.weights, saved.indices
    batch, num_q, q_heads, dim = q.shape
    num_blocks, kv_heads, chosen = indices.shape[1], k.shape[2], indices.shape[3]
    rows = (q_heads // kv_heads) * options["block_q"]
    tiles = chosen_tiles("dq", q, k, options, True)
    if tiles.hopper and saved.rows is not None and sums is None:
        from models.kernels.sparse_attention.ahead_dq import launch_ahead_dq
        from models.kernels.sparse_attention.hopper_dq import launch_hopper_dq

        launch = launch_hopper_dq if form_for(tiles, "dq", indices, options) == 1 else launch_ahead_dq
        scale = options["scale"]
        return launch(q, k, saved.v, saved.grad, indices, saved.rows, scale, scale * LOG2E), None
    num_tiles = -(-rows // tiles.block_m)
    dq = torch.empty((batch, num_q, q_heads, dim), dtype=q.dtype, device=q.device)
    parts = saved.delta
    if weights is not None:
        shape = (batch, num_blocks, kv_heads, num_tiles, chosen)
        parts = torch.empty(shape, dtype=torch.float32, device=q.device)
    tma = tiles.tma and even(k, saved.v, options["chunk_size"])
    dq_kernel[(num_tiles, num_blocks, batch * kv_heads)](
        q,
        descriptor(k, options["chunk_size"]) if tma else k,
        descriptor(saved.v, options["chunk_size"]) if tma else saved.v,
        indices,
        weights if weights is not None else indices,
        saved.grad,
        saved.lse,
        saved.delta,
        dq,
        parts,
        sums[0] if sums is not None else dq,
        sums[1] if sums is not None else dq,
        options["scale"],
        options["scale"] * LOG2E,
        num_q,
        k.shape[1],
        options["query_start"],
        num_blocks,
        *strides(q, k, saved.v, indices, weights),
        **constants(q, k, indices, weights, options, tiles),
        ATOMIC=sums is not None,
        TMA=tma,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if weights is None:
        return dq, None
    dweights = parts.sum(3)
    if weights.shape[2] == 1 and kv_heads > 1:
        dweights = dweights.sum(2, keepdim=True)
    return dq, dweights.to(weights.dtype)


def launch_dkv(
    saved: Saved, options: dict[str, Any], inverse: InverseIndex
) -> tuple[torch.Tensor, torch.Tensor]:
    """dk and dv, each chunk's sum in the order of its inverted list."""
    q, k, v, weights, indices = saved.q, saved.k, saved.v, saved.weights, saved.indices
    batch, num_k, kv_heads, dim = k.shape
    num_chunks = -(-num_k // options["chunk_size"])
    tiles = chosen_tiles("dkv", q, k, options, True)
    if tiles.hopper and saved.rows is not None:
        from models.kernels.sparse_attention.ahead_dkv import launch_ahead_dkv

        scale = options["scale"]
        return launch_ahead_dkv(q, k, v, saved.grad, indices, saved.rows, inverse, scale, scale * LOG2E)
    dk = torch.empty((batch, num_k, kv_heads, dim), dtype=k.dtype, device=k.device)
    dv = torch.empty_like(dk)
    steps = strides(q, k, v, indices, weights)
    block_q = options["block_q"]
    tma = tiles.tma and tiles.block_m == block_q and even(q, saved.grad, block_q)
    dkv_kernel[(num_chunks, batch * kv_heads)](
        descriptor(q, block_q) if tma else q,
        k,
        v,
        weights if weights is not None else indices,
        descriptor(saved.grad, block_q) if tma else saved.grad,
        saved.lse,
        saved.delta,
        inverse.starts,
        inverse.entries,
        dk,
        dv,
        options["scale"],
        options["scale"] * LOG2E,
        q.shape[1],
        num_k,
        num_chunks,
        options["query_start"],
        *steps[:9],
        *steps[12:],
        INDEX_HEADS=indices.shape[2],
        TMA=tma,
        **constants(q, k, indices, weights, options, tiles),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return dk, dv
