"""The second half of ingest: vectors in hand, batches become durable on every shard, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from actors.delays import Delays
from actors.ingest_prepare import Batch, Item, Persist
from actors.ingest_spec import Assignment, IngestSpec
from actors.metrics import metric
from actors.remote import Outage, call
from actors.shard import Collision
from actors.store_client import StoreClient
from models.embed.none import IDENTITY as NO_EMBEDDING
from pipeline.store import (
    AppendResult,
    ChunkIdCollision,
    DeadLetter,
    Delete,
    Link,
    StoreRecord,
    Upsert,
)
from pipeline.store.wire import pack_records

_APPEND_TIMEOUT_S = 120.0
_EMBED_TIMEOUT_S = 600.0
_COUNTED = {
    "stored": "stored",
    "deleted": "deleted",
    "dead_lettered": "dead_lettered",
    "linked": "duplicates",
    "same_version": "duplicates",
    "older": "duplicates",
}


class Appender:
    """Appends batches to all shards; each shard also learns how far every partition has been read."""

    def __init__(
        self,
        spec: IngestSpec,
        assignment: Assignment,
        client: StoreClient,
        put_aside: Callable[[Item, str, str], None],
        persist: Persist[Any],
    ) -> None:
        self._topic = spec.kafka.topic
        self._epoch = assignment.epoch
        self._client = client
        self._put_aside = put_aside
        self._persist = persist
        self._has = [
            {(self._topic, partition): offset for partition, offset in durable.items()}
            for durable in assignment.durable
        ]
        """What each shard is known to have: one that has less has lost it, and says so."""
        self.embeds = client.embedder_identity != NO_EMBEDDING
        """Whether vectors are made at all; without embedding all are zero, and no embedder need be asked."""
        self.delays = Delays()
        self.num_chunks = 0

    def request_vectors(self, batch: Batch) -> None:
        """Ask an embedder; the reply is waited for later, while other batches are prepared."""
        if batch.num_texts and self.embeds:
            batch.ref = self._client.next_embedder().encode.remote(batch.texts())

    def vectors(self, batch: Batch) -> np.ndarray[Any, np.dtype[np.float16]]:
        """float16 [texts, D]; asks another time where the embedder died meanwhile."""
        if not batch.num_texts or not self.embeds:
            return np.zeros((batch.num_texts, self._client.dim), dtype=np.float16)

        def attempt() -> Any:
            if batch.ref is None:
                self.request_vectors(batch)
            try:
                return call(batch.ref, _EMBED_TIMEOUT_S)
            except Outage:
                batch.ref = None
                self._client.forget_handles()
                raise
            except (
                RuntimeError
            ) as error:  # a model or device that fails is an outage, never the article's fault
                batch.ref = None
                raise ConnectionError(f"embedding failed: {error}") from None

        result: np.ndarray[Any, np.dtype[np.float16]] = self._persist(attempt, "the embedder")
        return result

    def append(self, batches: list[Batch]) -> dict[int, int]:
        """Make batches durable and searchable on every shard; the next offset of each partition."""
        placed = [self._records(batch) for batch in batches]
        through: dict[int, int] = {}
        for batch in batches:
            through.update(batch.through)
        while True:
            try:
                self._append_all(placed, through)
                break
            except ChunkIdCollision as error:
                placed = [self._without(rows, error) for rows in placed]
        searchable_ms = time.time() * 1_000
        for rows in placed:
            for item, _ in rows:
                if item.record.timestamp_ms <= 0:
                    continue
                delay_ms = max(0.0, searchable_ms - item.record.timestamp_ms)
                if item.article is not None and item.canonical_id is None and not item.settled:
                    self.delays.add(delay_ms)
                    metric("published_to_searchable_ms").observe(delay_ms)
        return through

    def _records(self, batch: Batch) -> list[tuple[Item, StoreRecord]]:
        vectors = self.vectors(batch)
        rows: list[tuple[Item, StoreRecord]] = []
        at = 0
        for item in batch.items:
            if item.done:
                at += len(item.texts)
                continue
            rows.append((item, _store_record(item, vectors[at : at + len(item.texts)])))
            at += len(item.texts)
        return rows

    def _append_all(self, placed: list[list[tuple[Item, StoreRecord]]], through: dict[int, int]) -> None:
        parts: list[list[StoreRecord]] = [[] for _ in range(self._client.num_shards)]
        for rows in placed:
            for item, record in rows:
                parts[item.shard].append(record)
        offsets = {(self._topic, partition): offset for partition, offset in through.items()}
        waiting = {shard: pack_records(records) for shard, records in enumerate(parts)}

        def attempt() -> None:
            refs = {
                shard: self._client.shard_handle(shard).append.remote(
                    records,
                    offsets,
                    self._epoch,
                    {p: at for p, at in self._has[shard].items() if p in offsets},
                )
                for shard, records in waiting.items()
            }
            outage: BaseException | None = None
            collision: Collision | None = None
            for shard, ref in refs.items():
                try:
                    result = call(ref, _APPEND_TIMEOUT_S)
                    if isinstance(result, Collision):
                        collision = result
                        continue
                    self._count(result)
                    self._has[shard].update(offsets)
                    del waiting[shard]
                except Outage as error:
                    outage = error
                    self._client.forget_handles()
            if collision is not None:
                raise ChunkIdCollision(collision.message, collision.article_id)
            if outage is not None:
                raise outage

        self._persist(attempt, "a shard")

    def _count(self, result: AppendResult) -> None:
        self.num_chunks += result.num_chunks
        for outcome in set(result.outcomes):
            if outcome in _COUNTED:
                metric("records_total").inc(result.count(outcome), {"outcome": _COUNTED[outcome]})

    def _without(
        self, rows: list[tuple[Item, StoreRecord]], error: ChunkIdCollision
    ) -> list[tuple[Item, StoreRecord]]:
        """The same records with the article that cannot be stored put aside."""
        kept: list[tuple[Item, StoreRecord]] = []
        for item, record in rows:
            if isinstance(record, Upsert) and record.article.id == error.article_id:
                self._put_aside(item, "chunk_id_collision", str(error))
                kept.append((item, DeadLetter(coordinate=item.coordinate, reason=item.reason)))
            else:
                kept.append((item, record))
        return kept


def ready(batch: Batch) -> bool:
    """Whether the batch's vectors are there."""
    return batch.ref is None or bool(ray.wait([batch.ref], timeout=0)[0])


def _store_record(item: Item, vectors: np.ndarray[Any, np.dtype[np.float16]]) -> StoreRecord:
    if item.reason:
        return DeadLetter(coordinate=item.coordinate, reason=item.reason)
    if item.delete_id is not None:
        return Delete(coordinate=item.coordinate, article_id=item.delete_id)
    assert item.article is not None
    if item.canonical_id is not None:
        return Link(
            coordinate=item.coordinate,
            article=item.article,
            canonical_id=item.canonical_id,
            similarity=item.similarity,
        )
    signature = item.fingerprint.signature if item.fingerprint is not None else b""
    return Upsert(
        coordinate=item.coordinate,
        article=item.article,
        chunks=item.chunks,
        vectors=np.ascontiguousarray(vectors),
        signature=signature,
    )
