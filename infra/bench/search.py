"""Searches beside a steady 200 articles a second, at 1, 8 and 64 clients, against flat faiss and LanceDB.

All hold the same synthetic vectors (`vectors.py`: shaped like real embeddings) and the same short texts, and
all are asked for the ten nearest by vector in this one process. The store is a shard's own segments and search
(`held_store.py`), searches that wait joined as in a shard (`store alone`: each by itself, four at a time); what
arrives goes to its growing segment. Its log, its files and its keyword index are not there, as the peers have
none. faiss: one flat index under a lock. LanceDB (PyPI, left out where it is not installed): its local mode, an
IVF built once over the rows of the start, later rows scanned. Recall is told against products of all rows.

With `work` the store's index is kept in that folder and found there by the next run (a million chunks: training
takes minutes on two cores).
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.bench.held_store import HeldSegment, held_core, texts
from infra.bench.measure import commit, environment
from infra.bench.vectors import DIM, clustered
from pipeline.errors import UsageError
from pipeline.store.flat_peer import FlatPeer
from pipeline.store.growing import GrowingSegment
from pipeline.store.joined import SearchQueue
from pipeline.store.records import Chunk, SearchRequest, StoreConfig
from pipeline.store.searching import candidates
from pipeline.store.segment import ArticleRow
from pipeline.store.vector_index import FaissIndex

K = 10
_PER_ARTICLE = 2
_ALONE = 4
_EXACT = 100
_TEXT = "The council voted on Tuesday to reopen the ferry to the northern islands before the summer."


class Peer(Protocol):
    """Something that is searched while rows are added."""

    def add(self, vectors: NDArray[np.float16]) -> None: ...

    def search(self, query: NDArray[np.float32]) -> list[int]: ...


class Store:
    """A shard's segments: sealed ones with IVF as by default, and a growing one."""

    def __init__(
        self, vectors: NDArray[np.float16], ivf_rows: int, work: Path | None = None, *, joined: bool = True
    ) -> None:
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
        per_segment = min(config.max_segment_rows, max(1, len(vectors)))
        segments: list[Any] = []
        for number, begin in enumerate(range(0, len(vectors), per_segment)):
            part = vectors[begin : begin + per_segment]
            kept = None if work is None else work / f"store-{len(vectors)}-{number}-{ivf_rows}.faiss"
            if kept is not None and kept.exists():
                index = FaissIndex.load(kept, config.ivf_probes)
            else:
                index = FaissIndex.build(part, ivf=0 < ivf_rows <= len(part), probes=config.ivf_probes)
            if kept is not None and not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                index.save(kept)
            segments.append(HeldSegment(number, part, index, texts(len(part))))
        self._growing = GrowingSegment("growing", DIM, config.seal_rows, "cpu")
        self._core = held_core([*segments, self._growing], config, DIM)
        self._next = 1 << 40
        self.queue = SearchQueue.on("cpu", partial(candidates, self._core))
        self._alone = None if joined else ThreadPoolExecutor(_ALONE)

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Append articles of two chunks, as an append does under the view's lock."""
        chunks = [Chunk(ordinal, _TEXT, 18, 0, len(_TEXT)) for ordinal in range(_PER_ARTICLE)]
        for begin in range(0, len(vectors), _PER_ARTICLE):
            part = vectors[begin : begin + _PER_ARTICLE]
            ids = list(range(self._next, self._next + len(part)))
            self._next += len(part)
            with self._core.view:
                self._growing.add(ArticleRow(self._article), chunks[: len(part)], ids, part)

    def search(self, query: NDArray[np.float32]) -> list[int]:
        """Chunk ids of the passages."""
        request = SearchRequest(mode="dense", k=K, vectors=query[None])
        if self._alone is not None:
            found = self._alone.submit(candidates, self._core, request).result()
        else:
            found = self.queue.ask(request)
        return [passage.chunk_id for passage in found.dense[0]]


class Flat:
    """One flat faiss index; readers and the writer take turns, for it must not be read while it grows."""

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self._lock = threading.Lock()
        self._index = FlatPeer(DIM)
        for begin in range(0, len(vectors), 65_536):
            self._index.add(vectors[begin : begin + 65_536])

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Append rows."""
        with self._lock:
            self._index.add(vectors)

    def search(self, query: NDArray[np.float32]) -> list[int]:
        """Rows."""
        with self._lock:
            return [int(row) for row in self._index.search(query[None], K)[1][0]]


class Lance:
    """LanceDB in local mode, its table in a folder."""

    def __init__(self, vectors: NDArray[np.float16], folder: str) -> None:
        import lancedb
        import pyarrow as pa

        self._pa = pa
        self._next = 0
        database = lancedb.connect(folder)
        self._table = database.create_table("chunks", self._rows(vectors))
        if len(vectors) >= 10_000:
            lists = max(1, int(len(vectors) ** 0.5))
            self._table.create_index(metric="dot", index_type="IVF_FLAT", num_partitions=lists)

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


def load(
    peer: Peer, clients: int, seconds: float, rate: float, questions: NDArray[np.float32]
) -> dict[str, Any]:
    """Clients that ask one after the other while articles arrive; how long searches and additions took."""
    stop = threading.Event()
    spent: list[float] = []
    failures: list[str] = []

    def ask(at: int) -> None:
        while not stop.is_set():
            at = (at + 13) % len(questions)
            started = time.perf_counter()
            try:
                peer.search(questions[at])
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}"[:120])
                return
            spent.append(time.perf_counter() - started)

    threads = [threading.Thread(target=ask, args=(i * 7,), daemon=True) for i in range(clients)]
    fresh = clustered(4_096, 99)
    waited: list[float] = []
    begun, done = time.perf_counter(), 0
    for thread in threads:
        thread.start()
    while (now := time.perf_counter() - begun) < seconds:
        due = int(now * rate)
        if due > done:
            rows = (np.arange(done, due).repeat(_PER_ARTICLE) * 2 + np.tile([0, 1], due - done)) % len(fresh)
            peer.add(fresh[rows])
            ended = time.perf_counter() - begun
            waited += [ended - number / rate for number in range(done, due)]
            done = due
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    lasted = time.perf_counter() - begun
    return {
        "clients": clients,
        "searches_per_s": round(len(spent) / lasted, 1),
        "p50_ms": round(float(np.percentile(spent, 50)) * 1e3, 2) if spent else None,
        "p99_ms": round(float(np.percentile(spent, 99)) * 1e3, 2) if spent else None,
        "articles_per_s": round(done / lasted, 1),
        "due_to_added_p99_ms": round(float(np.percentile(waited, 99)) * 1e3, 1) if waited else None,
        "failures": len(failures),
        "first_failure": failures[0] if failures else "",
    }


def nearest_rows(vectors: NDArray[np.float16], questions: NDArray[np.float32]) -> list[set[int]]:
    """The rows with the K largest products, by brute force in float32."""
    scores: list[NDArray[np.float32]] = []
    rows: list[NDArray[np.int64]] = []
    for begin in range(0, len(vectors), 131_072):
        part = questions @ vectors[begin : begin + 131_072].astype(np.float32).T
        best = np.argpartition(-part, min(K, part.shape[1]) - 1, axis=1)[:, :K]
        scores.append(np.take_along_axis(part, best, 1))
        rows.append(best + begin)
    order = np.argsort(-np.concatenate(scores, 1), axis=1)[:, :K]
    return [set(row) for row in np.take_along_axis(np.concatenate(rows, 1), order, 1).tolist()]


def run(
    articles: int = 500_000,
    seconds: float = 15.0,
    rate: float = 200.0,
    ivf_rows: int = 262_144,
    peers: str = "",
    clients: str = "1,8,64",
    work: str = "",
) -> dict[str, Any]:
    """`articles` of two chunks each held from the start (500,000: a million chunks); `peers` names those to run."""
    vectors = clustered(articles * _PER_ARTICLE, 1)
    generator = np.random.default_rng(3)
    questions = vectors[generator.integers(0, len(vectors), 256)].astype(np.float32)
    questions += 0.02 * generator.standard_normal(questions.shape, dtype=np.float32)
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    exact = nearest_rows(vectors, questions[:_EXACT])
    counts = [int(count) for count in clients.split(",")]
    kept = Path(work) if work else None
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dysra-lance-") as folder:
        makers: dict[str, Callable[[], Peer]] = {
            "faiss flat": lambda: Flat(vectors),
            "store": lambda: Store(vectors, ivf_rows, kept),
            "store alone": lambda: Store(vectors, ivf_rows, kept, joined=False),
        }
        if importlib.util.find_spec("lancedb") is not None:
            makers["lancedb"] = lambda: Lance(vectors, folder)
        chosen = peers.split(",") if peers else list(makers)
        if unknown := set(chosen) - set(makers):
            raise UsageError(f"peers: {', '.join(sorted(unknown))} not known; here are {', '.join(makers)}")
        for name in chosen:
            started = time.perf_counter()
            peer = makers[name]()
            built_s = time.perf_counter() - started
            found = [set(peer.search(question)) for question in questions[:_EXACT]]
            recall = sum(len(a & b) for a, b in zip(exact, found, strict=True)) / (K * len(found))
            for count in counts:
                before = _turns(peer)
                row = load(peer, count, seconds, rate, questions)
                rows.append({"index": name, "chunks": len(vectors), **row, "recall_at_10": round(recall, 4),
                             "build_s": round(built_s, 1), **_joined(before, _turns(peer))})  # fmt: skip
            del peer
    return {
        "bench": "search",
        "device": environment()["device"],
        "commit": commit(),
        "rows": rows,
        "ratios": _ratios(rows, counts),
        "cores": os.cpu_count(),
    }


def _turns(peer: Peer) -> tuple[int, int]:
    queue = peer.queue if isinstance(peer, Store) else None
    return (0, 0) if queue is None else (queue.num_requests, queue.num_batches)


def _joined(before: tuple[int, int], after: tuple[int, int]) -> dict[str, float]:
    """How many searches were made as one, in the mean."""
    made = after[1] - before[1]
    return {"joined": round((after[0] - before[0]) / made, 2)} if made else {}


def _ratios(rows: list[dict[str, Any]], counts: list[int]) -> dict[str, float]:
    """The store's p99 over that of each other index, by the number of clients."""
    p99 = {(row["index"], row["clients"]): row["p99_ms"] for row in rows}
    ratios = {}
    for count in counts:
        for name in dict.fromkeys(row["index"] for row in rows):
            if name != "store" and p99.get((name, count)) and p99.get(("store", count)):
                key = f"search_p99_over_{name.replace(' ', '_')}_{count}_clients"
                ratios[key] = round(p99["store", count] / p99[name, count], 4)
    return ratios
