"""Nearest vectors on a GPU: a float16 product by torch, and faiss for IVF.

faiss on a GPU ignores id selectors without a word, so there the search fetches more, and filters afterwards.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.store.gpu_together import MAX_SCORES, begin_together
from pipeline.store.segment import top_rows
from pipeline.store.vector_index import FaissIndex, Hits, Joint, MatrixIndex, Part, VectorIndex, nothing

_MAX_GPU_FETCH = 2_048
_BLOCK = 64
_LEAST_SHARE = 0.5
_SPARE = 16

_asked: dict[torch.device, tuple[NDArray[np.float32], torch.Tensor]] = {}
"""The questions of the latest search on each device."""


class DeviceMatrix(MatrixIndex):
    """A matrix of float16 on a GPU (of float32 on a torch device that is a CPU).

    Its scores are rounded to float16 on a GPU: callers fetch a few more than they need and score them exactly.
    """

    def __init__(self, dim: int, capacity: int, device: str) -> None:
        self._device = require_device(device)
        dtype = torch.float32 if self._device.type == "cpu" else torch.float16
        self._matrix = torch.zeros((max(1, capacity), dim), dtype=dtype, device=self._device)
        self._size = 0
        self._hidden: tuple[NDArray[np.bool_], torch.Tensor] | None = None
        self._counted: tuple[NDArray[np.bool_], int] | None = None

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Append rows; the room doubles when it is full."""
        end = self._size + len(vectors)
        if end > len(self._matrix):
            room = torch.zeros(
                (max(end, 2 * len(self._matrix)), self._matrix.shape[1]),
                dtype=self._matrix.dtype,
                device=self._device,
            )
            room[: self._size] = self._matrix[: self._size]
            self._matrix = room
        rows = torch.from_numpy(np.array(vectors, dtype=np.float16)).to(self._device)
        self._matrix[self._size : end] = rows.to(self._matrix.dtype)
        self._size = end

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Hits:
        """As promised by VectorIndex; `allowed` may be shorter than the matrix, and hides the rest."""
        n = self._size if allowed is None else len(allowed)
        return self.begin(queries, k, n, allowed)()

    def search_first(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Hits:
        """`search` among the first `num_rows` rows."""
        return self.begin(queries, k, num_rows, allowed)()

    def begin(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Callable[[], Hits]:
        """Put the search on the device's queue; the call that is returned waits for what it found.

        Where most rows are allowed the best of all are fetched, a few more than asked, and filtered: a mask over
        every score would cost as much as the product. What that leaves short is searched again with the mask.
        """
        available = self.available(allowed, num_rows)
        k = min(k, available)
        if k == 0:
            return lambda: nothing(len(queries))
        with torch.inference_mode():
            matrix, questions = self._matrix[:num_rows], self.questions(queries)
            share = available / num_rows
            hidden = None if allowed is None else self.hidden(allowed)
            if hidden is None or share < _LEAST_SHARE:
                best, rows = _search(matrix, questions, k, hidden)
                return lambda: _to_host(best, rows)
            fetch = min(num_rows, math.ceil(k / share) + _SPARE)
            fetched, places = _search(matrix, questions, fetch, None)
            fetched = fetched.masked_fill(hidden[places], -math.inf)
            best, order = fetched.topk(k, dim=1)
            rows = places.gather(1, order)

        def finish() -> Hits:
            found = _to_host(best, rows)
            if not np.isneginf(found[0]).any():
                return found
            with torch.inference_mode():
                return _to_host(*_search(matrix, questions, k, hidden))

        return finish

    def begin_together(
        self, parts: Sequence[Part], queries: NDArray[np.float32], k: int
    ) -> Callable[[], Joint] | None:
        """As promised by VectorIndex, where all are matrices of this device and their scores have room."""
        ours = [
            (part.held, part)
            for part in parts
            if isinstance(part.held, DeviceMatrix) and part.held._device == self._device
        ]
        if len(ours) < len(parts) or len(queries) * sum(part.num_rows for part in parts) > MAX_SCORES:
            return None
        return begin_together(ours, queries, k)

    def first(self, num_rows: int) -> torch.Tensor:
        """The vectors of the first `num_rows` rows, on the device."""
        return self._matrix[:num_rows]

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors at `rows`."""
        return self._matrix[torch.from_numpy(rows).to(self._device)].float().cpu().numpy()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the matrix."""
        return self._matrix.numel() * self._matrix.element_size()

    def available(self, allowed: NDArray[np.bool_] | None, num_rows: int) -> int:
        """How many of the first `num_rows` rows are allowed; counted once while the same array is asked with."""
        if allowed is None:
            return num_rows
        known = self._counted
        if known is None or known[0] is not allowed:
            known = self._counted = (allowed, int(np.count_nonzero(allowed)))
        return known[1]

    def hidden(self, allowed: NDArray[np.bool_]) -> torch.Tensor:
        """The rows that are not allowed, on the device; kept there while the same array is asked with."""
        known = self._hidden
        if known is None or known[0] is not allowed:
            known = self._hidden = (allowed, torch.from_numpy(~allowed).to(self._device))
        return known[1]

    def questions(self, queries: NDArray[np.float32]) -> torch.Tensor:
        """The questions on the device: brought there once for all matrices that are asked with the same array."""
        known = _asked.get(self._device)
        if known is None or known[0] is not queries:
            given = torch.from_numpy(np.ascontiguousarray(queries)).to(self._device, self._matrix.dtype)
            known = _asked[self._device] = (queries, given)
        return known[1]


def _search(
    matrix: torch.Tensor, questions: torch.Tensor, k: int, hidden: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and rows [Q, k] of the largest products; -inf where fewer are not hidden."""
    at_once = max(1, MAX_SCORES // len(matrix))
    parts = []
    for part in torch.split(questions, at_once):
        scores = part @ matrix.T
        if hidden is not None:
            scores.masked_fill_(hidden, -math.inf)
        parts.append(largest(scores, k))
    if len(parts) == 1:
        return parts[0]
    return torch.cat([best for best, _ in parts]), torch.cat([rows for _, rows in parts])


def largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row [Q, n] and where they are, largest first.

    In two steps where rows are long: the k largest lie in the k blocks whose maxima are largest, so all else is
    read once, where torch.topk reads it several times. A block is every `num_blocks`-th score, not a run of
    neighbours: maxima over runs of 64 take a reduction between threads for each, maxima of columns take none.
    """
    n = scores.shape[1]
    num_blocks = n // _BLOCK
    if num_blocks < 8 * k:
        best, rows = scores.topk(k, dim=1)
        return best, rows
    whole = num_blocks * _BLOCK
    peaks = torch.unflatten(scores[:, :whole], 1, (_BLOCK, num_blocks)).amax(1)
    blocks = peaks.topk(k, dim=1, sorted=False).indices
    inside = torch.arange(0, whole, num_blocks, device=scores.device)
    places = (blocks[:, :, None] + inside).flatten(1)
    if whole < n:
        tail = torch.arange(whole, n, device=scores.device).expand(len(scores), -1)
        places = torch.cat((places, tail), dim=1)
    best, at = scores.gather(1, places).topk(k, dim=1)
    return best, places.gather(1, at)


def _to_host(best: torch.Tensor, rows: torch.Tensor) -> Hits:
    found, places = best.float().cpu().numpy(), rows.cpu().numpy()
    places[np.isneginf(found)] = -1
    return found, places


class FaissGpuIndex(VectorIndex):
    """An IVF on a GPU: fetches more than asked and filters afterwards, until k are found or all are read."""

    exact = False

    def __init__(self, index: FaissIndex, device: torch.device, probes: int) -> None:
        self._resources = faiss.StandardGpuResources()
        self._resources.setTempMemory(256 << 20)
        options = faiss.GpuClonerOptions()
        options.useFloat16 = True
        library: Any = faiss  # its stubs do not say which index comes back
        self._index = library.index_cpu_to_gpu(self._resources, device.index or 0, index.faiss_index, options)
        self._exhaustive = index
        self._probes = min(probes, self._index.nlist, _MAX_GPU_FETCH)
        self._bytes = index.memory_bytes
        self._turn = threading.Lock()  # its searches share one scratch memory

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Hits:
        """As promised by VectorIndex; what the GPU cannot fetch any more is searched on the host."""
        available = self._index.ntotal if allowed is None else int(allowed.sum())
        k = min(k, available)
        if k == 0:
            return nothing(len(queries))
        fetch = k if allowed is None else int(k * self._index.ntotal / available) + _SPARE
        self._index.nprobe = self._probes
        while fetch <= _MAX_GPU_FETCH:
            with self._turn:
                scores, rows = self._index.search(
                    np.ascontiguousarray(queries, dtype=np.float32), min(fetch, self._index.ntotal)
                )
            hidden = rows < 0
            if allowed is not None:
                hidden |= ~allowed[np.maximum(rows, 0)]
            scores[hidden], rows[hidden] = -math.inf, -1
            if ((~hidden).sum(axis=1) >= k).all():
                return top_rows(scores, rows, k)
            fetch *= 2
        return self._exhaustive.search(queries, k, allowed)

    @property
    def memory_bytes(self) -> int:
        """Bytes on the device and on the host."""
        return 2 * self._bytes


def require_device(device: str) -> torch.device:
    """The torch device; a GPU that is not there is an error that says what to do."""
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ValueError(f"store device is {device!r}; allowed: cpu, cuda, cuda:0, …") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"store device is {device!r}, but torch sees no GPU; set store.device to cpu")
    return where
