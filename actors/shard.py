"""A shard as an actor: appends in order, searches beside them, maintenance on a timer, reload after a kill."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray

from actors.metrics import metric
from actors.remote import collect_rarely, first_line, log_in_actor
from actors.spare_memory import SpareMemory
from pipeline.article import Article
from pipeline.errors import DysraError
from pipeline.log import get_logger
from pipeline.placement import shard_of
from pipeline.store import (
    AppendResult,
    Candidates,
    Changes,
    ChunkIdCollision,
    Ledger,
    SearchRequest,
    Shard,
    SignatureRow,
    StoreConfig,
    StoredArticle,
    StoreFailed,
    StoreLocked,
    StoreRecord,
)
from pipeline.store.copies import Copy, Settlement
from pipeline.store.wire import unpack_records

CONCURRENCY = {"append": 1, "search": 64, "admin": 2}
"""Threads of the actor by kind of call: appends keep their order, and searches do not wait for them. Few searches
run at a time (pipeline/store/joined.py); the other threads hold those that wait, so that they can be joined."""

_LOCK_WAIT_S = 5.0
_OPEN_AGAIN_S = 1.0


class Collision(NamedTuple):
    """Nothing was appended: a chunk of this article has another article's chunk id."""

    message: str
    article_id: str


class ShardActor:
    """A Ray shell around pipeline.store.Shard; an error while opening is raised by every call, as itself."""

    def __init__(
        self,
        config: StoreConfig,
        shard_index: int,
        embedder_identity: str,
        dim: int,
        maintain_interval_s: float = 10.0,
    ) -> None:
        log_in_actor()
        collect_rarely()
        self._log = get_logger(shard_id=shard_index)
        self._tags = {"shard": str(shard_index)}
        self._arguments = (config.path, config, shard_index, config.num_shards, embedder_identity, dim)
        self._dim = dim
        self._failure: Exception | None = None
        self._shard: Shard | None = None
        self._opening = threading.Lock()
        self._opened_at = 0.0
        self._closing = threading.Event()
        self._timer = threading.Thread(
            target=self._maintain, args=(maintain_interval_s,), name="maintain", daemon=True
        )
        self._try_to_open(_LOCK_WAIT_S)

    def _try_to_open(self, wait_s: float) -> None:
        """Open the shard, or note why not; the process that this one replaces is given `wait_s` to end."""
        deadline = time.monotonic() + wait_s
        try:
            while self._shard is None:
                try:
                    self._shard = Shard.open(*self._arguments)
                except StoreLocked:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        except OSError as error:
            self._failure = StoreFailed(f"the shard cannot be opened: {error}")
        except (DysraError, ValueError) as error:
            self._failure = error
        else:
            self._failure = None
            self._timer.start()
        self._opened_at = time.monotonic()

    @ray.method(concurrency_group="append")
    def append(
        self,
        records: list[StoreRecord] | bytes,
        through: Mapping[tuple[str, int], int],
        epoch: int,
        since: Mapping[tuple[str, int], int] | None = None,
    ) -> AppendResult | Collision:
        """Make records, also as `pack_records` made bytes of them, durable and searchable; see Shard.append. A
        Collision is returned, not raised."""
        shard = self._open()
        given = unpack_records(records, self._dim) if isinstance(records, bytes) else records
        try:
            return shard.append(given, through, epoch, since)
        except ChunkIdCollision as error:
            return Collision(str(error), error.article_id)
        except StoreFailed as error:
            if shard.failed:  # nobody knows what of the log is on the disk: Ray starts a process that looks
                self._log.error("shard_must_reopen", error=first_line(error))
                os._exit(1)
            raise

    @ray.method(concurrency_group="search")
    def candidates(self, request: SearchRequest, limit_s: float | None = None) -> Candidates:
        """The shard's lists for each question; TimeoutError where they are not wanted any more (`limit_s`)."""
        return self._open().candidates(request, limit_s)

    @ray.method(concurrency_group="search")
    def articles(self, ids: list[str]) -> list[StoredArticle | None]:
        """The newest version or tombstone of each id, None where it was never seen."""
        shard = self._open()
        return [shard.article(article_id) for article_id in ids]

    @ray.method(concurrency_group="search")
    def recent(
        self, stream: str, limit: int, before_ms: int | None = None
    ) -> list[tuple[Article, str | None]]:
        """The stream's newest articles on this shard, newest first, each with the article that it repeats."""
        shard = self._open()
        rows = []
        for article in shard.recent(stream, limit, before_ms):
            stored = shard.article(article.id)
            rows.append((article, stored.canonical_id if stored is not None else None))
        return rows

    @ray.method(concurrency_group="search")
    def changes(self, since: int) -> Changes:
        """Corrections and withdrawals after a sequence number."""
        return self._open().changes(since)

    @ray.method(concurrency_group="admin")
    def signatures(self, since_ms: int, keeper: int = 0, num_keepers: int = 1) -> list[SignatureRow]:
        """Signatures of the articles published since then, in the streams of one of `num_keepers`."""
        rows = self._open().signatures(since_ms)
        if num_keepers == 1:
            return rows
        mine = {stream: shard_of(stream, num_keepers) == keeper for stream in {row.stream for row in rows}}
        return [row for row in rows if mine[row.stream]]

    @ray.method(concurrency_group="admin")
    def originals(self) -> list[str]:
        """What this shard's near-duplicates are linked to."""
        return self._open().originals()

    @ray.method(concurrency_group="admin")
    def copies_of(self, ids: list[str]) -> list[Copy]:
        """This shard's near-duplicates of these articles."""
        return self._open().copies_of(ids)

    @ray.method(concurrency_group="append")
    def settle(self, settlements: list[Settlement]) -> list[bool]:
        """Make near-duplicates stand on their own, or link them anew; see Shard.settle."""
        return self._open().settle(settlements)

    @ray.method(concurrency_group="search")
    def offsets(self) -> dict[tuple[str, int], int]:
        """The next offset of each partition that this shard still needs."""
        return self._open().offsets()

    @ray.method(concurrency_group="search")
    def known(self, ids: list[str]) -> dict[str, int | None]:
        """For each id the version that is stored and searchable, or None."""
        return self._open().known(ids)

    @ray.method(concurrency_group="search")
    def seen(self, ids: list[str]) -> dict[str, int]:
        """The ids that the shard knows, deleted and linked ones too, each with its newest version (ms)."""
        return self._open().seen(ids)

    @ray.method(concurrency_group="search")
    def ledger(self) -> Ledger:
        """Outcomes by topic."""
        return self._open().ledger()

    @ray.method(concurrency_group="search")
    def stats(self) -> dict[str, Any]:
        """The shard's figures, and the process that holds it."""
        return {**self._open().stats(), "pid": os.getpid()}

    @ray.method(concurrency_group="admin")
    def compact(self) -> Any:
        """Seal and compact now."""
        shard = self._open()
        shard.seal()
        return shard.compact()

    @ray.method(concurrency_group="admin")
    def snapshot(self, target: str) -> Any:
        """Copy the shard to `target`."""
        from pathlib import Path

        return self._open().snapshot(Path(target))

    @ray.method(concurrency_group="search")
    def ping(self) -> int:
        """The process id; raises what kept the shard from opening."""
        self._open()
        return os.getpid()

    @ray.method(concurrency_group="append")
    def close(self) -> None:
        """Close the files; every later call fails."""
        if self._shard is not None:
            self._closing.set()
            self._timer.join(timeout=5.0)
            self._shard.close()

    def _open(self) -> Shard:
        if isinstance(
            self._failure, StoreFailed | StoreLocked
        ):  # it may pass: a full disk, a process that ends
            with self._opening:
                if self._failure is not None and time.monotonic() - self._opened_at > _OPEN_AGAIN_S:
                    self._try_to_open(0.0)
        if self._failure is not None:
            raise self._failure
        assert self._shard is not None
        return self._shard

    def _maintain(self, interval_s: float) -> None:
        shard, spare = self._open(), SpareMemory()
        while not self._closing.wait(interval_s):
            try:
                shard.maintain(int(time.time() * 1_000))
                spare.give_back()
                stats = shard.stats()
                metric("index_chunks").set(stats["live_chunks"], self._tags)
                metric("index_tombstones").set(stats["tombstones"], self._tags)
                metric("index_bytes").set(stats["index_bytes"], self._tags)
            except Exception as error:  # the next look may do better, and without this thread there is none
                self._log.error("maintenance_failed", error=first_line(error))
