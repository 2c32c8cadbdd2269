"""Nearest vectors by inner product: one interface, on CPU here, on GPU in gpu_index.py.

`allowed` is honoured exactly by each: faiss on CPU takes a selector, a matrix masks its scores.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.store.segment import top_rows

Hits = tuple[NDArray[np.float32], NDArray[np.int64]]
Joint = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
"""Of a search in several indexes: scores, which index, and the row in it, each [Q, f]."""
ENCODE_ROWS = 16_384


class Part(NamedTuple):
    """What one search may see of an index that it searches together with others."""

    held: VectorIndex
    num_rows: int
    allowed: NDArray[np.bool_] | None


class VectorIndex(ABC):
    """An index over the rows 0 to n - 1."""

    exact: bool = True

    @abstractmethod
    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Hits:
        """Scores and rows [Q, <= k], best first; row -1 (score -inf) where fewer than k are allowed."""

    def begin(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Callable[[], Hits]:
        """`search` of at most `num_rows` rows in two halves, so that a device works on all segments at once."""
        hits = self.search(queries, min(k, num_rows), allowed)
        return lambda: hits

    def begin_together(
        self, parts: Sequence[Part], queries: NDArray[np.float32], k: int
    ) -> Callable[[], Joint] | None:
        """`begin` over all parts at once, this index's own first; None where they are searched one by one."""
        return None

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes held, on the host or the device."""


class MatrixIndex(VectorIndex):
    """A preallocated matrix and brute force over its first rows; `add` doubles the room when it is full."""

    @abstractmethod
    def add(self, vectors: NDArray[np.float16]) -> None:
        """Append rows [n, D]."""

    @abstractmethod
    def search_first(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Hits:
        """`search` among the first `num_rows` rows."""

    def begin(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Callable[[], Hits]:
        """As promised by VectorIndex."""
        hits = self.search_first(queries, k, num_rows, allowed)
        return lambda: hits

    @abstractmethod
    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors at `rows`."""


class HostMatrix(MatrixIndex):
    """A matrix on the host, in float32: AVX2 has no float16."""

    def __init__(self, dim: int, capacity: int) -> None:
        self._matrix = np.zeros((max(1, capacity), dim), dtype=np.float32)
        self._size = 0

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Append rows; the room doubles when it is full."""
        end = self._size + len(vectors)
        if end > len(self._matrix):
            room = np.zeros((max(end, 2 * len(self._matrix)), self._matrix.shape[1]), dtype=np.float32)
            room[: self._size] = self._matrix[: self._size]
            self._matrix = room
        self._matrix[self._size : end] = vectors
        self._size = end

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Hits:
        """As promised by VectorIndex; `allowed` may be shorter than the matrix, and hides the rest."""
        return self.search_first(queries, k, self._size if allowed is None else len(allowed), allowed)

    def search_first(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Hits:
        """`search` among the first `num_rows` rows."""
        scores = np.asarray(queries, dtype=np.float32) @ self._matrix[:num_rows].T
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        places = np.broadcast_to(np.arange(num_rows), scores.shape)
        best, rows = top_rows(scores, places, min(k, num_rows))
        rows[np.isneginf(best)] = -1
        return best, rows

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors at `rows`."""
        return self._matrix[rows]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the matrix."""
        return self._matrix.nbytes


class FaissIndex(VectorIndex):
    """faiss on CPU over float16 codes: flat, or IVF for large segments."""

    def __init__(self, index: faiss.Index, probes: int) -> None:
        self._index = index
        self._lists = getattr(index, "nlist", 0)
        self.probes = probes
        self.exact = not self._lists
        self._chosen: tuple[NDArray[np.bool_], Any, int] | None = None

    @classmethod
    def build(cls, vectors: NDArray[np.float16], *, ivf: bool, probes: int) -> FaissIndex:
        """An index over `vectors` [n, D]; the same vectors give the same index."""
        n, dim = vectors.shape
        kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        index: Any
        if ivf:
            lists = max(1, min(int(4 * math.sqrt(n)), n // 39))
            quantizer = faiss.IndexFlatIP(dim)
            index = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, kind, metric, False)
            sample = np.random.default_rng(0).permutation(n)[: 64 * lists]
            index.train(vectors[np.sort(sample)].astype(np.float32))
        else:
            index = faiss.IndexScalarQuantizer(dim, kind, metric)
            index.train(np.zeros((1, dim), dtype=np.float32))
        for begin in range(0, n, ENCODE_ROWS):
            index.add(vectors[begin : begin + ENCODE_ROWS].astype(np.float32))
        return cls(index, probes)

    @classmethod
    def load(cls, path: Path, probes: int) -> FaissIndex:
        """An index that `save` wrote (only ever our own, checked by its checksum before)."""
        return cls(faiss.read_index(str(path)), probes)

    def save(self, path: Path) -> None:
        """Write the index; the caller flushes it."""
        faiss.write_index(self._index, str(path))

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Hits:
        """As promised by VectorIndex; an IVF reads all its lists rather than return too few."""
        selector, available = self._selector(allowed)
        k = min(k, available)
        if k == 0:
            return nothing(len(queries))
        hits = self._search(queries, k, selector, self.probes)
        if self._lists and (hits[1] < 0).any():
            hits = self._search(queries, k, selector, self._lists)
        return hits

    def _selector(self, allowed: NDArray[np.bool_] | None) -> tuple[Any, int]:
        """faiss' selector of the allowed rows, and how many they are; the last one made is kept."""
        if allowed is None:
            return None, self._index.ntotal
        known = self._chosen
        if known is None or known[0] is not allowed:
            library: Any = faiss
            bitmap = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            known = self._chosen = (allowed, bitmap, int(allowed.sum()))
        return known[1], known[2]

    def _search(self, queries: NDArray[np.float32], k: int, selector: Any, probes: int) -> Hits:
        library: Any = faiss  # its stubs lack what its wrappers accept
        params = None
        if self._lists:
            params = library.SearchParametersIVF(sel=selector, nprobe=min(probes, self._lists))
        elif selector is not None:
            params = library.SearchParameters(sel=selector)
        scores, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k, params=params)
        scores[rows < 0] = -math.inf
        return scores, rows

    @property
    def faiss_index(self) -> faiss.Index:
        """The index itself, to be copied to a GPU."""
        return self._index

    @property
    def memory_bytes(self) -> int:
        """Bytes of the codes, and of the centroids of an IVF."""
        total: int = self._index.ntotal * self._index.d * 2 + self._lists * self._index.d * 4
        return total


def growing_matrix(dim: int, capacity: int, device: str) -> MatrixIndex:
    """An empty matrix with room for `capacity` rows on `device`."""
    if device == "cpu":
        return HostMatrix(dim, capacity)
    from pipeline.store.gpu_index import DeviceMatrix  # torch takes seconds and 400 MB: only where it is used

    return DeviceMatrix(dim, capacity, device)


def device_index(index: FaissIndex, vectors: NDArray[np.float16], device: str) -> VectorIndex:
    """The index to search on `device`: on a GPU a plain float16 product beats faiss' flat index."""
    if device == "cpu":
        return index
    from pipeline.store.gpu_index import DeviceMatrix, FaissGpuIndex, require_device

    where = require_device(device)
    if not index.exact and hasattr(faiss, "StandardGpuResources"):
        return FaissGpuIndex(index, where, index.probes)
    matrix = DeviceMatrix(vectors.shape[1], len(vectors), device)
    for begin in range(0, len(vectors), ENCODE_ROWS):
        matrix.add(vectors[begin : begin + ENCODE_ROWS])
    return matrix


def nothing(num_questions: int) -> Hits:
    """What an index without allowed rows finds."""
    return np.zeros((num_questions, 0), dtype=np.float32), np.zeros((num_questions, 0), dtype=np.int64)
