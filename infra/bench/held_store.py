"""A shard's sealed segments and search without its files: for indexes too large to be ingested within a bench.

The segments, masks, searches and passages are the store's own code; only the log, the checkpoints and the
keyword index are not there, so dense searches alone can be asked.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.store.config import StoreConfig
from pipeline.store.core import ShardCore
from pipeline.store.manifest import Identity
from pipeline.store.sealed import SealedSegment
from pipeline.store.vector_index import ENCODE_ROWS, VectorIndex

CHUNKS_PER_ARTICLE = 4
START_MS = 1_767_225_600_000
_TEXT = (
    "The ministry said on Tuesday that the new bridge over the estuary would open in spring, two years late and "
    "a third over its budget, after the last of its cables had passed their tests. Drivers will pay a toll."
)


class HeldSegment(SealedSegment):
    """A sealed segment whose columns are in memory."""

    def __init__(
        self, number: int, vectors: NDArray[np.float16], index: VectorIndex, text: pa.Array | None = None
    ) -> None:
        rows = len(vectors)
        articles = -(-rows // CHUNKS_PER_ARTICLE)
        article = np.arange(rows) // CHUNKS_PER_ARTICLE
        first = np.arange(articles) * CHUNKS_PER_ARTICLE
        published_ms = START_MS + number * 86_400_000 + np.arange(articles)
        self.name = f"held-{number:03d}"
        self.num_rows, self.num_articles = rows, articles
        self._vectors, self._index = vectors, index
        self._chunks = {
            "chunk_id": pa.array(number * 10_000_000 + np.arange(rows), pa.int64()),
            "article": pa.array(article, pa.int32()),
            "ordinal": pa.array(np.arange(rows) % CHUNKS_PER_ARTICLE, pa.int32()),
            "text": pa.array([_TEXT] * rows) if text is None else text,
            "num_tokens": pa.array(np.full(rows, 48), pa.int32()),
            "start": pa.array(np.zeros(rows), pa.int32()),
            "end": pa.array(np.full(rows, len(_TEXT)), pa.int32()),
        }
        streams = [f"stream-{i % 16}" for i in range(articles)]
        self._articles = {
            "id": pa.array([f"{number}-{i}" for i in range(articles)]),
            "title": pa.array(["A bridge opens"] * articles),
            "stream": pa.array(streams),
            "source": pa.array(streams),
            "url": pa.nulls(articles, pa.string()),
            "published_us": pa.array(published_ms * 1_000, pa.int64()),
            "version_ms": pa.array(published_ms, pa.int64()),
            "first_chunk": pa.array(first, pa.int64()),
            "num_chunks": pa.array(np.minimum(CHUNKS_PER_ARTICLE, rows - first), pa.int32()),
        }
        self._load_fields()


def texts(rows: int) -> pa.Array:
    """The text column of a segment, to be shared by several."""
    return pa.array([_TEXT] * rows)


def held_core(segments: list[Any], config: StoreConfig, dim: int) -> ShardCore:
    """A shard's core over these segments, that can be searched by vector."""
    core = ShardCore.__new__(ShardCore)
    core.config = config
    core.identity = Identity(shard_index=0, num_shards=1, embedder="synthetic", dim=dim)
    core.view = threading.Lock()
    core.segments = segments
    core.checkpoint = SimpleNamespace(generation=1)  # type: ignore[assignment]
    core.lexical = SimpleNamespace(num_docs=sum(s.num_rows for s in segments))  # type: ignore[assignment]
    return core


def fill(index: Any, vectors: NDArray[np.float16]) -> Any:
    """Add rows to a matrix as opening a segment does."""
    for begin in range(0, len(vectors), ENCODE_ROWS):
        index.add(vectors[begin : begin + ENCODE_ROWS])
    return index
