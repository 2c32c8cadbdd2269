"""Launches the Triton kernels of sparse attention and joins them to autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from models.kernels.dispatch import last_contiguous
from models.kernels.sparse_attention.backward import delta_kernel, dkv_kernel, dq_kernel
from models.kernels.sparse_attention.forward import forward_kernel
from models.kernels.sparse_attention.inverse import InverseIndex, invert_indices
from models.kernels.sparse_attention.tuning import Tiles, fits, tiles_for

_LOG2E = math.log2(math.e)
_PRECISION = "ieee"  # float32 dots; tf32 would be wrong by 3e-4


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
    tiles = _tiles("forward", q, k, options, weights is not None)
    out = torch.empty((batch, num_q, q_heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, num_q, q_heads), dtype=torch.float32, device=q.device)
    if weights is not None:
        lse.fill_(float("-inf"))
    grid = (-(-rows // tiles.block_m), indices.shape[1], batch * k.shape[2])
    tma = tiles.tma and tiles.step == 1 and _even(k, v, options["chunk_size"])
    if tiles.hopper and _hopper_fits(q, k, v, weights, options):
        from models.kernels.sparse_attention.hopper import launch_hopper

        launch_hopper(q, k, v, indices, out, lse, options["scale"] * _LOG2E)
    elif out.numel() and indices.shape[1]:
        forward_kernel[grid](
            q,
            _descriptor(k, options["chunk_size"]) if tma else k,
            _descriptor(v, options["chunk_size"]) if tma else v,
            indices,
            weights if weights is not None else indices,
            out,
            lse,
            options["scale"] * _LOG2E,
            num_q,
            k.shape[1],
            options["query_start"],
            *_strides(q, k, v, indices, weights),
            **_constants(q, k, indices, weights, options, tiles),
            STEP=tiles.step,
            TMA=tma,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out, lse


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
    kinds = [_tiles(kernel, q, k, options, True) for kernel in ("dq", "dkv")]
    fitting = options["deterministic"] and _hopper_fits(q, k, v, weights, options)
    on_hopper = [fitting and tiles.hopper for tiles in kinds]
    rows = None
    if any(on_hopper):
        from models.kernels.sparse_attention.hopper_shared import launch_rows

        rows = launch_rows(out, grad, lse, lse_grad)
    needs_delta = weights is None and not all(on_hopper)
    delta = launch_delta(out, grad, lse_grad) if needs_delta else lse
    return Saved(q, k, v, weights, indices, lse, grad, delta, rows)


def _tiles(kernel: str, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any], mixed: bool) -> Tiles:
    rows = (q.shape[2] // k.shape[2]) * options["block_q"]
    given: Tiles | None = options["tiles"].get(kernel)
    return given or tiles_for(kernel, q.shape[3], q.dtype, rows, mixed)


def _hopper_fits(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: torch.Tensor | None, options: dict[str, Any]
) -> bool:
    return fits(
        q,
        k,
        v,
        options["chunk_size"],
        options["block_q"],
        mixed=weights is not None,
        causal=options["causal"],
    )


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
    tiles = _tiles("dq", q, k, options, True)
    if tiles.hopper and saved.rows is not None and sums is None:
        from models.kernels.sparse_attention.hopper_dq import launch_hopper_dq

        scale = options["scale"]
        return launch_hopper_dq(q, k, saved.v, saved.grad, indices, saved.rows, scale, scale * _LOG2E), None
    num_tiles = -(-rows // tiles.block_m)
    dq = torch.empty((batch, num_q, q_heads, dim), dtype=q.dtype, device=q.device)
    parts = saved.delta
    if weights is not None:
        shape = (batch, num_blocks, kv_heads, num_tiles, chosen)
        parts = torch.empty(shape, dtype=torch.float32, device=q.device)
    tma = tiles.tma and _even(k, saved.v, options["chunk_size"])
    dq_kernel[(num_tiles, num_blocks, batch * kv_heads)](
        q,
        _descriptor(k, options["chunk_size"]) if tma else k,
        _descriptor(saved.v, options["chunk_size"]) if tma else saved.v,
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
        options["scale"] * _LOG2E,
        num_q,
        k.shape[1],
        options["query_start"],
        num_blocks,
        *_strides(q, k, saved.v, indices, weights),
        **_constants(q, k, indices, weights, options, tiles),
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
    tiles = _tiles("dkv", q, k, options, True)
    if tiles.hopper and saved.rows is not None:
        from models.kernels.sparse_attention.hopper_dkv import launch_hopper_dkv

        scale = options["scale"]
        return launch_hopper_dkv(q, k, v, saved.grad, indices, saved.rows, inverse, scale, scale * _LOG2E)
    dk = torch.empty((batch, num_k, kv_heads, dim), dtype=k.dtype, device=k.device)
    dv = torch.empty_like(dk)
    strides = _strides(q, k, v, indices, weights)
    block_q = options["block_q"]
    tma = tiles.tma and tiles.block_m == block_q and _even(q, saved.grad, block_q)
    dkv_kernel[(num_chunks, batch * kv_heads)](
        _descriptor(q, block_q) if tma else q,
        k,
        v,
        weights if weights is not None else indices,
        _descriptor(saved.grad, block_q) if tma else saved.grad,
        saved.lse,
        saved.delta,
        inverse.starts,
        inverse.entries,
        dk,
        dv,
        options["scale"],
        options["scale"] * _LOG2E,
        q.shape[1],
        num_k,
        num_chunks,
        options["query_start"],
        *strides[:9],
        *strides[12:],
        INDEX_HEADS=indices.shape[2],
        TMA=tma,
        **_constants(q, k, indices, weights, options, tiles),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return dk, dv


def _even(a: torch.Tensor, b: torch.Tensor, rows: int) -> bool:
    """Whether the copy engine can fetch tiles of `rows` tokens of both [B, N, H, D] tensors on this device."""
    return (
        a.is_contiguous()
        and b.is_contiguous()
        and a.shape[1] % rows == 0
        and a.shape[0] * a.shape[1] < 2**31
        and a.is_cuda
        and torch.cuda.get_device_capability(a.device)[0] >= 9
    )


def _descriptor(x: torch.Tensor, rows: int) -> TensorDescriptor:
    """x [B, N, H, D] as [B * N, H * D] with tiles of `rows` tokens of one head."""
    return TensorDescriptor.from_tensor(x.view(x.shape[0] * x.shape[1], -1), [rows, x.shape[3]])


def _strides(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor | None
) -> tuple[int, ...]:
    """Strides of q, k, v (batch, token, head), of indices and weights (batch, block, head; a shared head: 0)."""
    strides = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
    for table in (indices, indices if weights is None else weights):
        strides += [table.stride(0), table.stride(1), table.stride(2) if table.shape[2] > 1 else 0]
    return tuple(strides)


def _constants(
    q: torch.Tensor,
    k: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor | None,
    options: dict[str, Any],
    tiles: Tiles,
) -> dict[str, Any]:
    return {
        "KV_HEADS": k.shape[2],
        "GROUP": q.shape[2] // k.shape[2],
        "BLOCK_Q": options["block_q"],
        "CHUNK": options["chunk_size"],
        "CHOSEN": indices.shape[3],
        "DIM": q.shape[3],
        "BLOCK_M": tiles.block_m,
        "MIXED": weights is not None,
        "CAUSAL": options["causal"],
        "EVEN": k.shape[1] % options["chunk_size"] == 0,
        "PRECISION": _PRECISION,
    }
