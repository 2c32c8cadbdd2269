"""Articles as they arrive on the topic: parsing, validation and event time.

An article is one JSON value; its key is the article's id. A null value deletes. Whatever cannot be an
article raises `BadRecord` with a reason code, and the caller dead-letters it: nothing here guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

DELETE_ID_HEADER = "article-id"
"""Names the deleted article where records are keyed by something other than its id."""

_SLUG = re.compile(r"[^a-z0-9]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArticleLimits:
    """What a record may be; everything outside goes to the dead-letter topic."""

    max_record_bytes: int = field(default=1_000_000, metadata={"help": "largest record value, in bytes"})
    max_id_chars: int = field(default=512, metadata={"help": "longest article id, in characters"})
    max_title_chars: int = field(default=2_000, metadata={"help": "longest title, in characters"})
    max_depth: int = field(default=16, metadata={"help": "deepest nesting of the JSON value"})
    earliest: datetime = field(
        default=datetime(1700, 1, 1, tzinfo=UTC), metadata={"help": "no article is published before this"}
    )
    max_future_s: float = field(
        default=86_400.0, metadata={"help": "how far ahead of now a publication time may lie, in seconds"}
    )

    def __post_init__(self) -> None:
        for name in ("max_record_bytes", "max_id_chars", "max_title_chars", "max_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.earliest.tzinfo is None:
            raise ValueError(f"earliest is {self.earliest}, without a time zone; add one, for example +00:00")


class BadRecord(ValueError):
    """A record that cannot be an article. `reason` is a short code, `detail` a sentence for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Article:
    """One news record as published. Times are aware and in UTC."""

    id: str
    published: datetime
    source: str
    title: str
    text: str
    topics: tuple[str, ...] = ()
    url: str | None = None
    updated: datetime | None = None
    stream: str = ""

    @property
    def version_ms(self) -> int:
        """Milliseconds since the epoch of the last update: the later one replaces the earlier."""
        return to_ms(self.updated or self.published)

    @property
    def published_ms(self) -> int:
        """Milliseconds since the epoch of the first publication."""
        return to_ms(self.published)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `parse_article` reads back to an equal article."""
        value: dict[str, Any] = {
            "id": self.id,
            "published": isoformat(self.published),
            "source": self.source,
            "title": self.title,
            "text": self.text,
            "topics": list(self.topics),
            "stream": self.stream,
        }
        if self.url is not None:
            value["url"] = self.url
        if self.updated is not None:
            value["updated"] = isoformat(self.updated)
        return value

    def to_json(self) -> bytes:
        """The record value for the topic."""
        return orjson.dumps(self.to_dict())


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """A withdrawn article."""

    id: str


def to_ms(moment: datetime) -> int:
    """Milliseconds since the epoch, exact for any aware datetime."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000


def from_ms(ms: int) -> datetime:
    """The UTC datetime of milliseconds since the epoch."""
    return _EPOCH + timedelta(milliseconds=ms)


def isoformat(moment: datetime) -> str:
    """ISO 8601 in UTC with a trailing Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def default_stream(source: str) -> str:
    """The stream of an article that names none: its source as a slug."""
    return _SLUG.sub("-", source.lower()).strip("-") or "unnamed"


def parse_record(
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes]] = (),
    limits: ArticleLimits | None = None,
    now: datetime | None = None,
) -> Article | Deletion:
    """An article or a deletion from one Kafka record; raises BadRecord for anything else."""
    limits = limits or ArticleLimits()
    if value is None:
        return _parse_deletion(key, headers, limits)
    if len(value) > limits.max_record_bytes:
        raise BadRecord("too_large", f"the value has {len(value)} bytes; at most {limits.max_record_bytes}")
    shallow = value.count(b"[") + value.count(b"{") <= limits.max_depth
    try:
        fields = orjson.loads(value) if shallow else _checked(value, limits)
    except orjson.JSONDecodeError:
        fields = _checked(value, limits)
    return _article(fields, limits, now, clean=_is_plain(value))


def _is_plain(value: bytes) -> bool:
    """Whether no string of this JSON can hold a control character or a lone surrogate: JSON must escape them, all
    but DEL, and here the only escapes are line ends and quotes."""
    backslashes = value.count(b"\\")
    if backslashes and backslashes != value.count(b"\\n") + value.count(b'\\"'):
        return False
    return b"\x7f" not in value


def _checked(value: bytes, limits: ArticleLimits) -> Any:
    """The decoded JSON value, every check made in order so that the first fault is the one that is told."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("not_utf8", f"byte {error.start} of the value is not UTF-8") from None
    if _depth_exceeds(text, limits.max_depth):
        raise BadRecord("too_deep", f"the value nests deeper than {limits.max_depth} levels")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRecord("not_json", f"the value is not JSON: {error}") from None


def parse_article(fields: Any, limits: ArticleLimits | None = None, now: datetime | None = None) -> Article:
    """An article from a decoded JSON value; raises BadRecord naming the field at fault."""
    return _article(fields, limits or ArticleLimits(), now, clean=False)


def _article(fields: Any, limits: ArticleLimits, now: datetime | None, *, clean: bool) -> Article:
    """`clean`: no string can hold a control character or a lone surrogate, so that none need be looked for."""
    if not isinstance(fields, dict):
        raise BadRecord("not_object", f"the value is a JSON {_json_type(fields)}; an object is needed")
    article_id = _text(fields, "id", clean)
    if len(article_id) > limits.max_id_chars:
        raise BadRecord("bad_id", f"the id has {len(article_id)} characters; at most {limits.max_id_chars}")
    if not clean and _CONTROL.search(article_id):
        raise BadRecord("bad_id", "the id holds control characters")
    source = _text(fields, "source", clean)
    title = _text(fields, "title", clean)
    if len(title) > limits.max_title_chars:
        raise BadRecord(
            "bad_title", f"the title has {len(title)} characters; at most {limits.max_title_chars}"
        )
    body = _text(fields, "text", clean)
    if not clean:
        title, body = _CONTROL.sub(" ", title), _CONTROL.sub(" ", body)
        if not body.strip():
            raise BadRecord("missing_field", "'text' is blank")
    topics = fields.get("topics") or []
    if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
        raise BadRecord("bad_topics", "'topics' must be a list of strings")
    latest = (now or datetime.now(UTC)) + timedelta(seconds=limits.max_future_s)
    published = _time(fields, "published", limits, latest)
    if published is None:
        raise BadRecord("missing_field", "'published' is missing or null; an ISO 8601 time is needed")
    updated = _time(fields, "updated", limits, latest)
    if updated is not None and updated < published:
        raise BadRecord("bad_time", f"'updated' {isoformat(updated)} lies before 'published'")
    url = fields.get("url")
    if url is not None and not isinstance(url, str):
        raise BadRecord("bad_url", f"'url' is a {_json_type(url)}; a string is needed")
    stream = _text(fields, "stream", clean, required=False) or default_stream(source)
    return Article(
        id=article_id,
        published=published,
        source=source,
        title=title,
        text=body,
        topics=tuple(topics),
        url=url,
        updated=updated,
        stream=stream,
    )


def _parse_deletion(
    key: bytes | None, headers: Iterable[tuple[str, bytes]], limits: ArticleLimits
) -> Deletion:
    named = dict(headers).get(DELETE_ID_HEADER, key)
    if not named:
        raise BadRecord("no_key", "a null value deletes, but neither the key nor a header names the article")
    try:
        article_id = named.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRecord("not_utf8", "the key of a deletion is not UTF-8") from None
    if len(article_id) > limits.max_id_chars:
        raise BadRecord("bad_id", f"the id has {len(article_id)} characters; at most {limits.max_id_chars}")
    return Deletion(id=article_id)


def _text(fields: dict[str, Any], name: str, clean: bool, *, required: bool = True) -> str:
    value = fields.get(name)
    if value is None:
        if required:
            raise BadRecord("missing_field", f"'{name}' is missing")
        return ""
    if not isinstance(value, str):
        raise BadRecord("wrong_type", f"'{name}' is a {_json_type(value)}; a string is needed")
    if required and (not value or value.isspace()):
        raise BadRecord("missing_field", f"'{name}' is blank")
    if not clean:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRecord("not_utf8", f"'{name}' holds a lone surrogate") from None
    return value


def _time(fields: dict[str, Any], name: str, limits: ArticleLimits, latest: datetime) -> datetime | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRecord("bad_time", f"'{name}' is a {_json_type(value)}; an ISO 8601 string is needed")
    try:
        moment = datetime.fromisoformat(value)
        # A time without a zone is read as UTC, as every feed in our data writes it.
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadRecord("bad_time", f"'{name}' is {value[:40]!r}; an ISO 8601 time is needed") from None
    if moment < limits.earliest or moment > latest:
        raise BadRecord(
            "bad_time",
            f"'{name}' is {isoformat(moment)}; "
            f"allowed is {isoformat(limits.earliest)} to {isoformat(latest)}",
        )
    return moment


def _depth_exceeds(text: str, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than `limit`; one pass, before the parser recurses."""
    if text.count("[") + text.count("{") <= limit:
        return False
    depth, in_string, escaped = 0, False, False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > limit:
                return True
        elif character in "]}":
            depth -= 1
    return False


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
