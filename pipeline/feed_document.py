"""Fetches one feed within limits, and reads its entries as articles."""

from __future__ import annotations

import calendar
import hashlib
import io
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import feedparser
import httpx

from pipeline.html_text import html_to_text

_AGENT = "dysra (news memory; asks with conditional requests)"
_ACCEPT = "application/rss+xml, application/atom+xml, application/xml;q=0.9, text/xml;q=0.9, */*;q=0.1"
_MAX_ID_CHARS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """What one fetch may cost."""

    timeout_s: float
    max_bytes: int
    max_redirects: int = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """The outcome of one request. `problem` says why there is no document, for a person."""

    outcome: Literal["document", "unchanged", "failed", "gone"]
    body: bytes = b""
    content_type: str = ""
    location: str = ""
    etag: str | None = None
    modified: str | None = None
    retry_after_s: float | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedEntry:
    """One entry in plain text; times in UTC, None where the feed has none (or one nobody can mean)."""

    id: str
    title: str
    text: str
    source: str
    url: str | None
    topics: tuple[str, ...]
    published: datetime | None
    updated: datetime | None

    @property
    def fingerprint(self) -> str:
        """Changes exactly when what a reader sees changes."""
        seen = "\x00".join((self.title, self.text, self.url or ""))
        return hashlib.blake2b(seen.encode(errors="replace"), digest_size=16).hexdigest()


class NotAFeed(ValueError):
    """A document that is no RSS or Atom; the message says what the parser found."""


def fetch(url: str, etag: str | None, modified: str | None, limits: FetchLimits) -> Fetched:
    """Ask for a feed's document unless it is unchanged; never raises for what a server does.

    Bounded in time over the whole answer (a server that drips ends too), in bytes after decompression, and in
    redirects.
    """
    headers = {"User-Agent": _AGENT, "Accept": _ACCEPT}
    if etag:
        headers["If-None-Match"] = etag
    if modified:
        headers["If-Modified-Since"] = modified
    deadline = time.monotonic() + limits.timeout_s
    timeout = httpx.Timeout(limits.timeout_s, connect=min(10.0, limits.timeout_s))
    client = httpx.Client(follow_redirects=True, max_redirects=limits.max_redirects, timeout=timeout)
    # The client's own limits are for one read each; a server may send its headers a byte at a time.
    watchdog = threading.Timer(limits.timeout_s, client.close)
    watchdog.daemon = True
    watchdog.start()
    try:
        with client, client.stream("GET", url, headers=headers) as response:
            if response.status_code != 200:
                return _refused(response)
            body = bytearray()
            for block in response.iter_bytes():
                body += block
                if len(body) > limits.max_bytes:
                    return Fetched(
                        outcome="failed", problem=f"the document is larger than {limits.max_bytes:,} bytes"
                    )
                if time.monotonic() > deadline:
                    return Fetched(outcome="failed", problem=f"no whole answer in {limits.timeout_s:g} s")
            return Fetched(
                outcome="document",
                body=bytes(body),
                content_type=response.headers.get("content-type", ""),
                location=str(response.url),
                etag=response.headers.get("etag"),
                modified=response.headers.get("last-modified"),
            )
    except httpx.TimeoutException:
        return Fetched(outcome="failed", problem=f"no answer in {limits.timeout_s:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, RuntimeError, ValueError, OSError) as error:
        if time.monotonic() > deadline:
            return Fetched(outcome="failed", problem=f"no whole answer in {limits.timeout_s:g} s")
        return Fetched(outcome="failed", problem=f"{type(error).__name__}: {error}")
    finally:
        watchdog.cancel()


def read_entries(document: Fetched, feed_url: str) -> list[FeedEntry]:
    """The entries of a document, oldest first; NotAFeed if it is none."""
    headers = {"content-location": document.location}
    if document.content_type:
        headers["content-type"] = document.content_type
    # A stream, because the parser takes bytes for the name of a local file before it takes them for a document.
    try:
        parsed = feedparser.parse(io.BytesIO(document.body), response_headers=headers)
    except Exception as error:  # it raises many, over what strangers write (`&#x110000;` in what is no XML)
        raise NotAFeed(f"not a feed that can be read: {type(error).__name__}: {error}") from None
    if not parsed.entries and (parsed.get("bozo") or not parsed.get("version")):
        cause = parsed.get("bozo_exception")
        raise NotAFeed(f"not a feed: {cause or document.content_type or 'no RSS or Atom found'}")
    host = urlsplit(feed_url).hostname or "feed"
    source = html_to_text(parsed.feed.get("title", "")) or host
    entries = [entry for item in parsed.entries if (entry := _entry(item, source, host)) is not None]
    # Feeds list the newest first; what has no date keeps its place in that order.
    entries.reverse()
    return sorted(
        entries, key=lambda entry: entry.updated or entry.published or datetime.max.replace(tzinfo=UTC)
    )


def _refused(response: httpx.Response) -> Fetched:
    if response.status_code == 304:
        return Fetched(outcome="unchanged")
    said = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code == 410:
        return Fetched(outcome="gone", problem=f"{said}: the feed was taken down for good")
    return Fetched(
        outcome="failed", problem=said, retry_after_s=_retry_after(response.headers.get("retry-after"))
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from either form of the header; None if it says nothing that can be read."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value.strip())
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _entry(item: Any, source: str, host: str) -> FeedEntry | None:
    title = _plain(item.get("title", ""), item.get("title_detail"))
    text = ""
    for part in (*item.get("content", ()), item.get("summary_detail") or {}):
        text = max(text, _plain(part.get("value", ""), part), key=len)
    if not title and not text:
        return None
    link = item.get("link") or None
    name = (
        item.get("id") or link or hashlib.blake2b(f"{title}\x00{text}".encode(), digest_size=16).hexdigest()
    )
    # A bare number or word is unique within its feed at most.
    article_id = name if "://" in name or name.startswith(("urn:", "tag:")) else f"{host}:{name}"
    article_id = "".join(character for character in article_id if character.isprintable())
    if len(article_id) > _MAX_ID_CHARS:
        article_id = f"{host}:{hashlib.blake2b(article_id.encode(), digest_size=20).hexdigest()}"
    origin = (item.get("source") or {}).get("title")
    first_words = text.split("\n", 1)[0][:120]
    return FeedEntry(
        id=article_id,
        title=title or first_words,
        text=text or title,
        source=html_to_text(origin) if origin else source,
        url=link,
        topics=tuple(dict.fromkeys(tag["term"] for tag in item.get("tags", ()) if tag.get("term"))),
        published=_moment(item, "published_parsed"),
        updated=_moment(item, "updated_parsed"),
    )


def _plain(value: str, detail: Any) -> str:
    if detail and detail.get("type") == "text/plain":
        return value.strip()
    return html_to_text(value)


def _moment(item: Any, name: str) -> datetime | None:
    # The parser's own `get` takes the one date for the other where only one is there.
    if name not in item or item[name] is None:
        return None
    try:
        return datetime.fromtimestamp(calendar.timegm(item[name]), UTC)
    except (ValueError, OverflowError, OSError):
        return None
