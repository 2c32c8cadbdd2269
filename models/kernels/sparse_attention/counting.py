# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""The inverted list by counting: an entry's place is how many entries come before it, so no sort and no atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from models.kernels.sparse_attention.inverse import InverseIndex

_BLOCK = 128


def invert_by_counting(flat: torch.Tensor, num_chunks: int) -> InverseIndex:
    """As `invert_indices`, for flat indices int32 [rows, width] (-1: empty), in two launches."""
    rows, width = flat.shape
    flat = flat.contiguous()
    starts = torch.empty((rows, num_chunks + 1), dtype=torch.int32, device=flat.device)
    entries = torch.empty(rows * width, dtype=torch.int32, device=flat.device)
    starts_kernel[(-(-(num_chunks + 1) // _BLOCK), rows)](flat, starts, width, num_chunks, BLOCK=_BLOCK)
    entries_kernel[(-(-width // _BLOCK), rows)](flat, entries, width, num_chunks, BLOCK=_BLOCK)
    return InverseIndex(starts=starts, entries=entries)


@triton.jit
def starts_kernel(flat_ptr, starts_ptr, width, num_chunks, BLOCK: tl.constexpr):
    """starts[c] = entries of this row (and all rows before) with a chunk below c; empty ones are num_chunks."""
    row = tl.program_id(1)
    chunks = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.int32)
    for first in range(0, width, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        keys = tl.load(flat_ptr + row * width + lanes, mask=lanes < width, other=-1)
        keys = tl.where(keys < 0, num_chunks, keys)
        count += tl.sum((keys[:, None] < chunks[None, :]).to(tl.int32), 0)
    ok = chunks <= num_chunks
    tl.store(starts_ptr + row * (num_chunks + 1) + chunks, count + row * width, mask=ok)


@triton.jit
def entries_kernel(flat_ptr, entries_ptr, width, num_chunks, BLOCK: tl.constexpr):
    """Writes each entry of a row at its place: by chunk, then by entry."""
    row = tl.program_id(1)
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own_ok = own < width
    own_key = tl.load(flat_ptr + row * width + own, mask=own_ok, other=-1)
    own_key = tl.where(own_key < 0, num_chunks, own_key)
    count = tl.zeros([BLOCK], tl.int32)
    for first in range(0, width, BLOCK):
        lanes = first + tl.arange(0, BLOCK)
        keys = tl.load(flat_ptr + row * width + lanes, mask=lanes < width, other=-1)
        keys = tl.where(lanes < width, tl.where(keys < 0, num_chunks, keys), num_chunks + 1)
        before = (keys[:, None] < own_key[None, :]) | (
            (keys[:, None] == own_key[None, :]) & (lanes[:, None] < own[None, :])
        )
        count += tl.sum(before.to(tl.int32), 0)
    tl.store(entries_ptr + row * width + count, own, mask=own_ok)
