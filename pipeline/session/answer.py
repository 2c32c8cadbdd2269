"""Questions, answers and the events of an answer, as they leave the session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.article import from_ms, isoformat
from pipeline.errors import UsageError
from pipeline.session.sentences import Candidate

_QUOTE_CHARS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question to a stream; None takes the session's own setting."""

    text: str
    passages: int | None = None
    as_of_ms: int | None = None
    since_ms: int | None = None
    sources: frozenset[str] | None = None
    cross_stream: bool = False
    max_new_tokens: int | None = None
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UsageError("the question is empty; ask something")
        for name in ("passages", "max_new_tokens", "token_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        if self.since_ms is not None and self.as_of_ms is not None and self.since_ms > self.as_of_ms:
            raise UsageError("'since' lies after 'as_of'; nothing can have been published between them")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An article that an answer rests on, and the sentences of it that were read."""

    article_id: str
    title: str
    source: str
    stream: str
    published: str
    version: str
    url: str | None
    quote: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What an answer cost in tokens: the question, the sentences read, the cache attended to, the answer."""

    question: int = 0
    read: int = 0
    cache: int = 0
    generated: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lag:
    """How far a session is behind its stream: records not yet read in its partitions, and seconds since the
    last one read was published on the topic (0 when nothing waits)."""

    records: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer with its sources and its cost. `text` is empty when the reader gave up."""

    text: str
    sources: list[Source]
    given_up: bool
    partial: bool
    stream: str
    lag: Lag = field(default_factory=Lag)
    tokens: Tokens = field(default_factory=Tokens)
    session_bytes: int = 0
    latency_ms: float = 0.0
    model: str = ""
    attempts: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the API."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Event:
    """One step of an answer: `sources` (what is read), `token`, `restart` (a source changed), `done`."""

    kind: Literal["sources", "token", "restart", "done"]
    data: dict[str, Any]


def cite(chosen: Sequence[Candidate], answer: str = "") -> list[Source]:
    """One source an article of the chosen sentences; those that hold the answer's words come first,
    then in the order of the search."""
    by_article: dict[str, list[Candidate]] = {}
    for candidate in chosen:
        by_article.setdefault(candidate.article_id, []).append(candidate)
    sources = []
    for article_id, sentences in by_article.items():
        first = sentences[0]
        quote = " ".join(s.text for s in sorted(sentences, key=lambda s: s.position))
        sources.append(
            Source(
                article_id=article_id,
                title=first.title,
                source=first.source,
                stream=first.stream,
                published=isoformat(from_ms(first.published_ms)),
                version=isoformat(from_ms(first.version_ms)),
                url=first.url,
                quote=quote if len(quote) <= _QUOTE_CHARS else quote[: _QUOTE_CHARS - 1].rstrip() + "…",
            )
        )
    needle = answer.casefold().strip(" .")
    sources.sort(key=lambda s: min(c.rank for c in by_article[s.article_id]))
    sources.sort(key=lambda s: not (needle and needle in f"{s.title} {s.quote}".casefold()))
    return sources
