"""Which query blocks chose a chunk: the list that the backward pass of keys and values walks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.kernels.dispatch import interpreting

MERGED_WIDTH = 131_072  # entries of a row up to which two launches of our own replace a sort's dozen
_MERGED_CHUNKS = 2**20  # keys of the merge hold a chunk and a place in 31 bits


@dataclass(frozen=True, slots=True)
class InverseIndex:
    """For every chunk its entries (query block * k + slot), ascending, so sums have one order.

    starts: int32 [B * Hi, num_chunks + 1]; the entries of chunk c are entries[starts[c]:starts[c + 1]].
    entries: int32 [B * Hi * num_q_blocks * k].
    order: int32 [B * Hi, num_chunks], a row's chunks by falling length of their lists, or None: programs that take
    the longest lists first end together. It decides when a chunk is worked on, not what comes out.
    """

    starts: torch.Tensor
    entries: torch.Tensor
    order: torch.Tensor | None = None


def invert_indices(indices: torch.Tensor, num_chunks: int) -> InverseIndex:
    """Invert indices [B, num_q_blocks, Hi, k] (-1: empty) over chunks 0 … num_chunks - 1.

    Layers that share one retrieval can build it once and pass it to each call of `sparse_attention`.
    """
    batch, num_blocks, heads, chosen = indices.shape
    width = num_blocks * chosen
    flat = indices.permute(0, 2, 1, 3).reshape(batch * heads, width)
    small = 0 < width <= MERGED_WIDTH and num_chunks < _MERGED_CHUNKS
    if small and (flat.is_cuda or interpreting()):
        from models.kernels.sparse_attention.merging import invert_by_merging

        return invert_by_merging(flat, num_chunks)
    return _invert_by_sorting(flat, num_chunks)


def _invert_by_sorting(flat: torch.Tensor, num_chunks: int) -> InverseIndex:
    rows, width = flat.shape
    large = rows * (num_chunks + 1) >= 2**31
    base = torch.arange(rows, device=flat.device, dtype=torch.int64 if large else torch.int32)[:, None]
    base = base * (num_chunks + 1)
    keys = torch.where(flat >= 0, flat, num_chunks) + base
    ordered, order = torch.sort(keys.flatten(), stable=True)
    edges = base + torch.arange(num_chunks + 1, device=flat.device, dtype=base.dtype)
    starts = torch.searchsorted(ordered, edges, out_int32=True)
    return InverseIndex(starts=starts, entries=(order % max(width, 1)).to(torch.int32))
