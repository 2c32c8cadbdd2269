"""What `dysra bench search` searches: the store's own segments, one flat faiss index, LanceDB."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.bench.held_store import HeldSegment, held_core, texts
from infra.bench.vectors import DIM, clustered
from pipeline.store.config import StoreConfig
from pipeline.store.flat_peer import FlatPeer
from pipeline.store.growing import GrowingSegment
from pipeline.store.joined import SearchQueue
from pipeline.store.records import Chunk, SearchRequest
from pipeline.store.searching import candidates
from pipeline.store.segment import ArticleRow
from pipeline.store.vector_index import FaissIndex

K = 10
SEED = 1
PER_ARTICLE = 2
_ALONE = 4
_BUILD_S = 3_600.0
_SEARCH_S = 120.0
_TEXT = "The council voted on Tuesday to reopen the ferry to the northern islands before the summer."


def segment_files(rows: int, ivf_rows: int, work: Path) -> Iterator[tuple[int, int, Path]]:
    """First and last row of each segment, and the file of its index."""
    per_segment = min(StoreConfig().max_segment_rows, max(1, rows))
    for number, begin in enumerate(range(0, rows, per_segment)):
        yield begin, min(rows, begin + per_segment), work / f"store-{rows}-{number}-{ivf_rows}.faiss"


def build_indexes(rows: int, ivf_rows: int, work: Path) -> None:
    """Make the files of `segment_files` that are missing, on all cores: in a process of its own, for the one that
    is measured keeps to one thread a search."""
    if all(path.exists() for _, _, path in segment_files(rows, ivf_rows, work)):
        return
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "infra.bench.search_peers", str(rows), str(ivf_rows), str(work)]
    env = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    subprocess.run(command, env=env, check=True, timeout=_BUILD_S)


class Peer(Protocol):
    """Something that is searched while rows are added."""

    def add(self, vectors: NDArray[np.float16]) -> None: ...

    def search(self, query: NDArray[np.float32]) -> list[int]: ...


class Store:
    """A shard's segments: sealed ones with IVF as by default, and a growing one."""

    def __init__(
        self, vectors: NDArray[np.float16], ivf_rows: int, work: Path, *, joined: bool = True
    ) -> None:
        """Indexes are found in `work` (`build_indexes`)."""
        from pipeline.article import parse_article

        self._article = parse_article(
            {
                "id": "a",
                "published": "2026-01-02T00:00:00Z",
                "source": "Wire",
                "title": "Ferry",
                "text": _TEXT,
            }
        )
        config = StoreConfig()
        segments: list[Any] = []
        for number, (begin, end, path) in enumerate(segment_files(len(vectors), ivf_rows, work)):
            part = vectors[begin:end]
            index = FaissIndex.load(path, config.ivf_probes)
            segments.append(HeldSegment(number, part, index, texts(len(part))))
        self._growing = GrowingSegment("growing", DIM, config.seal_rows, "cpu")
        self._core = held_core([*segments, self._growing], config, DIM)
        self._next = 1 << 40
        self.queue = SearchQueue.on("cpu", partial(candidates, self._core))
        self._alone = None if joined else ThreadPoolExecutor(_ALONE)

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Append articles of two chunks, as an append does under the view's lock."""
        chunks = [Chunk(ordinal, _TEXT, 18, 0, len(_TEXT)) for ordinal in range(PER_ARTICLE)]
        for begin in range(0, len(vectors), PER_ARTICLE):
            part = vectors[begin : begin + PER_ARTICLE]
            ids = list(range(self._next, self._next + len(part)))
            self._next += len(part)
            with self._core.view:
                self._growing.add(ArticleRow(self._article), chunks[: len(part)], ids, part)

    def search(self, query: NDArray[np.float32]) -> list[int]:
        """Chunk ids of the passages."""
        request = SearchRequest(mode="dense", k=K, vectors=query[None])
        if self._alone is not None:
            found = self._alone.submit(candidates, self._core, request).result(_SEARCH_S)
        else:
            found = self.queue.ask(request)
        return [passage.chunk_id for passage in found.dense[0]]


class Flat:
    """One flat faiss index; readers and the writer take turns, for it must not be read while it grows.

    The writer goes first: a plain lock left it waiting without end beside eight clients.
    """

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self._turn = threading.Condition()
        self._busy = False
        self._writers = 0
        self._index = FlatPeer(DIM)
        for begin in range(0, len(vectors), 65_536):
            self._index.add(vectors[begin : begin + 65_536])

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Append rows."""
        with self._alone(writes=True):
            self._index.add(vectors)

    def search(self, query: NDArray[np.float32]) -> list[int]:
        """Rows."""
        with self._alone(writes=False):
            return [int(row) for row in self._index.search(query[None], K)[1][0]]

    @contextlib.contextmanager
    def _alone(self, *, writes: bool) -> Iterator[None]:
        with self._turn:
            self._writers += writes
            self._turn.wait_for(lambda: not self._busy and (writes or not self._writers))
            self._writers -= writes
            self._busy = True
        try:
            yield
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()


class Lance:
    """LanceDB in local mode, its table in a folder."""

    def __init__(self, vectors: NDArray[np.float16], folder: str) -> None:
        import lancedb
        import pyarrow as pa
        from lancedb.index import IvfFlat

        self._pa = pa
        self._next = 0
        database = lancedb.connect(folder)
        self._table = database.create_table("chunks", self._rows(vectors))
        if len(vectors) >= 10_000:
            lists = max(1, int(len(vectors) ** 0.5))
            index = IvfFlat(distance_type="dot", num_partitions=lists)
            self._table.create_index("vector", config=index)

    def _rows(self, vectors: NDArray[np.float16]) -> Any:
        pa = self._pa
        values = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        ids = pa.array(np.arange(self._next, self._next + len(vectors)))
        self._next += len(vectors)
        column = pa.FixedSizeListArray.from_arrays(values, DIM)
        return pa.table({"id": ids, "text": pa.array([_TEXT] * len(vectors)), "vector": column})

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Append rows as a new fragment."""
        self._table.add(self._rows(vectors))

    def search(self, query: NDArray[np.float32]) -> list[int]:
        """Ids."""
        asked: Any = self._table.search(query)
        found = asked.distance_type("dot").limit(K).to_list()
        return [int(row["id"]) for row in found]


def main() -> None:
    """Build what `build_indexes` asks for."""
    rows, ivf_rows, work = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    vectors = clustered(rows, SEED)
    for begin, end, path in segment_files(rows, ivf_rows, work):
        if not path.exists():
            ivf = 0 < ivf_rows <= end - begin
            index = FaissIndex.build(vectors[begin:end], ivf=ivf, probes=StoreConfig().ivf_probes)
            index.save(path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)


if __name__ == "__main__":
    main()
