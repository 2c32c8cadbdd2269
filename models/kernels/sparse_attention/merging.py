# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""The inverted list: blocks of entries are sorted, then each finds its place among all; then chunks are ordered."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from models.kernels.sparse_attention.inverse import InverseIndex

_BLOCK = 1024
_ORDERED = 4096  # chunks that one program sorts; of more the lists are short, and their order matters less


def invert_by_merging(flat: torch.Tensor, num_chunks: int) -> InverseIndex:
    """As `invert_indices`, for flat indices int32 [rows, width] (-1: empty); no atomics, so one order."""
    rows, width = flat.shape
    flat = flat.contiguous()
    block = min(_BLOCK, 1 << max(width - 1, 15).bit_length())
    blocks = -(-width // block)
    keys = torch.empty((rows, blocks * block), dtype=torch.int32, device=flat.device)
    starts = torch.empty((rows, num_chunks + 1), dtype=torch.int32, device=flat.device)
    entries = torch.empty(rows * width, dtype=torch.int32, device=flat.device)
    sort_kernel[(blocks, rows)](flat, keys, width, num_chunks, BLOCK=block)
    place_kernel[(blocks + -(-(num_chunks + 1) // block), rows)](
        keys, entries, starts, width, num_chunks, blocks, BLOCK=block
    )
    if num_chunks > _ORDERED:
        return InverseIndex(starts=starts, entries=entries)
    order = torch.empty((rows, num_chunks), dtype=torch.int32, device=flat.device)
    padded = 1 << max(num_chunks - 1, 15).bit_length()
    order_kernel[(rows,)](starts, order, num_chunks, WIDTH=padded, num_warps=8 if padded > 512 else 4)
    return InverseIndex(starts=starts, entries=entries, order=order)


@triton.jit
def sort_kernel(flat_ptr, keys_ptr, width, num_chunks, BLOCK: tl.constexpr):
    """Keys chunk * BLOCK + place in the block, ascending; empty slots count as num_chunks, none come last."""
    row = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    entry = tl.program_id(0) * BLOCK + lanes
    chunk = tl.load(flat_ptr + row * width + entry, mask=entry < width, other=0)
    chunk = tl.where(chunk < 0, num_chunks, chunk)
    chunk = tl.where(entry < width, chunk, num_chunks + 1)
    line = keys_ptr + (row * tl.num_programs(0) + tl.program_id(0)) * BLOCK
    tl.store(line + lanes, tl.sort(chunk * BLOCK + lanes))


@triton.jit
def smaller(keys_ptr, target, BLOCK: tl.constexpr):
    """How many of BLOCK ascending keys are below each target."""
    place = tl.zeros_like(target)
    step = BLOCK // 2
    while step > 0:
        place = tl.where(tl.load(keys_ptr + place + step - 1) < target, place + step, place)
        step = step // 2
    return place + (tl.load(keys_ptr + place) < target).to(tl.int32)


@triton.jit
def place_kernel(keys_ptr, entries_ptr, starts_ptr, width, num_chunks, blocks, BLOCK: tl.constexpr):
    """Programs below `blocks` write their entries at their places, the others where each chunk's entries start."""
    row = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    line = keys_ptr + row * blocks * BLOCK
    own = tl.program_id(0)
    if own < blocks:
        key = tl.load(line + own * BLOCK + lanes)
        chunk = key // BLOCK
        place = lanes
        for other in range(0, blocks):
            if other != own:
                target = (chunk + (other < own).to(tl.int32)) * BLOCK
                place += smaller(line + other * BLOCK, target, BLOCK)
        entry = own * BLOCK + key % BLOCK
        tl.store(entries_ptr + row * width + place, entry, mask=chunk <= num_chunks)
    else:
        chunk = (own - blocks) * BLOCK + lanes
        count = tl.zeros([BLOCK], tl.int32)
        for block in range(0, blocks):
            count += smaller(line + block * BLOCK, chunk * BLOCK, BLOCK)
        start = row * (num_chunks + 1) + chunk
        tl.store(starts_ptr + start, (count + row * width).to(tl.int32), mask=chunk <= num_chunks)


@triton.jit
def order_kernel(starts_ptr, order_ptr, num_chunks, WIDTH: tl.constexpr):
    """One row's chunks by falling length of their lists, equal ones ascending; lengths below 2^31 / WIDTH."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, WIDTH)
    ok = lanes < num_chunks
    line = starts_ptr + row * (num_chunks + 1) + lanes
    count = tl.load(line + 1, mask=ok, other=0) - tl.load(line, mask=ok, other=0)
    keys = tl.where(ok, count * WIDTH + (WIDTH - 1 - lanes), -1)
    keys = tl.sort(keys, descending=True)
    tl.store(order_ptr + row * num_chunks + lanes, WIDTH - 1 - keys % WIDTH, mask=ok)
