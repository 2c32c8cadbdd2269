"""One session: the history of one stream in one cache, read article by article.

A session is changed by `read` alone, by `drop` where the store tells of a withdrawal that its records do not,
and by a rebuild (`pipeline/session/rebuild.py`) once an article that it has read was corrected or withdrawn.
Questions look at it and leave it as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.cache import CacheConfig
from pipeline.article import ArticleLimits
from pipeline.session.config import SessionConfig
from pipeline.session.intake import Intake, plan, remembered
from pipeline.session.snapshot import CorruptSnapshot, Snapshot
from pipeline.session.state import NewerState, SessionKey, SessionState
from pipeline.source import Record

if TYPE_CHECKING:
    from models.hf import HfBackbone


class OtherModel(ValueError):
    """A snapshot whose cache another model, or another shape of cache, has written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What reading one record did: tokens read, and tokens dropped of the article's former version by part."""

    tokens: int
    retracted: bool = False
    dropped: dict[str, int] = field(default_factory=dict)


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
        return cls(key, parts, cache, SessionState(model=parts.backbone.identity, seed=parts.config.seed))

    @classmethod
    def restore(cls, key: SessionKey, parts: SessionParts, snapshot: Snapshot) -> Session:
        """The session that wrote `snapshot`; OtherModel if this model and shape of cache cannot continue it,
        NewerState if a later version wrote it."""
        from models.cache import RotatingCompressiveCache
        from models.cache.snapshot import NewerSnapshot

        state = _state_of(snapshot, parts)
        if state.model != parts.backbone.identity:
            raise OtherModel(f"written by {state.model}, this is {parts.backbone.identity}")
        try:
            cache = RotatingCompressiveCache.from_bytes(snapshot.cache, parts.backbone, parts.cache)
        except NewerSnapshot as error:
            raise NewerState(str(error)) from None
        except ValueError as error:
            raise OtherModel(str(error)) from None
        return cls(key, parts, cache, state)

    @classmethod
    def adopt(cls, key: SessionKey, parts: SessionParts, snapshot: Snapshot) -> Session:
        """The session of a snapshot with an empty cache of this model and shape, to be rebuilt from articles."""
        state = _state_of(snapshot, parts)
        session = cls(key, parts, parts.backbone.new_cache(parts.cache), state)
        state.model = parts.backbone.identity
        for article in state.read.values():
            article.let_go()
        state.rebuild_from = state.window_start(session.cache.tokens_held)
        return session

    def plan(self, record: Record) -> Intake | None:
        """What is to be read of the record, or None once it has been passed over. No model work."""
        intake = plan(record, self.key.stream, self.state, self.parts.limits)
        if isinstance(intake, Intake):
            return intake
        counts = self.state.counts
        setattr(counts, intake, getattr(counts, intake) + 1)
        self._passed(record)
        return None

    def apply(self, record: Record, intake: Intake) -> Applied:
        """Read what `plan` returned for the record into the cache. Model work.

        The article's former version, if it was read, is dropped first; a withdrawal reads nothing.
        """
        state, counts = self.state, self.state.counts
        dropped = self._retract(intake.article_id)
        first, num_tokens = -1, 0
        if intake.text:
            first, num_tokens = read_into(self.cache, self.parts, intake.text)
            state.tokens_read += num_tokens
        state.remember(
            intake.article_id, remembered(intake, first, num_tokens), self.parts.config.max_read_ids
        )
        if intake.kind == "article":
            counts.articles += 1
        elif intake.kind == "update":
            counts.updates += 1
        else:
            counts.withdrawn += 1
        state.last_published_ms = max(state.last_published_ms, intake.published_ms)
        self._passed(record)
        return Applied(tokens=num_tokens, retracted=dropped is not None, dropped=dropped or {})

    def drop(self, intake: Intake) -> Applied:
        """Withdraw an article though no record here says so (`pipeline/session/elsewhere.py`). Model work."""
        dropped = self._retract(intake.article_id)
        self.state.remember(intake.article_id, remembered(intake, -1, 0), self.parts.config.max_read_ids)
        self.state.counts.elsewhere += 1
        return Applied(tokens=0, retracted=dropped is not None, dropped=dropped or {})

    def _retract(self, article_id: str) -> dict[str, int] | None:
        """Drop the article's tokens and ask for a rebuild where they left a trace; None if it was not read.

        Whether, and from where, follows from the records read alone: not from how far an earlier rebuild is.
        """
        state, cache = self.state, self.cache
        known = state.read.get(article_id)
        if known is None or known.withdrawn:
            return None
        parts: dict[str, int] = {}
        if known.held:
            parts = cache.drop(known.first_token, known.first_token + known.num_tokens)
            for article in state.read.values():
                if article.first_token > known.first_token:
                    article.first_token -= parts.get("pending", 0)
        # What is held now was computed while the tokens of twice the cache's length could be seen.
        leaves_trace = state.tokens_since(article_id) <= 2 * cache.tokens_held
        del state.read[article_id]
        if self.parts.config.retractions == "rebuild" and leaves_trace:
            state.rebuild_from = state.window_start(cache.tokens_held)
        return parts

    def read(self, records: Iterable[Record]) -> list[Intake]:
        """Read records in order, those before the session's offsets left out; returns what was read."""
        done = []
        for record in records:
            if self.has_passed(record):
                continue
            intake = self.plan(record)
            if intake is not None:
                self.apply(record, intake)
                done.append(intake)
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


def read_into(cache: Any, parts: SessionParts, text: str) -> tuple[int, int]:
    """Read an article's text into a cache: where its tokens begin, and how many there are. Model work."""
    backbone = parts.backbone
    ids = backbone.encode(text)[: parts.config.max_article_tokens]
    before = backbone.bos if cache.tokens_seen == 0 else []
    first = cache.tokens_seen + len(before)
    backbone.read([*before, *ids], cache)
    return first, len(ids)


def _state_of(snapshot: Snapshot, parts: SessionParts) -> SessionState:
    try:
        return SessionState.from_json(snapshot.state, len(parts.backbone.bos))
    except NewerState:
        raise
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptSnapshot(f"its state cannot be read: {error}") from None
