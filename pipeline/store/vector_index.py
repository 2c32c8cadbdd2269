"""Nearest vectors by inner product: one interface, on CPU by faiss and on GPU by torch (or faiss for IVF).

`allowed` is honoured exactly by each: faiss on CPU takes a selector; torch masks the scores; faiss on GPU
ignores selectors without a word, so there the search fetches more, and filters afterwards.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.store.segment import top_rows

Hits = tuple[NDArray[np.float32], NDArray[np.int64]]
_MAX_GPU_FETCH = 2_048
_ENCODE_ROWS = 16_384


class VectorIndex(ABC):
    """An index over the rows 0 to n - 1."""

    exact: bool = True

    @abstractmethod
    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Hits:
        """Scores and rows [Q, <= k], best first; row -1 (score -inf) where fewer than k are allowed."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes held, on the host or the device."""


class MatrixIndex(VectorIndex):
    """A preallocated matrix and brute force: float32 on CPU (AVX2 has no float16), float16 on GPU."""

    def __init__(self, dim: int, capacity: int, device: str) -> None:
        self._device = require_device(device)
        dtype = torch.float32 if self._device.type == "cpu" else torch.float16
        self._matrix = torch.zeros((max(1, capacity), dim), dtype=dtype, device=self._device)
        self._size = 0

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
        return self.search_first(queries, k, n, allowed)

    def search_first(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Hits:
        """`search` among the first `num_rows` rows."""
        with torch.inference_mode():
            matrix = self._matrix[:num_rows]
            questions = torch.from_numpy(np.ascontiguousarray(queries)).to(self._device, matrix.dtype)
            scores = (questions @ matrix.T).float()
            if allowed is not None:
                hidden = torch.from_numpy(~allowed).to(self._device)
                scores.masked_fill_(hidden, -math.inf)
            best, rows = scores.topk(min(k, num_rows), dim=1)
            found, places = best.cpu().numpy(), rows.cpu().numpy()
        places[np.isneginf(found)] = -1
        return found, places

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors at `rows`."""
        return self._matrix[torch.from_numpy(rows).to(self._device)].float().cpu().numpy()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the matrix."""
        return self._matrix.numel() * self._matrix.element_size()


class FaissIndex(VectorIndex):
    """faiss on CPU over float16 codes: flat, or IVF for large segments."""

    def __init__(self, index: faiss.Index, probes: int) -> None:
        self._index = index
        self._lists = getattr(index, "nlist", 0)
        self._probes = probes
        self.exact = not self._lists

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
        for begin in range(0, n, _ENCODE_ROWS):
            index.add(vectors[begin : begin + _ENCODE_ROWS].astype(np.float32))
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
        available = self._index.ntotal if allowed is None else int(allowed.sum())
        k = min(k, available)
        if k == 0:
            return _nothing(len(queries))
        hits = self._search(queries, k, allowed, self._probes)
        if self._lists and (hits[1] < 0).any():
            hits = self._search(queries, k, allowed, self._lists)
        return hits

    def _search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, probes: int
    ) -> Hits:
        library: Any = faiss  # its stubs lack what its wrappers accept
        selector = params = None
        if allowed is not None:
            selector = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
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

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Hits:
        """As promised by VectorIndex; what the GPU cannot fetch any more is searched on the host."""
        available = self._index.ntotal if allowed is None else int(allowed.sum())
        k = min(k, available)
        if k == 0:
            return _nothing(len(queries))
        fetch = k if allowed is None else int(k * self._index.ntotal / available) + 16
        self._index.nprobe = self._probes
        while fetch <= _MAX_GPU_FETCH:
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


def device_index(index: FaissIndex, vectors: NDArray[np.float16], device: str) -> VectorIndex:
    """The index to search on `device`: on a GPU a plain float16 product beats faiss' flat index."""
    where = require_device(device)
    if where.type == "cpu":
        return index
    if not index.exact and hasattr(faiss, "StandardGpuResources"):
        return FaissGpuIndex(index, where, index._probes)
    matrix = MatrixIndex(vectors.shape[1], len(vectors), device)
    for begin in range(0, len(vectors), _ENCODE_ROWS):
        matrix.add(vectors[begin : begin + _ENCODE_ROWS])
    return matrix


def require_device(device: str) -> torch.device:
    """The torch device; a GPU that is not there is an error that says what to do."""
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ValueError(f"store device is {device!r}; allowed: cpu, cuda, cuda:0, …") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"store device is {device!r}, but torch sees no GPU; set store.device to cpu")
    return where


def _nothing(num_questions: int) -> Hits:
    return np.zeros((num_questions, 0), dtype=np.float32), np.zeros((num_questions, 0), dtype=np.int64)
