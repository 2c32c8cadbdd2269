"""All matrices of a device searched as one: a product each into one row of scores, then one choice for all.

Segment by segment each search launches a dozen small kernels and waits for its own answer, which at one question
costs as much as reading the vectors does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.store.vector_index import Joint, Part

if TYPE_CHECKING:
    from pipeline.store.gpu_index import DeviceMatrix

MAX_SCORES = 1 << 30
"""Scores that are held at once, 2 GiB in float16; more questions are searched segment by segment."""

_LEAST_SHARE = 0.5
_SPARE = 16


def begin_together(
    parts: Sequence[tuple[DeviceMatrix, Part]], queries: NDArray[np.float32], k: int
) -> Callable[[], Joint]:
    """Put the search on the device's queue; the call that is returned waits for what it found.

    Hidden rows are met as in one matrix: where most rows are allowed a few more are fetched and filtered, and
    what that leaves short is searched again under the mask.
    """
    from pipeline.store.gpu_index import largest

    ends = np.cumsum([part.num_rows for _, part in parts])
    total = int(ends[-1])
    masks = [matrix.mask(part.allowed, part.num_rows) for matrix, part in parts]
    available = sum(count for _, count in masks)
    k = min(k, available)
    if k == 0:
        nothing = np.zeros((len(queries), 0), dtype=np.int64)
        return lambda: (nothing.astype(np.float32), nothing, nothing)
    views = [matrix.first(part.num_rows) for matrix, part in parts]
    questions = parts[0][0].questions(queries)
    starts = ends - [part.num_rows for _, part in parts]

    def scores(*, masked: bool) -> torch.Tensor:
        made = torch.empty((len(queries), total), dtype=questions.dtype, device=questions.device)
        for view, begin, end, (hidden, _) in zip(views, starts.tolist(), ends.tolist(), masks, strict=True):
            torch.mm(questions, view.T, out=made[:, begin:end])
            if masked and hidden is not None:
                made[:, begin:end].masked_fill_(hidden, -math.inf)
        return made

    def masked() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return largest(scores(masked=True), k)

    def told(best: torch.Tensor, places: torch.Tensor) -> Joint:
        found, at = best.float().cpu().numpy(), places.cpu().numpy()
        numbers = np.searchsorted(ends, at, side="right")
        rows = at - starts[numbers]
        rows[np.isneginf(found)] = -1
        return found, numbers, rows

    share = available / total
    if all(hidden is None for hidden, _ in masks) or share < _LEAST_SHARE:
        chosen = masked()
        return lambda: told(*chosen)
    with torch.inference_mode():
        fetch = min(total, math.ceil(k / share) + _SPARE)
        fetched, places = largest(scores(masked=False), fetch)
        gone = torch.zeros_like(places, dtype=torch.bool)
        for begin, end, (hidden, _) in zip(starts.tolist(), ends.tolist(), masks, strict=True):
            if hidden is not None:
                inside = (places >= begin) & (places < end)
                gone |= inside & hidden[(places - begin).clamp(0, end - begin - 1)]
        best, order = fetched.masked_fill(gone, -math.inf).topk(k, dim=1)
        rows = places.gather(1, order)

    def finish() -> Joint:
        found = told(best, rows)
        return told(*masked()) if np.isneginf(found[0]).any() else found

    return finish
