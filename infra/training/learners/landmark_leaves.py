"""Batches of near neighbours: leaves of a random tree over vectors, so that a part's wrong texts are hard ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def leaves(vectors: npt.NDArray[np.float16], size: int, seed: list[int]) -> list[Rows]:
    """All rows of `vectors [N, D]` in groups of `size / 2` to `size`, near ones together; another tree each seed.

    Each half is cut at the median of a random direction among its own rows (a random-projection tree,
    Dasgupta and Freund 2008), so what is near is mostly, not always, in one leaf.
    """
    if size < 1:
        raise ValueError(f"size: given {size}; allowed: 1 or more rows of a leaf")
    chance = np.random.default_rng(seed)
    wide = vectors.astype(np.float32)
    todo: list[Rows] = [np.arange(len(wide))]
    found: list[Rows] = []
    while todo:
        rows = todo.pop()
        if len(rows) <= size:
            found.append(chance.permutation(rows))
            continue
        one, other = chance.choice(rows, 2, replace=False)
        # between two of the rows: directions in which they differ, not all that there are
        along = wide[rows] @ (wide[one] - wide[other] + 0.05 * chance.standard_normal(wide.shape[1]))
        order = np.argsort(along, kind="stable")
        middle = len(rows) // 2
        todo += [rows[order[:middle]], rows[order[middle:]]]
    return found
