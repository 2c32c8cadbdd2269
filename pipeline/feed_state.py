"""What a feed poller remembers between polls and runs: validators, entries seen, when to ask again."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DysraError, UsageError

_VERSION = 1
_SCHEMA = """
create table if not exists feeds (
    url text primary key, etag text, modified text, next_due real not null default 0,
    failures integer not null default 0, gone integer not null default 0
);
create table if not exists seen (
    url text not null, entry text not null, fingerprint text not null, published_ms integer not null,
    version_ms integer not null, last_seen real not null, primary key (url, entry)
);
"""


@dataclass(slots=True)
class FeedRow:
    """One feed: HTTP validators of its last document, and when it may be asked again (epoch seconds)."""

    url: str
    etag: str | None = None
    modified: str | None = None
    next_due: float = 0.0
    failures: int = 0
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry as it was published last."""

    entry: str
    fingerprint: str
    published_ms: int
    version_ms: int


class FeedState:
    """A small SQLite file. Entries that a feed still shows are never forgotten; of others, the newest are kept."""

    def __init__(self, path: Path, *, keep: int = 5_000) -> None:
        self._keep = keep
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10.0)
            (version,) = self._db.execute("pragma user_version").fetchone()
            if version <= _VERSION:  # 0: made anew, or before versions were kept; the tables are the same
                self._db.executescript(f"{_SCHEMA}pragma user_version = {_VERSION};")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"the feed state {path} cannot be used: {error}; give another --state") from None
        if version > _VERSION:
            self._db.close()
            raise UsageError(
                f"the feed state {path} has version {version}; this DySRA reads up to {_VERSION}: upgrade "
                "DySRA, or give another --state"
            )

    def feed(self, url: str) -> FeedRow:
        """What is known of a feed; a fresh row for an unknown one."""
        row = self._row(
            "select url, etag, modified, next_due, failures, gone from feeds where url = ?", (url,)
        )
        if row is None:
            return FeedRow(url)
        etag, modified, next_due, failures, gone = row[1:]
        return FeedRow(url, etag, modified, next_due, failures, bool(gone))

    def seen(self, url: str, entries: Iterable[str]) -> dict[str, Seen]:
        """Those of `entries` that were published before."""
        found = {}
        for entry in entries:
            row = self._row(
                "select entry, fingerprint, published_ms, version_ms from seen where url = ? and entry = ?",
                (url, entry),
            )
            if row:
                found[entry] = Seen(*row)
        return found

    def save(self, feed: FeedRow, present: Iterable[Seen] = ()) -> None:
        """Store the feed and its document's entries in one transaction; forget the oldest beyond the bound."""
        now = time.time()
        rows = [(feed.url, s.entry, s.fingerprint, s.published_ms, s.version_ms, now) for s in present]
        with self._transaction():
            self._db.execute(
                "insert or replace into feeds (url, etag, modified, next_due, failures, gone) values (?,?,?,?,?,?)",
                (feed.url, feed.etag, feed.modified, feed.next_due, feed.failures, int(feed.gone)),
            )
            if rows:
                self._db.executemany("insert or replace into seen values (?,?,?,?,?,?)", rows)
                self._db.execute(
                    "delete from seen where url = ? and last_seen < ? and entry not in (select entry from seen "
                    "where url = ? order by last_seen desc limit ?)",
                    (feed.url, now, feed.url, max(self._keep, len(rows))),
                )

    def _row(self, question: str, values: tuple[str, ...]) -> Any:
        try:
            return self._db.execute(question, values).fetchone()
        except sqlite3.Error as error:
            raise DysraError(f"the feed state cannot be read: {error}; give another --state") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._db:
                yield
        except sqlite3.Error as error:
            raise DysraError(f"the feed state cannot be written: {error}; is the disk full?") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()
