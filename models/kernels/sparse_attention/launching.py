"""What the launches of sparse attention share: tiles, strides, constants, descriptors."""

from __future__ import annotations

import math
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from models.kernels.sparse_attention.tuning import FEW, Tiles, fits, tiles_for

LOG2E = math.log2(math.e)
PRECISION = "ieee"  # float32 dots; tf32 would be wrong by 3e-4


def chosen_tiles(
    kernel: str, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any], mixed: bool
) -> Tiles:
    rows = (q.shape[2] // k.shape[2]) * options["block_q"]
    given: Tiles | None = options["tiles"].get(kernel)
    return given or tiles_for(kernel, q.shape[3], q.dtype, rows, mixed)


def form_for(tiles: Tiles, kernel: str, indices: torch.Tensor, options: dict[str, Any]) -> int:
    """Which form of the forward or dq for Hopper runs: the one that was insisted on, else by the number chosen."""
    few = kernel not in options["tiles"] and indices.shape[3] <= FEW
    return 2 if few and tiles.hopper == 1 else tiles.hopper


def hopper_fits(
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


def even(a: torch.Tensor, b: torch.Tensor, rows: int) -> bool:
    """Whether the copy engine can fetch tiles of `rows` tokens of both [B, N, H, D] tensors on this device."""
    return (
        a.is_contiguous()
        and b.is_contiguous()
        and a.shape[1] % rows == 0
        and a.shape[0] * a.shape[1] < 2**31
        and a.is_cuda
        and torch.cuda.get_device_capability(a.device)[0] >= 9
    )


def descriptor(x: torch.Tensor, rows: int) -> TensorDescriptor:
    """x [B, N, H, D] as [B * N, H * D] with tiles of `rows` tokens of one head."""
    return TensorDescriptor.from_tensor(x.view(x.shape[0] * x.shape[1], -1), [rows, x.shape[3]])


def strides(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor | None
) -> tuple[int, ...]:
    """Strides of q, k, v (batch, token, head), of indices and weights (batch, block, head; a shared head: 0)."""
    strides = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
    for table in (indices, indices if weights is None else weights):
        strides += [table.stride(0), table.stride(1), table.stride(2) if table.shape[2] > 1 else 0]
    return tuple(strides)


def constants(
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
        "PRECISION": PRECISION,
    }
