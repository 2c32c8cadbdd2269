"""The store as every process of the cluster uses it: named shards and embedders, found or started.

Blocking methods, and `..._async` forms for Ray Serve. A shard that is dead or late makes an answer partial;
only when none answers does a call fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.ingest_config import IngestConfig
from actors.late_calls import MAX_LATE_CALLS, LateCalls
from actors.remote import (
    CALL_TIMEOUT_S,
    Outage,
    call,
    find_actor,
    first_line,
)
from actors.store_actors import close_actors, embedder_name, open_actors, shard_name
from actors.store_search import SearchResult, StoreSearch, awaited
from models.embed import EmbedderConfig
from pipeline.article import Article
from pipeline.errors import DependencyUnreachable
from pipeline.log import get_logger
from pipeline.placement import shard_of
from pipeline.store import (
    Change,
    Ledger,
    SearchConfig,
    StoreConfig,
    StoredArticle,
)

__all__ = ["SearchResult", "StoreChanges", "StoreClient", "open_store"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreChanges:
    """Corrections and withdrawals since a cursor. `truncated`: older ones were dropped, check everything."""

    entries: tuple[Change, ...]
    cursor: tuple[int, ...]
    truncated: bool


class StoreClient(StoreSearch):
    """A handle to an open store. Cheap to pass between actors: it holds names and finds the actors itself."""

    def __init__(
        self,
        name: str,
        config: StoreConfig,
        search: SearchConfig,
        num_embedders: int,
        embedder: dict[str, Any],
    ) -> None:
        self.name = name
        self.config = config
        self.search_config = search
        self.num_shards = config.num_shards
        self.num_embedders = num_embedders
        self.embedder_identity: str = embedder["identity"]
        self.dim: int = embedder["dim"]
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in ("_handles", "_turn", "_log", "late"):
            state.pop(name)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._handles: dict[str, Any] = {}
        self._turn = itertools.count()
        self.late = LateCalls()
        self._log = get_logger(store=self.name)

    # -- articles

    def article(self, article_id: str) -> StoredArticle | None:
        """The newest version of an article or its tombstone; None if it was never seen."""
        return self.articles([article_id])[article_id]

    def articles(self, ids: Iterable[str]) -> dict[str, StoredArticle | None]:
        """The newest version or tombstone of each id."""
        wanted = self._by_shard(ids)
        refs = {shard: self._shard(shard).articles.remote(part) for shard, part in wanted.items()}
        found: dict[str, StoredArticle | None] = {}
        for shard, ref in refs.items():
            found.update(zip(wanted[shard], self._result(shard, ref), strict=True))
        return found

    async def articles_async(self, ids: Iterable[str]) -> dict[str, StoredArticle | None]:
        """`articles` for event loops."""
        wanted = self._by_shard(ids)
        refs = [awaited(self._shard(shard).articles.remote(part)) for shard, part in wanted.items()]
        replies = await asyncio.wait_for(asyncio.gather(*refs), CALL_TIMEOUT_S)
        found: dict[str, StoredArticle | None] = {}
        for part, reply in zip(wanted.values(), replies, strict=True):
            found.update(zip(part, reply, strict=True))
        return found

    def recent(self, stream: str, limit: int, before_ms: int | None = None) -> list[Article]:
        """The stream's newest articles, newest first, over all shards; near-duplicates of one that is there are
        left out."""
        wanted = limit
        while True:
            parts: list[list[tuple[Article, str | None]]] = self._ask_all("recent", stream, wanted, before_ms)
            rows = [row for part in parts for row in part]
            rows.sort(key=lambda row: (-row[0].published_ms, row[0].id))
            versions = self.known({canonical for _, canonical in rows if canonical is not None})
            kept = [
                article for article, canonical in rows if canonical is None or versions[canonical] is None
            ]
            if len(kept) >= limit or all(len(part) < wanted for part in parts):
                return kept[:limit]
            wanted *= 2

    def changes(self, cursor: Sequence[int] | None = None) -> StoreChanges:
        """Corrections and withdrawals after `cursor` (None: from the oldest kept), and the next cursor."""
        since = list(cursor) if cursor is not None else [0] * self.num_shards
        if len(since) != self.num_shards:
            raise ValueError(f"the cursor has {len(since)} numbers; this store has {self.num_shards} shards")
        refs = [self._shard(shard).changes.remote(since[shard]) for shard in range(self.num_shards)]
        parts = [self._result(shard, ref) for shard, ref in enumerate(refs)]
        return StoreChanges(
            entries=tuple(entry for part in parts for entry in part.entries),
            cursor=tuple(part.latest for part in parts),
            truncated=any(part.truncated for part in parts),
        )

    # -- figures

    def stats(self) -> list[dict[str, Any]]:
        """Each shard's figures; a shard that does not answer has only `shard` and `error`."""
        rows: list[dict[str, Any]] = []
        for shard in range(self.num_shards):
            try:
                rows.append({"shard": shard, **self._result(shard, self._shard(shard).stats.remote())})
            except DependencyUnreachable as error:
                rows.append({"shard": shard, "error": str(error)})
        return rows

    def ledger(self) -> Ledger:
        """Outcomes by topic, over all shards."""
        total = Ledger()
        for part in self._ask_all("ledger"):
            for topic, counts in part.items():
                known = total.get(topic)
                total[topic] = counts if known is None else Ledger({"a": known, "b": counts}).total()
        return total

    def offsets(self) -> list[dict[tuple[str, int], int]]:
        """The next offset of each partition, by shard."""
        return self._ask_all("offsets")

    def fence(self, partitions: Iterable[tuple[str, int]], epoch: int) -> None:
        """Refuse later appends to these partitions under older epochs; StaleEpoch if a newer one is known."""
        self._ask_all("append", [], dict.fromkeys(partitions, 0), epoch)

    def known(self, ids: Iterable[str]) -> dict[str, int | None]:
        """For each id the version (ms) that is stored and searchable, or None."""
        return self._versions("known", ids)

    def seen(self, ids: Iterable[str]) -> dict[str, int]:
        """The ids that the store knows, deleted and linked ones too, each with its newest version (ms)."""
        return self._versions("seen", ids)

    def embed_stats(self) -> dict[str, float]:
        """Seconds spent embedding, texts and batches, over all embedders."""
        try:
            parts = [
                call(self.handle(embedder_name(self.name, index)).stats.remote())
                for index in range(self.num_embedders)
            ]
        except Outage:
            self.forget_handles()  # one that died for good has a successor of its name
            raise
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    # -- actors

    def handle(self, name: str) -> Any:
        """The living actor called `name`; DependencyUnreachable where there is none."""
        found = self._handles.get(name) or find_actor(name)
        if found is None:
            raise DependencyUnreachable(
                f"{name} is not running; start it with `dysra ingest` or `dysra serve`"
            )
        self._handles[name] = found
        return found

    def shard_handle(self, shard: int) -> Any:
        """The actor of a shard."""
        return self._shard(shard)

    def next_embedder(self) -> Any:
        """The embedder actor whose turn it is."""
        return self._embedder()

    def forget_handles(self) -> None:
        """Look the actors up again at the next call: one of them has died."""
        self._handles.clear()

    def close_store(self) -> None:
        """Close every shard's files and end the store's actors."""
        close_actors(self.name, self.num_shards, self.num_embedders)
        self._handles.clear()

    def _shard(self, shard: int) -> Any:
        return self._not_full(shard_name(self.name, shard))

    def _embedder(self) -> Any:
        """The embedder whose turn it is, else the next one that is there and does not stand still."""
        turn = next(self._turn)
        for step in range(self.num_embedders - 1):
            with contextlib.suppress(DependencyUnreachable):
                return self._not_full(embedder_name(self.name, (turn + step) % self.num_embedders))
        return self._not_full(embedder_name(self.name, (turn + self.num_embedders - 1) % self.num_embedders))

    def _not_full(self, name: str) -> Any:
        actor = self.handle(name)
        if self.late.full(actor):
            raise DependencyUnreachable(
                f"{name} stands still: it has not answered the last {MAX_LATE_CALLS} calls; look at `dysra status`"
            )
        return actor

    def _forget(self, shard: int) -> None:
        self._handles.pop(shard_name(self.name, shard), None)

    def _ask_all(self, method: str, *args: Any) -> list[Any]:
        refs = [getattr(self._shard(shard), method).remote(*args) for shard in range(self.num_shards)]
        return [self._result(shard, ref) for shard, ref in enumerate(refs)]

    def _result(self, shard: int, ref: Any) -> Any:
        try:
            return call(ref)
        except Outage as error:
            actor = self._handles.get(shard_name(self.name, shard))
            if actor is not None:
                self.late.note(actor, ref)
            self._forget(shard)
            raise DependencyUnreachable(
                f"shard {shard} of {self.name} does not answer ({first_line(error)}); look at `dysra status`"
            ) from None

    def _versions(self, method: str, ids: Iterable[str]) -> dict[str, Any]:
        refs = {
            shard: getattr(self._shard(shard), method).remote(part)
            for shard, part in self._by_shard(ids).items()
        }
        found: dict[str, Any] = {}
        for shard, ref in refs.items():
            found.update(self._result(shard, ref))
        return found

    def _by_shard(self, ids: Iterable[str]) -> dict[int, list[str]]:
        parts: dict[int, list[str]] = defaultdict(list)
        for article_id in dict.fromkeys(ids):
            parts[shard_of(article_id, self.num_shards)].append(article_id)
        return parts


def open_store(
    store: StoreConfig,
    embedder: EmbedderConfig | None = None,
    search: SearchConfig | None = None,
    ingest: IngestConfig | None = None,
    *,
    detached: bool = False,
) -> StoreClient:
    """Find or start the store's embedders and shards and wait until they are ready.

    `detached` (on a cluster): they outlive this process, so that ingest and serve share them. Raises
    StoreMismatch where the store was made with another embedder, naming both.
    """
    ingest = ingest or IngestConfig()
    name, store, facts = open_actors(store, embedder or EmbedderConfig(), ingest, detached=detached)
    return StoreClient(name, store, search or SearchConfig(), ingest.num_embedders, facts)
