"""Nearest vectors on a GPU: a float16 product by torch, and faiss for IVF.

faiss on a GPU ignores id selectors without a word, so there the search fetches more, and filters afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.store.segment import top_rows
from pipeline.store.vector_index import FaissIndex, Hits, MatrixIndex, VectorIndex, nothing

_MAX_GPU_FETCH = 2_048


class DeviceMatrix(MatrixIndex):
    """A matrix of float16 on a GPU (of float32 on a torch device that is a CPU)."""

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
            return nothing(len(queries))
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


def require_device(device: str) -> torch.device:
    """The torch device; a GPU that is not there is an error that says what to do."""
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ValueError(f"store device is {device!r}; allowed: cpu, cuda, cuda:0, …") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"store device is {device!r}, but torch sees no GPU; set store.device to cpu")
    return where
