"""An ingester: reads its partitions and carries every record to its one outcome, durable before committed.

Three threads hand batches on in order: poll (the only one that touches the consumer), prepare, append. While a
batch is made durable the next ones are being embedded, and what is under way is bounded by pausing partitions.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from actors.copies import CopyMender
from actors.ingest_append import Appender, ready
from actors.ingest_prepare import Batch, Preparer, record_bytes
from actors.ingest_spec import Assignment, IngestSpec
from actors.metrics import metric
from actors.near_duplicate_keepers import Keepers
from actors.near_duplicates import Asker
from actors.remote import Outage, Stopped, call, collect_rarely, first_line, log_in_actor, persist, take
from actors.store_client import StoreClient
from models.embed import load_tokenizer
from pipeline.log import get_logger
from pipeline.near_duplicates import Fingerprint
from pipeline.source import Record, RecordSource

_POLL_S = 0.2
_MIN_BATCH_CHUNKS = 32
_MAX_BATCH_CHUNKS = 4_096
_MAX_APPEND_RECORDS = 2_048
"""Records that one append takes together: enough to share a flush, few enough to prepare others meanwhile."""
_RATE_INTERVAL_S = 2.0

_ResultT = TypeVar("_ResultT")


def with_broker(
    attempt: Callable[[], _ResultT], spec: IngestSpec, stopped: Callable[[], bool], log: Any
) -> _ResultT:
    """What `attempt` returns once the broker answers; DependencyUnreachable where its outage outlasts the limit."""
    return persist(
        attempt,
        "the broker",
        first_s=spec.ingest.retry_first_s,
        max_s=spec.ingest.retry_max_s,
        limit_s=spec.source.outage_limit_s,
        stopped=stopped,
        on_outage=lambda error: log.warning("broker_lost", error=first_line(error)),
    )


class Ingester:
    """The actor class: threads do the work, calls ask for figures or a stop."""

    def __init__(self, spec: IngestSpec, client: StoreClient, assignment: Assignment) -> None:
        log_in_actor()
        collect_rarely()
        self._spec, self._client, self._assignment = spec, client, assignment
        self._config = spec.ingest
        self._log = get_logger(ingester=assignment.ingester, topic=spec.kafka.topic, epoch=assignment.epoch)
        self._tags = {"ingester": str(assignment.ingester)}
        self._lock = threading.Lock()
        self._stopping, self._abandon, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._polled: queue.SimpleQueue[list[Record] | dict[int, int] | None] = queue.SimpleQueue()
        self._prepared: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._underway: deque[Batch] = deque()
        self._inflight_records = self._inflight_bytes = 0
        self._durable = {p: offset for p, offset in assignment.offsets.items() if offset is not None}
        self._entered: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._lag: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self._failure: BaseException | None = None
        self._figures = {"polled": 0, "pauses": 0, "resumes": 0, "outages": 0, "stalls": 0, "expired": 0}
        self._paused = False
        self._held: dict[int, int] | None = None
        self._appender = Appender(spec, assignment, client, self._put_aside, self._persist)
        asker = Asker(spec.kafka.topic, tuple(assignment.offsets), assignment.epoch)
        keepers = self._config.near_duplicate_shards
        self._keepers = Keepers(client, keepers, asker, self._persist, self._accepted)
        self._batch_chunks = _MIN_BATCH_CHUNKS if self._appender.embeds else _MAX_BATCH_CHUNKS
        self._threads = [
            threading.Thread(target=self._guarded, args=(name, loop), name=name, daemon=True)
            for name, loop in (("poll", self._poll), ("prepare", self._prepare), ("append", self._append))
        ]
        for thread in self._threads:
            thread.start()

    def figures(self) -> dict[str, Any]:
        """Progress since this actor started; `failure` holds the error that ended it."""
        with self._lock:
            return {
                **self._figures,
                "pid": os.getpid(),
                "epoch": self._assignment.epoch,
                "inflight_records": self._inflight_records,
                "inflight_bytes": self._inflight_bytes,
                "paused": self._paused,
                "durable": dict(self._durable),
                "positions": dict(self._positions),
                "committed": dict(self._committed),
                "lag": dict(self._lag),
                "chunks": self._appender.num_chunks,
                "delays": dict(self._appender.delays.counts),
                "failure": self._failure,
                "ended": self._ended.is_set(),
            }

    def stop(self) -> dict[str, Any]:
        """Stop polling, finish what ends within the grace, commit what is durable; the last figures."""
        self._stopping.set()
        self._ended.wait(self._config.stop_grace_s + 5.0)
        self._abandon.set()  # also where the thread that polls does not end
        return self.figures()

    # -- threads

    def _guarded(self, name: str, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Stopped:
            pass
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self._log.error("ingester_failed", thread=name, error=first_line(error))
        finally:
            if name != "poll":
                self._stopping.set()
            (self._prepared if name == "prepare" else self._polled).put(None)
            if name == "poll":
                self._abandon.set()
                self._ended.set()

    def _poll(self) -> None:
        with self._source() as source:
            with self._lock:
                self._positions = source.positions()
                self._entered = dict(self._positions)
                for partition, offset in self._positions.items():
                    self._durable.setdefault(partition, offset)
            last_commit = time.monotonic()
            while not self._stopping.is_set():
                self._regulate(source)
                records = source.poll(_POLL_S)
                self._enter(records, source)
                if time.monotonic() - last_commit >= self._config.commit_interval_s:
                    self._commit(source)
                    last_commit = time.monotonic()
            self._polled.put(None)
            deadline = time.monotonic() + self._config.stop_grace_s
            append = self._threads[2]
            while append.is_alive() and time.monotonic() < deadline and self._failure is None:
                append.join(timeout=0.02)
            self._abandon.set()
            append.join(timeout=0.2)
            self._commit(source)

    def _source(self) -> RecordSource:
        """The assigned partitions from their offsets; an outage of the broker is waited for here as it is later."""
        spec = self._spec
        attempt = partial(RecordSource, spec.kafka, self._assignment.offsets, spec.source)
        return with_broker(attempt, spec, self._stopping.is_set, self._log)

    def _regulate(self, source: RecordSource) -> None:
        config = self._config
        with self._lock:
            fill = max(
                self._inflight_records / config.max_inflight_records,
                self._inflight_bytes / config.max_inflight_bytes,
            )
            pause, resume = not self._paused and fill >= 1, self._paused and fill <= config.resume_at
            self._paused = (self._paused or pause) and not resume
            self._figures["pauses"] += pause
            self._figures["resumes"] += resume
        if pause:
            source.pause(source.partitions)
        elif resume:
            source.resume(source.partitions)
        if pause or resume:
            metric("partitions_paused").set(len(source.paused), self._tags)

    def _enter(self, records: list[Record], source: RecordSource) -> None:
        positions = source.positions()
        gaps: dict[int, int] = {}
        with self._lock:
            self._positions, self._lag = positions, source.lag()
            if source.stats.stalls > self._figures["stalls"]:
                metric("ingest_stalls_total").inc(source.stats.stalls - self._figures["stalls"], self._tags)
            self._figures["stalls"], self._figures["outages"] = source.stats.stalls, source.stats.outages
            self._figures["expired"] = source.stats.records_expired
            self._figures["polled"] += len(records)
            self._inflight_records += len(records)
            self._inflight_bytes += sum(record_bytes(record) for record in records)
            for record in records:
                self._entered[record.partition] = record.offset + 1
            # Control records and compacted ones leave gaps that no record closes.
            for partition, position in positions.items():
                if position > self._entered[partition]:
                    self._entered[partition] = gaps[partition] = position
        if records:
            metric("ingest_batch_records").observe(len(records))
            self._polled.put(records)
        if gaps:
            self._polled.put(gaps)

    def _commit(self, source: RecordSource) -> None:
        with self._lock:
            offsets = {p: at for p, at in self._durable.items() if self._committed.get(p) != at}
            lag = {
                p: max(0, self._lag.get(p, 0) + self._positions[p] - self._durable[p]) for p in self._durable
            }
        for partition, behind in lag.items():
            metric("consumer_lag_records").set(
                behind, {"topic": self._spec.kafka.topic, "partition": str(partition)}
            )
        if offsets and source.commit(offsets, timeout_s=1.0 if self._stopping.is_set() else 5.0):
            with self._lock:
                self._committed.update(offsets)

    def _prepare(self) -> None:
        tokenizer = load_tokenizer(self._spec.embedder)
        self._preparer = Preparer(
            self._spec, self._assignment, tokenizer, self._seen, self._keepers.judge, self._persist
        )
        try:
            while (polled := self._next_polled()) is not None:
                if isinstance(polled, dict):
                    self._hand_on(Batch([], polled))
                    continue
                for batch in self._preparer.batches(polled, lambda: self._batch_chunks):
                    if self._abandon.is_set():
                        return
                    self._hand_on(batch)
        finally:
            self._preparer.close()

    def _next_polled(self) -> list[Record] | dict[int, int] | None:
        """What was polled next, with all that waits behind it: larger batches ask the other parts less often."""
        held, self._held = self._held, None
        first = take(self._polled, self._abandon.is_set) if held is None else held
        if not isinstance(first, list):
            return first
        records = first
        while len(records) < _MAX_APPEND_RECORDS and not self._polled.empty():
            following = self._polled.get_nowait()
            if following is None:
                self._polled.put(None)
                break
            if isinstance(following, dict):
                self._held = following
                break
            records = records + following
        return records

    def _hand_on(self, batch: Batch) -> None:
        self._persist(partial(self._appender.request_vectors, batch), "the embedder")
        with self._lock:
            self._underway.append(batch)
        self._prepared.put(batch)

    def _append(self) -> None:
        mender = self._mender()
        if mender is not None:
            self._persist(mender.mend_all, "the copies of withdrawn articles")
        last_rate = -_RATE_INTERVAL_S
        held: Batch | None = None
        while (first := held or take(self._prepared, self._abandon.is_set)) is not None:
            self._appender.vectors(first)
            batches, held, records = [first], None, len(first.items)
            while records < _MAX_APPEND_RECORDS and not self._prepared.empty():
                following = self._prepared.get_nowait()
                if following is None:
                    self._prepared.put(None)
                    break
                if not ready(following):
                    held = following
                    break
                batches.append(following)
                records += len(following.items)
            through = self._appender.append(batches)
            gone = [item.delete_id for batch in batches for item in batch.items if item.delete_id is not None]
            if mender is not None and gone:
                # Before the offsets move on; after a kill in between, the next start looks at all copies.
                self._persist(partial(mender.mend, gone), "the copies of withdrawn articles")
            self._settle(batches, through)
            if time.monotonic() - last_rate >= _RATE_INTERVAL_S:
                last_rate = time.monotonic()
                self._adapt()

    def _mender(self) -> CopyMender | None:
        spec = self._spec
        if not spec.duplicates.enabled:
            return None

        tokenizer = load_tokenizer(spec.embedder)
        return CopyMender(self._client, tokenizer, spec.chunks, spec.duplicates, self._keepers.adopt)

    def _settle(self, batches: list[Batch], through: dict[int, int]) -> None:
        items = [item for batch in batches for item in batch.items]
        with self._lock:
            self._durable.update(through)
            self._inflight_records -= len(items)
            self._inflight_bytes -= sum(item.num_bytes for item in items)
            for _ in batches:
                self._underway.popleft()

    def _adapt(self) -> None:
        """Size batches so that one takes `embed_target_s` of embedding."""
        if not self._appender.embeds:
            return
        try:
            stats = call(self._client.next_embedder().stats.remote(), 5.0)
        except Outage:
            return
        if stats["busy_s"] > 0:
            wanted = int(stats["texts"] / stats["busy_s"] * self._config.embed_target_s)
            self._batch_chunks = min(max(wanted, _MIN_BATCH_CHUNKS), _MAX_BATCH_CHUNKS)

    # -- calls to other parts

    def _seen(self, ids: list[str]) -> dict[str, int]:
        """What the store knows of these ids; what is under way is not there yet."""
        result: dict[str, int] = self._persist(lambda: self._client.seen(ids), "a shard")
        return result

    def _accepted(self) -> list[Fingerprint | str]:
        """What is under way and changes what later articles are compared with, in order."""
        with self._lock:
            items = [item for batch in self._underway for item in batch.items]
        found: list[Fingerprint | str] = []
        for item in items:
            if item.delete_id is not None:
                found.append(item.delete_id)
            elif item.fingerprint is not None and item.canonical_id is None and not item.settled:
                found.append(item.fingerprint)
        return found

    def _put_aside(self, item: Any, reason: str, detail: str) -> None:
        self._preparer.put_aside(item, reason, detail)

    def _persist(self, attempt: Callable[[], Any], what: str) -> Any:
        config = self._config
        return persist(
            attempt,
            what,
            first_s=config.retry_first_s,
            max_s=config.retry_max_s,
            limit_s=config.outage_limit_s,
            stopped=self._abandon.is_set,
            on_outage=lambda error: self._log.warning("retrying", part=what, error=first_line(error)),
        )
