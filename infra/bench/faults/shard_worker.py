"""A process that owns one shard and does what it is told through a pipe; it may be killed at any step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas  # noqa: F401  pyarrow imports it at the first segment, which would cost every process a second
import xxhash

from infra.bench.faults.news import COMMON_WORD, Published
from infra.bench.faults.steps import Steps
from pipeline.log import configure_logging
from pipeline.store import (
    Chunk,
    Coordinate,
    DeadLetter,
    Delete,
    Link,
    SearchRequest,
    StoreConfig,
    StoreRecord,
    Upsert,
)
from pipeline.store.shard import Shard

DIM = 16
TOPIC = "faults"
EMBEDDER = "faults-vectors"
PARTITION = (TOPIC, 0)
CHUNK_WORDS = 16
_COMMIT_S = 0.025
"""A little longer than an appended article may wait for keyword search here."""


def store_record(record: Published) -> StoreRecord:
    """What ingest would append for a record: chunks of a few words, vectors drawn from their text."""
    at = Coordinate(TOPIC, 0, record.number, 1_000 + record.number)
    if record.kind == "bad":
        return DeadLetter(coordinate=at, reason="not_json")
    if record.article is None:
        return Delete(coordinate=at, article_id=record.article_id)
    if record.canonical is not None:
        return Link(coordinate=at, article=record.article, canonical_id=record.canonical, similarity=1.0)
    words = record.article.text.split()
    spans = [words[begin : begin + CHUNK_WORDS] for begin in range(0, len(words), CHUNK_WORDS)]
    texts = [f"{COMMON_WORD} {' '.join(span)}" for span in spans]
    chunks = [Chunk(number, text, len(text.split()), 0, len(text)) for number, text in enumerate(texts)]
    return Upsert(
        coordinate=at,
        article=record.article,
        chunks=chunks,
        vectors=np.stack([_vector(text) for text in texts]),
        signature=record.article_id.encode(),
    )


def serve(root: str, config: StoreConfig, pipe: Connection, armed: int) -> None:
    """Open the shard and work until told to end; what goes wrong is reported by name, not hidden."""
    configure_logging("CRITICAL", json_lines=True)
    steps = Steps()
    steps.install()
    steps.arm(armed)
    began = time.perf_counter()
    try:
        shard = Shard.open(Path(root), config, 0, 1, EMBEDDER, DIM)
    except Exception as error:
        pipe.send(("refused", type(error).__name__, str(error)))
        return
    steps.arm(0)
    pipe.send(("open", shard.offsets().get(PARTITION, 0), time.perf_counter() - began))
    while True:
        command, armed, arguments = pipe.recv()
        steps.arm(armed)
        try:
            reply = _COMMANDS[command](shard, *arguments)
        except Exception as error:
            pipe.send(("failed", type(error).__name__, str(error)))
            continue
        finally:
            steps.arm(0)
        pipe.send(("done", reply, steps.taken))
        if command == "close":
            return


def _append(shard: Shard, records: Sequence[Published], epoch: int, since: int | None) -> Any:
    if not records:
        return shard.append([], {PARTITION: 0}, epoch).outcomes
    through = {PARTITION: records[-1].number + 1}
    known = None if since is None else {PARTITION: since}
    return shard.append([store_record(record) for record in records], through, epoch, known).outcomes


def _dump(shard: Shard, ids: Sequence[str]) -> dict[str, Any]:
    """Everything a reader can see of the shard, as plain values."""
    articles = {}
    for article_id in ids:
        found = shard.article(article_id)
        if found is not None:
            articles[article_id] = (
                "deleted" if found.deleted else "linked" if found.canonical_id else "live",
                found.version_ms,
                found.article,
                found.canonical_id,
                found.num_chunks,
            )
    time.sleep(_COMMIT_S)
    every = shard.stats()["live_chunks"] + 500
    dense = SearchRequest(mode="dense", k=every, vectors=_vector("x").astype(np.float32)[None])
    words = SearchRequest(mode="bm25", k=every, texts=[COMMON_WORD])
    return {
        "articles": articles,
        "dense": [(p.chunk_id, p.article_id, p.version_ms) for p in shard.candidates(dense).dense[0]],
        "bm25": [(p.chunk_id, p.article_id, p.version_ms) for p in shard.candidates(words).bm25[0]],
        "ledger": shard.ledger().total().to_dict(),
        "offset": shard.offsets().get(PARTITION, 0),
        "keyword_chunks": shard.stats()["keyword_chunks"],
    }


def _vector(text: str) -> np.ndarray[Any, np.dtype[np.float16]]:
    row = np.random.default_rng(xxhash.xxh3_64_intdigest(text.encode())).standard_normal(DIM)
    unit: np.ndarray[Any, np.dtype[np.float16]] = (row / np.linalg.norm(row)).astype(np.float16)
    return unit


_COMMANDS: dict[str, Any] = {
    "append": _append,
    "dump": _dump,
    "seal": lambda shard: shard.seal(),
    "compact": lambda shard: shard.compact(),
    "maintain": lambda shard, now_ms: shard.maintain(now_ms),
    "snapshot": lambda shard, target: str(shard.snapshot(Path(target))),
    "offsets": lambda shard: shard.offsets().get(PARTITION, 0),
    "close": lambda shard: shard.close(),
}
