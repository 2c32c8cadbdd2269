"""Small articles, chunks and shards for the store's tests; the same arguments give the same bytes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.article import Article
from pipeline.store import Chunk, Coordinate, Delete, Link, SearchRequest, Shard, StoreConfig, Upsert

DIM = 8
TOPIC = "news"
EMBEDDER = "test-embedder"
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_MS = 86_400_000


def config(**fields: Any) -> StoreConfig:
    """Small segments, so that a few articles seal, merge and compact."""
    defaults = {"seal_rows": 16, "min_seal_rows": 16, "merge_segments": 3, "lexical_commit_ms": 0.0}
    return StoreConfig(**{**defaults, **fields})


def open_shard(root: Path, **fields: Any) -> Shard:
    """Shard 0 of 1 under `root`."""
    return Shard.open(root, config(**fields), 0, 1, EMBEDDER, DIM)


def article(
    name: str, version: int = 0, *, stream: str = "wire", source: str = "Wire", hours: float = 0.0
) -> Article:
    """An article published `hours` after the start and updated `version` seconds later."""
    published = START + timedelta(hours=hours)
    return Article(
        id=name,
        published=published,
        source=source,
        title=f"Title of {name}",
        text=f"{name} says word{version} and marker{name}",
        stream=stream,
        updated=published + timedelta(seconds=version) if version else None,
        topics=("a", "b"),
        url=f"https://example.org/{name}",
    )


def vectors(name: str, version: int, num_chunks: int, dim: int = DIM) -> np.ndarray:
    """Unit vectors that depend on nothing but the arguments."""
    generator = np.random.default_rng(xxhash.xxh3_64_intdigest(f"{name}/{version}".encode()))
    rows = generator.standard_normal((num_chunks, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def at(offset: int, partition: int = 0) -> Coordinate:
    """A coordinate of the test topic."""
    return Coordinate(TOPIC, partition, offset, 1_000 + offset)


def upsert(
    name: str, offset: int, version: int = 0, num_chunks: int = 2, partition: int = 0, **fields: Any
) -> Upsert:
    """A stored article whose chunks say which version they are of."""
    value = article(name, version, **fields)
    chunks = [
        Chunk(ordinal, f"{value.text} part{ordinal}", 5, ordinal, ordinal + 5)
        for ordinal in range(num_chunks)
    ]
    return Upsert(
        coordinate=at(offset, partition),
        article=value,
        chunks=chunks,
        vectors=vectors(name, version, num_chunks),
        signature=f"sig-{name}-{version}".encode(),
    )


def delete(name: str, offset: int) -> Delete:
    """A withdrawal."""
    return Delete(coordinate=at(offset), article_id=name)


def link(name: str, offset: int, canonical: str, version: int = 0, **fields: Any) -> Link:
    """A near-duplicate."""
    return Link(
        coordinate=at(offset),
        article=article(name, version, **fields),
        canonical_id=canonical,
        similarity=0.9,
    )


def put(shard: Shard, *records: Any, epoch: int = 1) -> tuple[str, ...]:
    """Append records of partition 0, through the last of them; returns the outcomes."""
    through = {(TOPIC, 0): max(record.coordinate.offset for record in records) + 1}
    return shard.append(list(records), through, epoch).outcomes


def near(name: str, version: int = 0, k: int = 3, **filters: Any) -> SearchRequest:
    """A dense question at the first chunk of an article."""
    return SearchRequest(mode="dense", k=k, vectors=vectors(name, version, 1).astype(np.float32), **filters)


def says(text: str, k: int = 3, **filters: Any) -> SearchRequest:
    """A keyword question."""
    return SearchRequest(mode="bm25", k=k, texts=[text], **filters)


def found(shard: Shard, request: SearchRequest) -> list[tuple[str, int]]:
    """Article ids and ordinals of the first question's list."""
    candidates = shard.candidates(request)
    passages = candidates.dense[0] if request.mode == "dense" else candidates.bm25[0]
    return [(passage.article_id, passage.ordinal) for passage in passages]


def segment_names(shard: Shard) -> list[str]:
    """The sealed segments in the shard's order."""
    return [segment["name"] for segment in shard.stats()["segments"]]


def crash(shard: Shard) -> None:
    """Let go of files and locks as a killed process does: nothing is flushed or committed."""
    core = shard._core
    with core.maintenance:
        core.lexical._writer.rollback()
        core.lexical._close_writer()
        core.wal.close()
        core.lock.release()
        shard._closed = True
