"""A keeper of the near-duplicate index: asked in batches, rebuilt from the shards when it starts."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any, NamedTuple

from actors.remote import Outage, call, collect_rarely, find_actor, log_in_actor
from pipeline.near_duplicates import (
    Fingerprint,
    Fingerprinter,
    Match,
    NearDuplicateConfig,
    NearDuplicateIndex,
)
from pipeline.placement import shard_of
from pipeline.store import StaleEpoch

_SHARD_TIMEOUT_S = 30.0
_PAGE = 512
_ALL_TIME_MS = -(2**62)


def near_duplicates_name(store: str, keeper: int = 0) -> str:
    """The actor name of a keeper of a store's near-duplicate index; the first is the one that is always there."""
    return f"{store}:near-duplicates" + (f":{keeper}" if keeper else "")


class Verdicts(NamedTuple):
    """`generation` of the index and, unless the caller knew another one, a verdict for each entry."""

    generation: int
    matches: list[Match | None] | None


class Asker(NamedTuple):
    """The ingester of these partitions, under the epoch that they were given to it."""

    topic: str
    partitions: tuple[int, ...]
    epoch: int


class NearDuplicateActor:
    """A Ray shell around NearDuplicateIndex (calls come one at a time).

    An entry is a Fingerprint to judge, or the id of a withdrawn article to forget. An article whose id the
    store knows is never a duplicate: it is a correction or an update of itself. The ingester has asked for that
    (`known`): a keeper that asked the shards would let all others wait. One of `num_keepers`, it keeps the
    streams that rendezvous hashing gives it, and its share of `max_articles`. As shards do, it refuses (StaleEpoch)
    an ingester whose partitions another one took over: what a paused one still asks would undo the other's work.
    """

    def __init__(
        self, config: NearDuplicateConfig, shard_names: list[str], keeper: int = 0, num_keepers: int = 1
    ) -> None:
        log_in_actor()
        collect_rarely()
        self._config = config
        self._shard_names = shard_names
        self._part = (keeper, num_keepers)
        self._handles: dict[int, Any] = {}
        self._fingerprinter = Fingerprinter(config)
        self._index = NearDuplicateIndex(
            replace(config, max_articles=-(-config.max_articles // num_keepers)), fetch=self._fetch
        )
        self._generation = int.from_bytes(os.urandom(7), "big")
        self._epochs: dict[tuple[str, int], int] = {}
        self._linked = self._first_ms = 0
        self._busy_s = 0.0
        if config.enabled:
            rows = []
            since_ms = self._oldest_needed()
            for index in range(len(shard_names)):
                rows += self._stored(index, since_ms)
            self._index.add_all(rows)

    def judge(self, entries: list[Fingerprint | str], generation: int | None, asker: Asker) -> Verdicts:
        """Verdicts in the order of the entries; each accepted article is compared with by the next ones.

        Where `generation` is not the index's (it was made anew), nothing is judged: `remember` first what
        is under way, then ask again.
        """
        self._check(asker)
        self._first_ms = self._first_ms or int(time.time() * 1_000)
        begun_s = time.monotonic()
        verdicts = self._judge(entries, generation)
        self._busy_s += time.monotonic() - begun_s
        return verdicts

    def _judge(self, entries: list[Fingerprint | str], generation: int | None) -> Verdicts:
        if generation != self._generation:
            return Verdicts(self._generation, None)
        index = self._index
        keys = iter(index.keys_of([entry for entry in entries if not isinstance(entry, str)]))
        matches: list[Match | None] = []
        for entry in entries:
            if isinstance(entry, str):
                index.remove(entry)
                matches.append(None)
                continue
            mine = next(keys)
            match = None if entry.known or entry.article_id in index else index.match(entry, mine)
            if match is None:
                index.add(entry, mine)
            else:
                self._linked += 1
            matches.append(match)
        return Verdicts(self._generation, matches)

    def adopt(self, entries: list[Fingerprint], asker: Asker) -> list[Match | None]:
        """For copies that lost their original, in order: what each repeats now, or None: it stands, and is
        compared with from now on."""
        self._check(asker)
        matches: list[Match | None] = []
        for entry in entries:
            match = self._index.match(entry)
            if match is None:
                self._index.add(entry)
            matches.append(match)
        return matches

    def remember(self, entries: list[Fingerprint | str], asker: Asker) -> int:
        """Add articles that were accepted before, forget withdrawn ones; the index's generation."""
        self._check(asker)
        for entry in entries:
            if isinstance(entry, str):
                self._index.remove(entry)
            else:
                self._index.add(entry)
        return self._generation

    def num_keepers(self) -> int:
        """Over how many actors the index is divided."""
        return self._part[1]

    def stats(self) -> dict[str, int]:
        """Articles kept for comparison, links made since the start, when it was first asked (ms; 0: never), and the
        ms that it has judged: one call at a time, so near the time since then all ingesters wait for it."""
        return {
            "articles": len(self._index),
            "linked": self._linked,
            "first_ms": self._first_ms,
            "busy_ms": int(self._busy_s * 1e3),
        }

    def ping(self) -> int:
        """The process id, for health checks."""
        return os.getpid()

    def _check(self, asker: Asker) -> None:
        places = [(asker.topic, partition) for partition in asker.partitions]
        for place in places:
            if asker.epoch < self._epochs.get(place, asker.epoch):
                raise StaleEpoch(
                    f"{place[0]}[{place[1]}]: epoch {asker.epoch} is older than {self._epochs[place]}: another "
                    "ingester has taken this partition over; this one must stop"
                )
        self._epochs.update(dict.fromkeys(places, asker.epoch))

    def _stored(self, shard: int, since_ms: int) -> list[Fingerprint]:
        """What a shard holds, its signatures made anew where an earlier version of this program made them."""
        rows = [Fingerprint(*row) for row in self._ask(shard, "signatures", since_ms, *self._part)]
        old = [at for at, row in enumerate(rows) if row.signature and not self._index.fits(row.signature)]
        for begin in range(0, len(old), _PAGE):
            part = old[begin : begin + _PAGE]
            found = self._ask(shard, "articles", [rows[at].article_id for at in part])
            articles = [one.article for one in found if one is not None and one.article is not None]
            marks = {one.article_id: one.signature for one in self._fingerprinter.fingerprints(articles)}
            for at in part:
                rows[at] = rows[at]._replace(signature=marks.get(rows[at].article_id, b""))
        return rows

    def _oldest_needed(self) -> int:
        """From when signatures are loaded: all of them, or in a large store those near its newest article."""
        stats = [self._ask(index, "stats") for index in range(len(self._shard_names))]
        newest = max((row["newest_ms"] for row in stats if row["newest_ms"] is not None), default=0)
        if sum(row["live_articles"] for row in stats) <= self._config.max_articles:
            return _ALL_TIME_MS
        return int(newest - self._config.window_hours * 3_600_000)

    def _fetch(self, article_id: str) -> bytes:
        """The shingles of a stored article; none where the shard cannot say, and the estimate decides."""
        owner = shard_of(article_id, len(self._shard_names))
        try:
            found = self._ask(owner, "articles", [article_id])[0]
        except Outage:
            return b""
        if found is None or found.article is None:
            return b""
        return self._fingerprinter.fingerprint(found.article).shingles

    def _ask(self, shard: int, method: str, *args: Any) -> Any:
        handle = self._handles.get(shard) or find_actor(self._shard_names[shard])
        if handle is None:
            raise ConnectionError(f"shard {shard} is not running")
        self._handles[shard] = handle
        try:
            return call(getattr(handle, method).remote(*args), _SHARD_TIMEOUT_S)
        except Outage:
            self._handles.pop(shard, None)
            raise
