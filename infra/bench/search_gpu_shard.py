"""A real shard on a device: every state that deletes, updates and expiry bring it to, against brute force; and
searches while articles arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.bench.vectors import DIM, clustered
from pipeline.article import Article, to_ms
from pipeline.store.config import StoreConfig
from pipeline.store.ids import chunk_ids
from pipeline.store.records import Chunk, Coordinate, Delete, SearchRequest, StoreRecord, Upsert
from pipeline.store.shard import Shard

_K = 10
_CHUNKS = 4
_START = datetime(2026, 1, 1, tzinfo=UTC)
_DAY_MS = 86_400_000
Note = Callable[[dict[str, Any]], None]


class Publisher:
    """Appends made-up articles to a shard and remembers what must be visible."""

    def __init__(self, shard: Shard, chunks: int, seed: int = 3) -> None:
        self.shard = shard
        self.offset = 0
        self.living: dict[str, NDArray[np.float16]] = {}
        self.published: dict[str, int] = {}
        self.day: dict[str, float] = {}
        self._pool = clustered(min(1 << 16, 2 * chunks), seed)
        self._at = 0

    def vectors(self, count: int) -> NDArray[np.float16]:
        """The next rows of the pool, each time with a little noise of its own."""
        at = np.arange(self._at, self._at + count) % len(self._pool)
        noise = np.random.default_rng(self._at).standard_normal((count, DIM), dtype=np.float32)
        self._at += count
        rows = self._pool[at].astype(np.float32) + 0.02 * noise
        unit: NDArray[np.float16] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
        return unit

    def upsert(self, name: str, day: float, version: int = 0) -> Upsert:
        """A version of an article with chunks of its own."""
        published = _START + timedelta(days=day)
        updated = published + timedelta(seconds=version) if version else None
        text = f"{name} version {version}: the bridge over the estuary opens"
        vectors = self.vectors(_CHUNKS)
        self.living[name] = vectors
        self.published[name], self.day[name] = to_ms(published), day
        self.offset += 1
        return Upsert(
            coordinate=Coordinate("news", 0, self.offset - 1, 1),
            article=Article(
                id=name, published=published, source="Wire", title="A bridge opens", text=text,
                stream="wire", updated=updated,
            ),
            chunks=[Chunk(o, text, 12, 0, len(text)) for o in range(_CHUNKS)],
            vectors=vectors,
        )  # fmt: skip

    def delete(self, name: str) -> Delete:
        """A withdrawal."""
        self.living.pop(name, None)
        self.offset += 1
        return Delete(coordinate=Coordinate("news", 0, self.offset - 1, 1), article_id=name)

    def put(self, records: list[StoreRecord]) -> None:
        """Append in batches of 500 records."""
        for begin in range(0, len(records), 500):
            part = records[begin : begin + 500]
            self.shard.append(part, {("news", 0): part[-1].coordinate.offset + 1}, 1)

    def check(self, state: str, note: Note, num_questions: int = 64) -> None:
        """The shard's ten best of each question against brute force in float32 over what should be there."""
        names = list(self.living)
        matrix = np.concatenate([self.living[name] for name in names]).astype(np.float32)
        ids = np.array([i for name in names for i in chunk_ids(name, _CHUNKS)], dtype=np.int64)
        generator = np.random.default_rng(len(names))
        questions = matrix[generator.integers(0, len(matrix), num_questions)]
        questions = questions + 0.02 * generator.standard_normal(questions.shape, dtype=np.float32)
        questions /= np.linalg.norm(questions, axis=1, keepdims=True)
        scores = questions @ matrix.T
        best = np.argpartition(-scores, _K, axis=1)[:, :_K]
        wanted = np.sort(np.take_along_axis(scores, best, 1), axis=1)[:, ::-1]
        found = self.shard.candidates(SearchRequest(mode="dense", k=_K, vectors=questions)).dense
        right = sum(
            len({p.chunk_id for p in got} & set(ids[rows].tolist()))
            for got, rows in zip(found, best, strict=True)
        )
        known = set(ids.tolist())
        given = np.array([[p.score for p in got] for got in found], dtype=np.float32)
        note(
            {
                "stage": "proof",
                "state": state,
                "living_chunks": len(ids),
                "segments": len(self.shard.stats()["segments"]),
                "questions": num_questions,
                "recall_at_10": right / (_K * num_questions),
                "worst_score_gap": float(np.abs(given - wanted).max()),
                "deleted_or_expired_returned": sum(p.chunk_id not in known for got in found for p in got),
            }
        )


def _config(folder: Path, device: str, chunks: int) -> StoreConfig:
    rows = max(128, min(65_536, chunks // 6))
    return StoreConfig(
        path=folder, device=device, seal_rows=rows, min_seal_rows=rows, window_hours=1e6, ivf_rows=0,
        retention_days=30.0, max_segment_rows=1 << 20, lexical_commit_ms=1_000.0, verify=False,
    )  # fmt: skip


def proof(folder: Path, chunks: int, device: str, note: Note) -> None:
    """Take a real shard through its states; after each its answers are compared with brute force."""
    config = _config(folder, device, chunks)
    shard = Shard.open(folder, config, 0, 1, "synthetic", DIM)
    publisher = Publisher(shard, chunks)
    articles = chunks // _CHUNKS
    small = max(1, min(articles // 20, config.seal_rows // _CHUNKS // 2))
    names = [f"article-{i}" for i in range(articles)]
    publisher.put([publisher.upsert(name, 20 * i / articles) for i, name in enumerate(names[:small])])
    publisher.check("growing only", note)
    publisher.put([publisher.delete(name) for name in names[: small // 4]])
    publisher.check("growing, a quarter deleted", note)
    started = time.perf_counter()
    publisher.put(
        [publisher.upsert(name, 20 * (small + i) / articles) for i, name in enumerate(names[small:])]
    )
    shard.seal()
    note({"stage": "proof", "state": "filled", "seconds": time.perf_counter() - started, "chunks": chunks})
    publisher.check("sealed", note)
    generator = np.random.default_rng(9)
    gone = [name for name in names if name in publisher.living and generator.random() < 0.1]
    publisher.put([publisher.delete(name) for name in gone])
    publisher.check("a tenth deleted", note)
    changed = [name for name in names if name in publisher.living and generator.random() < 0.1]
    publisher.put([publisher.upsert(name, publisher.day[name], version=60) for name in changed])
    publisher.check("a tenth updated", note)
    early = [name for name in names[: articles // 5] if name in publisher.living]
    publisher.put([publisher.delete(name) for name in early if generator.random() < 0.8])
    publisher.check("oldest fifth mostly deleted", note)
    shard.compact()
    publisher.check("compacted", note)
    shard.close()
    publisher.shard = shard = Shard.open(folder, config, 0, 1, "synthetic", DIM)
    publisher.check("opened anew", note)
    now_ms = to_ms(_START) + 38 * _DAY_MS
    kept = {s["name"] for s in shard.stats()["segments"] if s["newest_ms"] >= now_ms - 30 * _DAY_MS}
    shard.expire(now_ms)
    alive = {name for name in publisher.living if shard.known([name])[name] is not None}
    expired = {name for name in publisher.living if name not in alive}
    late = [name for name in expired if publisher.published[name] >= now_ms - 30 * _DAY_MS]
    for name in expired:
        del publisher.living[name]
    note({"stage": "proof", "state": "expired", "articles_expired": len(expired), "expired_too_early": len(late),
          "segments_kept": len(kept)})  # fmt: skip
    publisher.check("segments expired", note)
    shard.close()


def live(folder: Path, chunks: int, device: str, note: Note, seconds: float = 10.0, rate: int = 200) -> None:
    """Search with 1, 8 and 64 threads while articles are appended at a steady rate; what each append waited."""
    shard = Shard.open(folder, _config(folder, device, chunks), 0, 1, "synthetic", DIM)
    publisher = Publisher(shard, chunks)
    publisher.put([publisher.upsert(f"old-{i}", 1.0) for i in range(chunks // _CHUNKS)])
    for clients in (1, 8, 64):
        searchers = Searchers(shard, clients)
        waited: list[float] = []
        begun, done = time.perf_counter(), 0
        while (now := time.perf_counter() - begun) < seconds:
            due = int(now * rate)
            if due > done:
                publisher.put([publisher.upsert(f"new-{clients}-{i}", 2.0) for i in range(done, due)])
                ended = time.perf_counter() - begun
                # Each article was due at its own moment of the steady rate.
                waited += [ended - i / rate for i in range(done, due)]
                done = due
            time.sleep(0.02)
        searches = searchers.stop()
        note(
            {
                "stage": "live",
                "clients": clients,
                "chunks": chunks,
                "appended_per_s": done / seconds,
                "searches_per_s": len(searches) / seconds,
                "search_p50_ms": float(np.percentile(searches, 50) * 1e3),
                "search_p99_ms": float(np.percentile(searches, 99) * 1e3),
                "due_to_searchable_p50_ms": float(np.percentile(waited, 50) * 1e3),
                "due_to_searchable_p99_ms": float(np.percentile(waited, 99) * 1e3),
            }
        )
    shard.close()


class Searchers:
    """Threads that search one after the other until they are stopped."""

    def __init__(self, shard: Shard, clients: int) -> None:
        self._shard = shard
        self._questions = clustered(256, 11).astype(np.float32)
        self._seconds: list[float] = []
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[float]:
        """End them; the seconds of each search. Raises what one of them met."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=30)
        if self._failure is not None:
            raise self._failure
        return self._seconds

    def _run(self, at: int) -> None:
        while not self._stopping.is_set():
            at = (at + 7) % 256
            one = SearchRequest(mode="dense", k=_K, vectors=self._questions[at : at + 1])
            started = time.perf_counter()
            try:
                self._shard.candidates(one)
            except Exception as error:
                self._failure = error
                return
            self._seconds.append(time.perf_counter() - started)
