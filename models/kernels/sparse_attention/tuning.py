"""Tile sizes of the kernels, by head width and dtype: the fastest of those whose results were checked on an H200.

docs/kernels.md has the sweep, and which faster ones still want their check.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FEW = (
    8  # chosen chunks up to which form 2 of the forward and of dq is faster than form 1 (measured at 8 to 64)
)
HOPPER_ROWS, HOPPER_HEADS = 64, 4  # rows of one head of a block of queries, and heads of a tile of hopper.py


class Tiles(NamedTuple):
    """How one kernel is cut: rows of a program, chunks read at a time, warps, stages, copy engine.

    hopper: which of the kernels for Hopper runs where it fits (0: none; 1: hopper.py's; 2: ahead.py's, the only one
    for dk and dv); the other fields then say how the general one is cut elsewhere.
    """

    block_m: int
    step: int
    num_warps: int
    num_stages: int
    tma: bool = False
    hopper: int = 0


_HALF = {
    "forward": {
        64: Tiles(64, 1, 4, 3, True, 0),
        128: Tiles(128, 1, 4, 2, True, 1),
        256: Tiles(128, 1, 8, 2, True, 0),
    },
    "dq": {
        64: Tiles(64, 1, 4, 2, True, 0),
        128: Tiles(64, 1, 4, 3, True, 1),
        256: Tiles(128, 1, 8, 1, False, 0),
    },
    "dkv": {
        64: Tiles(64, 1, 4, 2, True, 2),
        128: Tiles(64, 1, 4, 2, True, 2),
        256: Tiles(64, 1, 8, 2, True, 0),
    },
}
_FLOAT = {
    "forward": {64: Tiles(64, 1, 4, 1), 128: Tiles(32, 1, 4, 1), 256: Tiles(16, 1, 4, 1)},
    "dq": {64: Tiles(32, 1, 4, 1), 128: Tiles(32, 1, 4, 1), 256: Tiles(16, 1, 4, 1)},
    "dkv": {64: Tiles(32, 1, 4, 1), 128: Tiles(16, 1, 4, 1), 256: Tiles(16, 1, 8, 1)},
}


def tiles_for(kernel: str, dim: int, dtype: torch.dtype, rows: int, mixed: bool) -> Tiles:
    """Tiles of `kernel` ("forward", "dq", "dkv") for heads of `dim`; no larger than `rows` needs."""
    table = (_FLOAT if dtype == torch.float32 else _HALF)[kernel]
    tiles = table[min(max(dim, 64), 256)]
    fitting = max(16, 1 << (rows - 1).bit_length())
    if fitting < tiles.block_m:
        tiles = tiles._replace(block_m=fitting, num_warps=4)
    return tiles._replace(step=1) if mixed else tiles


def fits(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    chunk_size: int,
    block_q: int,
    *,
    mixed: bool,
    causal: bool,
) -> bool:
    """Whether hopper.py takes these inputs: whole blocks of 64 queries, whole chunks of 64, heads of 64 or 128."""
    return (
        q.is_cuda
        and torch.cuda.get_device_capability(q.device)[0] == 9
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[3] in (64, 128)
        and (q.shape[2] // k.shape[2]) % HOPPER_HEADS == 0
        and block_q == HOPPER_ROWS
        and chunk_size == 64
        and q.shape[1] % block_q == 0
        and k.shape[1] % chunk_size == 0
        and k.shape[1] > 0
        and all(x.is_contiguous() for x in (q, k, v))
        and max(q.shape[0] * q.shape[1], k.shape[0] * k.shape[1]) < 2**31
        and not mixed
        and not causal
    )
