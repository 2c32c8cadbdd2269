"""One session: the history of one stream in one cache, read article by article.

A session is changed by `read` alone. Questions look at it and leave it as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.cache import CacheConfig
from pipeline.article import ArticleLimits
from pipeline.session.config import SessionConfig
from pipeline.session.reading import Reading, plan, remembered
from pipeline.session.snapshot import CorruptSnapshot, Snapshot
from pipeline.session.state import SessionKey, SessionState
from pipeline.source import Record

if TYPE_CHECKING:
    from models.hf import HfBackbone


class OtherModel(ValueError):
    """A snapshot that another model, or another shape of cache, has written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionParts:
    """What all sessions of a process share."""

    config: SessionConfig
    cache: CacheConfig
    limits: ArticleLimits
    backbone: HfBackbone


class Session:
    """Reads records in the order given. Not thread-safe: one reader at a time."""

    def __init__(self, key: SessionKey, parts: SessionParts, cache: Any, state: SessionState) -> None:
        self.key = key
        self.parts = parts
        self.cache = cache
        self.state = state

    @classmethod
    def new(cls, key: SessionKey, parts: SessionParts) -> Session:
        """A session that has read nothing."""
        cache = parts.backbone.new_cache(parts.cache)
        return cls(key, parts, cache, SessionState(model=identity_of(parts), seed=parts.config.seed))

    @classmethod
    def restore(cls, key: SessionKey, parts: SessionParts, snapshot: Snapshot) -> Session:
        """The session that wrote `snapshot`; OtherModel if this backbone cannot continue it."""
        from models.cache import RotatingCompressiveCache

        try:
            state = SessionState.from_json(snapshot.state)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptSnapshot(f"its state cannot be read: {error}") from None
        if state.model != identity_of(parts):
            raise OtherModel(f"written by {state.model}, this is {identity_of(parts)}")
        cache = RotatingCompressiveCache.from_bytes(snapshot.cache, parts.backbone)
        return cls(key, parts, cache, state)

    def plan(self, record: Record) -> Reading | None:
        """What is to be read of the record, or None once it has been passed over. No model work."""
        reading = plan(record, self.key.stream, self.state, self.parts.limits)
        if isinstance(reading, Reading):
            return reading
        counts = self.state.counts
        setattr(counts, reading, getattr(counts, reading) + 1)
        self._passed(record)
        return None

    def apply(self, record: Record, reading: Reading) -> int:
        """Read what `plan` returned for the record into the cache; the number of its tokens. Model work."""
        backbone, state = self.parts.backbone, self.state
        ids = backbone.encode(reading.text)[: self.parts.config.max_article_tokens]
        first = self.cache.tokens_seen
        backbone.read([*backbone.bos, *ids] if first == 0 else ids, self.cache)
        article = remembered(reading, first, len(ids))
        state.remember(reading.article_id, article, self.parts.config.max_read_ids)
        if reading.kind == "article":
            state.counts.articles += 1
        elif reading.kind == "update":
            state.counts.updates += 1
        else:
            state.counts.withdrawn += 1
        state.last_published_ms = max(state.last_published_ms, reading.published_ms)
        self._passed(record)
        return len(ids)

    def read(self, records: Iterable[Record]) -> list[Reading]:
        """Read records in order, those before the session's offsets left out; returns what was read."""
        done = []
        for record in records:
            if self.has_passed(record):
                continue
            reading = self.plan(record)
            if reading is not None:
                self.apply(record, reading)
                done.append(reading)
        return done

    def has_passed(self, record: Record) -> bool:
        """Whether the record lies before the session's offset in its partition."""
        return record.offset < (self.state.offsets or {}).get(record.partition, 0)

    def snapshot(self) -> Snapshot:
        """The session as bytes: equal for sessions that read the same records."""
        return Snapshot(cache=self.cache.to_bytes(), state=self.state.to_json())

    def digest(self) -> str:
        """SHA-256 over the cache's bytes and the offsets."""
        return hashlib.sha256(
            hashlib.sha256(self.cache.to_bytes()).digest() + self.state.offsets_json()
        ).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of the cache, fixed when the session was made."""
        return int(self.cache.nbytes)

    def _passed(self, record: Record) -> None:
        state = self.state
        state.counts.seen += 1
        state.last_timestamp_ms = max(state.last_timestamp_ms, record.timestamp_ms)
        if state.offsets is None:
            state.offsets = {}
        state.offsets[record.partition] = record.offset + 1


def identity_of(parts: SessionParts) -> str:
    """The model and the shape of the cache: what a snapshot must share with its reader."""
    shape = hashlib.sha256(repr(parts.cache).encode()).hexdigest()[:8]
    return f"{parts.backbone.identity}/cache-{shape}"
