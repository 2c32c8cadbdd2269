"""All matrices of a device searched as one: a product each into one row of scores, then one choice for all.

Segment by segment each search launches a dozen small kernels and waits for its own answer, which at one question
costs as much as reading the vectors does. Here the device does a product for each segment and one choice, and is
waited for once; hidden rows among the few that come back are struck on the host, so that a death or an expiry costs
no copy of a mask to the device.
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

_ALIGN = 64
"""Each segment's scores begin at a multiple of this: kernels write slowly to addresses that are not aligned."""

_LEAST_SHARE = 0.5
_SPARE = 16


def places(parts: Sequence[Part]) -> tuple[NDArray[np.int64], int]:
    """Where each part's scores begin in the common row, and the length of that row."""
    lengths = np.array([part.num_rows for part in parts], dtype=np.int64)
    ends = np.cumsum(-(-lengths // _ALIGN) * _ALIGN)
    return ends - (-(-lengths // _ALIGN) * _ALIGN), int(ends[-1])


def products(
    parts: Sequence[tuple[DeviceMatrix, Part]], questions: torch.Tensor, *, masked: bool
) -> torch.Tensor:
    """The scores [Q, n] of all parts in one row a question; what lies between two parts scores -inf, and with
    `masked` each hidden row too."""
    starts, total = places([part for _, part in parts])
    made = torch.empty((len(questions), total), dtype=questions.dtype, device=questions.device)
    for (matrix, part), begin, after in zip(
        parts, starts.tolist(), [*starts[1:].tolist(), total], strict=True
    ):
        end = begin + part.num_rows
        torch.mm(questions, matrix.first(part.num_rows).T, out=made[:, begin:end])
        if end < after:
            made[:, end:after].fill_(-math.inf)
        if masked and part.allowed is not None:
            made[:, begin:end].masked_fill_(matrix.hidden(part.allowed), -math.inf)
    return made


def begin_together(
    parts: Sequence[tuple[DeviceMatrix, Part]], queries: NDArray[np.float32], k: int
) -> Callable[[], Joint]:
    """Put the search on the device's queue; the call that is returned waits for what it found.

    Where most rows are allowed the best of all are fetched, a few more than asked, and filtered; what that leaves
    short is searched again under the mask, as everything is where most rows are hidden.
    """
    from pipeline.store.gpu_index import largest

    starts, _ = places([part for _, part in parts])
    total = sum(part.num_rows for _, part in parts)
    available = sum(matrix.available(part.allowed, part.num_rows) for matrix, part in parts)
    k = min(k, available)
    if k == 0:
        nothing = np.zeros((len(queries), 0), dtype=np.int64)
        return lambda: (nothing.astype(np.float32), nothing, nothing)
    questions = parts[0][0].questions(queries)
    filtered = available < total
    share = available / total
    masked = filtered and share < _LEAST_SHARE
    fetch = min(total, math.ceil(k / share) + _SPARE) if filtered and not masked else k

    def search(*, masked: bool, fetch: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return largest(products(parts, questions, masked=masked), fetch)

    def told(best: torch.Tensor, at: torch.Tensor) -> Joint:
        scores, found = best.float().cpu().numpy(), at.cpu().numpy()
        numbers = np.searchsorted(starts, found, side="right") - 1
        rows = found - starts[numbers]
        rows[np.isneginf(scores)] = -1
        return scores, numbers, rows

    chosen = search(masked=masked, fetch=fetch)

    def finish() -> Joint:
        if masked or not filtered:
            return told(*chosen)
        found = _allowed(told(*chosen), [part for _, part in parts], k)
        return told(*search(masked=True, fetch=k)) if np.isneginf(found[0]).any() else found

    return finish


def _allowed(found: Joint, parts: Sequence[Part], k: int) -> Joint:
    """The first k of each question that their parts allow, still best first; what is missing scores -inf."""
    scores, numbers, rows = found
    gone = rows < 0
    for number, part in enumerate(parts):
        if part.allowed is not None:
            inside = (numbers == number) & ~gone
            gone[inside] = ~part.allowed[rows[inside]]
    order = np.argsort(gone, axis=1, kind="stable")[:, :k]
    scores = np.where(gone, np.float32(-math.inf), scores)
    rows = np.where(gone, -1, rows)
    return tuple(np.take_along_axis(one, order, axis=1) for one in (scores, numbers, rows))  # type: ignore[return-value]
