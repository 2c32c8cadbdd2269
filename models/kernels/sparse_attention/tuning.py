"""Tile sizes of the kernels, by head width and dtype: the fastest of those whose results were checked on an H200.

docs/kernels.md has the sweep, and which faster ones still want their check.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """How one kernel is cut: rows of a program, chunks read at a time, warps, stages, copy engine."""

    block_m: int
    step: int
    num_warps: int
    num_stages: int
    tma: bool = False


_HALF = {
    "forward": {
        64: Tiles(64, 1, 4, 3, False),
        128: Tiles(128, 1, 4, 2, True),
        256: Tiles(128, 1, 8, 2, False),
    },
    "dq": {
        64: Tiles(64, 1, 4, 3, True),
        128: Tiles(64, 1, 4, 3, True),
        256: Tiles(128, 1, 8, 1, False),
    },
    "dkv": {
        64: Tiles(64, 1, 4, 2, False),
        128: Tiles(64, 1, 4, 3, True),
        256: Tiles(64, 1, 8, 2, False),
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
