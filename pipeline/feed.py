"""Polls RSS and Atom feeds and publishes what is new to a topic; one feed's failure never stops the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.article import (
    Article,
    ArticleLimits,
    BadRecord,
    default_stream,
    from_ms,
    isoformat,
    parse_article,
    to_ms,
)
from pipeline.errors import BadData, DependencyUnreachable, StoppedEarly, UsageError
from pipeline.feed_document import FeedEntry, Fetched, FetchLimits, NotAFeed, fetch, read_entries
from pipeline.feed_state import FeedRow, FeedState, Seen
from pipeline.log import get_logger
from pipeline.publisher import Publisher, RecordTooLarge

_FETCHERS = 8
_LONGEST_WAIT_S = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedConfig:
    """How often feeds are asked, and what one answer may cost."""

    interval_s: float = field(default=300.0, metadata={"help": "seconds between two looks at a feed"})
    timeout_s: float = field(default=20.0, metadata={"help": "limit of one fetch, whole answer, in seconds"})
    max_bytes: int = field(default=10_000_000, metadata={"help": "largest document, decompressed, in bytes"})
    max_backoff_s: float = field(
        default=3_600.0, metadata={"help": "longest wait after failures, unless the server asks for more"}
    )
    keep_seen: int = field(default=5_000, metadata={"help": "entries remembered of each feed"})
    stream: str | None = field(
        default=None, metadata={"help": "stream of every article; none: the feed's title"}
    )
    state: Path = field(default=Path(".dysra/feeds"), metadata={"help": "folder of what was seen before"})

    def __post_init__(self) -> None:
        for name in ("interval_s", "timeout_s", "max_backoff_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("max_bytes", "keep_seen"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def check_addresses(urls: Sequence[str]) -> list[str]:
    """The addresses, each once; UsageError for what no feed can be fetched from."""
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no feed address; http:// or https:// and a host are needed")
    if not urls:
        raise UsageError("no feed address is given; give at least one")
    return list(dict.fromkeys(urls))


class FeedPoller:
    """Polls `urls`; what was published before is known from the state folder, over restarts too.

    An entry is marked as seen only after the brokers acknowledged it: a kill repeats it and loses nothing.
    """

    def __init__(
        self,
        urls: Sequence[str],
        publisher: Publisher,
        config: FeedConfig | None = None,
        limits: ArticleLimits | None = None,
        *,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config or FeedConfig()
        self.limits = limits or ArticleLimits()
        self.publisher = publisher
        self.urls = check_addresses(urls)
        self._state = FeedState(self.config.state / f"{publisher.topic}.sqlite", keep=self.config.keep_seen)
        self._say = on_event or (lambda _: None)
        self._log = get_logger(topic=publisher.topic)
        self._errors: dict[str, str] = {}
        self._bad_documents: set[str] = set()
        self._counts = dict.fromkeys(
            ("polls", "not_modified", "entries", "published", "updated", "unchanged", "bad_entries"), 0
        )

    def run(self, *, once: bool = False, stop: threading.Event | None = None) -> dict[str, Any]:
        """Poll until `stop` is set (StoppedEarly with the figures), or each feed once; the figures.

        With `once`, raises DependencyUnreachable if no feed could be fetched and BadData if none was a feed.
        """
        stop = stop or threading.Event()
        try:
            with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="feed") as pool:
                while not stop.is_set():
                    self._poll_due(pool, stop)
                    if once or all(self._state.feed(url).gone for url in self.urls):
                        break
                    self._wait(stop)
        finally:
            self._state.close()
        figures = self._figures()
        failure: DependencyUnreachable | BadData | StoppedEarly | None = None
        if stop.is_set() and not once:
            failure = StoppedEarly("stopped; what was published is remembered")
        elif len(self._errors) == len(self.urls):
            told = "; ".join(f"{url}: {error}" for url, error in self._errors.items())
            kind = BadData if self._bad_documents >= set(self.urls) else DependencyUnreachable
            failure = kind(f"no feed could be read: {told}")
        if failure is not None:
            failure.figures = figures  # type: ignore[union-attr]
            raise failure
        return figures

    def _poll_due(self, pool: ThreadPoolExecutor, stop: threading.Event) -> None:
        limits = FetchLimits(timeout_s=self.config.timeout_s, max_bytes=self.config.max_bytes)
        pending = []
        for url in self.urls:
            feed = self._state.feed(url)
            if feed.gone:
                self._errors[url] = "the feed was taken down for good; leave it out"
            elif feed.next_due > time.time() and feed.failures:
                self._errors.setdefault(
                    url, f"asked again in {feed.next_due - time.time():.0f} s, after failures"
                )
            elif feed.next_due <= time.time() or not self._counts["polls"]:
                pending.append((feed, pool.submit(fetch, url, feed.etag, feed.modified, limits)))
        for feed, answer in pending:
            # Each fetch bounds itself to twice its limit; a queue of slow feeds may be before it.
            document = answer.result(timeout=2 * self.config.timeout_s * (2 + len(pending) / _FETCHERS) + 30)
            if stop.is_set():
                return
            self._counts["polls"] += 1
            self._take(feed, document)

    def _take(self, feed: FeedRow, document: Fetched) -> None:
        """Publish what one answer brings, then remember it."""
        if document.outcome in ("failed", "gone"):
            self._failed(feed, document.problem, document.retry_after_s, gone=document.outcome == "gone")
            return
        present: list[Seen] = []
        if document.outcome == "unchanged":
            self._counts["not_modified"] += 1
        else:
            try:
                entries = read_entries(document, feed.url)
            except NotAFeed as error:
                self._bad_documents.add(feed.url)
                self._failed(feed, str(error), None)
                return
            present = self._publish(feed.url, entries)
            feed.etag, feed.modified = document.etag, document.modified
        self._errors.pop(feed.url, None)
        feed.failures, feed.next_due = 0, time.time() + self.config.interval_s
        self._state.save(feed, present)

    def _publish(self, url: str, entries: list[FeedEntry]) -> list[Seen]:
        """Publish new and changed entries, acknowledged on return; what is present now."""
        # The last of two entries with one id is the newer.
        newest = {entry.id: entry for entry in entries}
        known = self._state.seen(url, newest)
        now = datetime.now(UTC)
        present, new, updated = [], 0, 0
        for entry in newest.values():
            before = known.get(entry.id)
            self._counts["entries"] += 1
            if before is not None and before.fingerprint == entry.fingerprint:
                self._counts["unchanged"] += 1
                present.append(before)
                continue
            try:
                article = self._article(entry, before, now)
                self.publisher.publish(article)
            except (BadRecord, RecordTooLarge) as error:
                self._counts["bad_entries"] += 1
                self._log.warning("bad_entry", feed=url, entry=entry.id, error=str(error))
                continue
            new, updated = new + (before is None), updated + (before is not None)
            present.append(Seen(entry.id, entry.fingerprint, article.published_ms, article.version_ms))
        self.publisher.flush()
        self._counts["published"] += new
        self._counts["updated"] += updated
        if new or updated:
            self._say(f"{url}: {new:,} new, {updated:,} updated")
        return present

    def _article(self, entry: FeedEntry, before: Seen | None, now: datetime) -> Article:
        latest = now + timedelta(seconds=self.limits.max_future_s)
        published = entry.published or entry.updated or now
        if not self.limits.earliest <= published <= latest:
            published = now
        updated = entry.updated if entry.updated and published < entry.updated <= latest else None
        if before is not None:
            published = from_ms(before.published_ms)
            # A feed that changes an entry and not its date is newer all the same.
            if updated is None or to_ms(updated) <= before.version_ms:
                updated = max(now, from_ms(before.version_ms + 1))
        fields: dict[str, Any] = {
            "id": entry.id,
            "published": isoformat(published),
            "source": entry.source,
            "title": entry.title[: self.limits.max_title_chars],
            "text": entry.text,
            "topics": list(entry.topics),
            "stream": self.config.stream or default_stream(entry.source),
            "url": entry.url,
        }
        if updated is not None:
            fields["updated"] = isoformat(updated)
        return parse_article(fields, self.limits, now)

    def _failed(
        self, feed: FeedRow, problem: str, retry_after_s: float | None, *, gone: bool = False
    ) -> None:
        feed.failures += 1
        feed.gone = gone
        wait_s = min(self.config.interval_s * 2 ** min(feed.failures - 1, 20), self.config.max_backoff_s)
        if retry_after_s is not None:
            wait_s = min(max(wait_s, retry_after_s), _LONGEST_WAIT_S)
        feed.next_due = time.time() + wait_s
        self._errors[feed.url] = problem
        self._log.warning(
            "feed_failed", feed=feed.url, error=problem, failures=feed.failures, wait_s=round(wait_s)
        )
        self._say(f"{feed.url}: {problem}; asked again in {wait_s:,.0f} s")
        self._state.save(feed)

    def _wait(self, stop: threading.Event) -> None:
        due = min(
            (feed.next_due for feed in map(self._state.feed, self.urls) if not feed.gone),
            default=time.time() + self.config.interval_s,
        )
        stop.wait(min(max(0.05, due - time.time()), self.config.interval_s))

    def _figures(self) -> dict[str, Any]:
        return {
            "topic": self.publisher.topic,
            "feeds": len(self.urls),
            **self._counts,
            "errors": self._errors,
        }
