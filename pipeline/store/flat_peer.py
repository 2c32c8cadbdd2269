"""A bare flat faiss index: what the store's search is compared with, and nothing else uses."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

VERSION = f"{faiss.__version__}{' gpu' if hasattr(faiss, 'StandardGpuResources') else ''}"


class FlatPeer:
    """One flat index over all vectors, by inner product; on a GPU in float16."""

    def __init__(self, dim: int, device: str = "cpu") -> None:
        library: Any = faiss
        self._resources: Any = None
        if device.startswith("cuda"):
            self._resources = library.StandardGpuResources()
            self._resources.setTempMemory(512 << 20)
            config = library.GpuIndexFlatConfig()
            config.useFloat16 = True
            self._index = library.GpuIndexFlatIP(self._resources, dim, config)
        else:
            self._index = library.IndexFlatIP(dim)

    def add(self, vectors: NDArray[Any]) -> None:
        """Append rows; a GPU index copies itself at every call."""
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows [Q, k]."""
        scores, rows = self._index.search(queries, k)
        return scores, rows
