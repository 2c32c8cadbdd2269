"""Known news for faults: a seeded row of records, and what a store must hold once it has taken them all.

Every record is drawn from its place in the row alone, so any part can be made again. The expectation is a fold
of its own, written against the contract and not against the store's code.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from pipeline.article import Article, to_ms

RecordKind = Literal["new", "update", "repeat", "older", "delete", "revive", "near", "bad"]
State = Literal["live", "deleted", "linked"]

_START = datetime(2024, 3, 1, 6, tzinfo=UTC)
_SYLLABLES = ("har", "bri", "coun", "fer", "min", "sto", "val", "ket", "lor", "pas", "dun", "rel")
_WORDS = tuple(f"{a}{b}" for a in _SYLLABLES for b in _SYLLABLES)
_WEIGHTS: dict[RecordKind, int] = {
    "new": 50, "update": 18, "repeat": 8, "older": 5, "delete": 8, "revive": 4, "near": 4, "bad": 3,
}  # fmt: skip
COMMON_WORD = "gazette"
"""A word of every article: one keyword search finds them all."""


@dataclass(frozen=True, slots=True)
class Published:
    """One record of the topic. `bad` records have only an id; `canonical` is what a near-duplicate repeats."""

    number: int
    kind: RecordKind
    article_id: str
    stream: str
    article: Article | None = None
    canonical: str | None = None


@dataclass(slots=True)
class Known:
    """What the store must know of an id."""

    state: State
    version_ms: int
    article: Article | None
    canonical: str | None = None


@dataclass(slots=True)
class Expected:
    """The fold over all records so far: ids, and how often each outcome was due."""

    articles: dict[str, Known] = field(default_factory=dict)
    outcomes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("stored", "deleted", "dead_lettered", "linked", "same_version", "older"), 0
        )
    )
    num_records: int = 0

    def take(self, record: Published) -> None:
        """Fold one record in."""
        self.num_records += 1
        self.outcomes[self._outcome(record)] += 1

    def _outcome(self, record: Published) -> str:
        if record.kind == "bad":
            return "dead_lettered"
        known = self.articles.get(record.article_id)
        if record.article is None:
            if known is not None:
                self.articles[record.article_id] = Known("deleted", known.version_ms, None)
            return "deleted"
        version_ms = to_ms(record.article.updated or record.article.published)
        if known is not None and version_ms <= known.version_ms:
            return "same_version" if version_ms == known.version_ms else "older"
        linked = record.canonical is not None
        state: State = "linked" if linked else "live"
        self.articles[record.article_id] = Known(state, version_ms, record.article, record.canonical)
        return "linked" if linked else "stored"


class Timeline:
    """An endless row of records; `clock` moves the event times of what is drawn from then on."""

    def __init__(self, seed: int, *, num_streams: int = 3, words: int = 40, near: bool = True) -> None:
        self._random = random.Random(seed)
        self._seed, self._streams, self._words = seed, num_streams, words
        self._versions: dict[str, Article] = {}
        self._live: list[str] = []
        self._gone: list[str] = []
        self._kinds = [kind for kind in _WEIGHTS if near or kind != "near"]
        self._number = 0
        self.clock = timedelta()
        self.expected = Expected()

    def move_clock(self) -> timedelta:
        """Event times jump: to another decade, back by hours, or ahead by less than a day."""
        draw = self._random
        self.clock = draw.choice(
            (
                timedelta(days=-draw.randrange(1, 20_000)),
                timedelta(hours=-draw.randrange(1, 500)),
                timedelta(hours=draw.randrange(1, 500)),
            )
        )
        return self.clock

    def draw(self, count: int) -> list[Published]:
        """The next records; the expectation takes them in at once."""
        records = [self._next() for _ in range(count)]
        for record in records:
            self.expected.take(record)
        return records

    def _next(self) -> Published:
        draw, number = self._random, self._number
        self._number += 1
        kind = draw.choices(self._kinds, [_WEIGHTS[kind] for kind in self._kinds])[0]
        if kind == "revive" and not self._gone:
            kind = "new"
        if kind in ("update", "repeat", "older", "delete", "near") and not self._live:
            kind = "new"
        if kind == "bad":
            return Published(number, kind, f"bad-{self._seed}-{number}", self._stream(number))
        if kind == "new":
            return self._new(number)
        name = draw.choice(self._gone if kind == "revive" else self._live)
        was = self._versions[name]
        if kind == "near":
            return self._near(number, was)
        if kind == "delete":
            self._live.remove(name)
            self._gone.append(name)
            return Published(number, kind, name, was.stream)
        if kind == "repeat":
            return Published(number, kind, name, was.stream, was)
        step = timedelta(seconds=draw.randrange(1, 5_000))
        if kind == "older":
            text = self._text(number)
            older = _changed(was, text, max(was.published, (was.updated or was.published) - step))
            return Published(number, kind, name, was.stream, older)
        article = _changed(was, self._text(number), (was.updated or was.published) + step)
        self._versions[name] = article
        if kind == "revive":
            self._gone.remove(name)
            self._live.append(name)
        return Published(number, kind, name, was.stream, article)

    def _new(self, number: int) -> Published:
        name = f"f{self._seed}-{number}"
        article = Article(
            id=name,
            published=_START + timedelta(minutes=number) + self.clock,
            source=f"Wire {number % 2}",
            title=f"Report {number}",
            text=self._text(number),
            topics=("a", "b"),
            url=f"https://example.org/{name}",
            stream=self._stream(number),
        )
        self._versions[name] = article
        self._live.append(name)
        return Published(number, "new", name, article.stream, article)

    def _near(self, number: int, was: Article) -> Published:
        # Compared only within a stream and a window of event time: the copy follows its original at once. It is
        # never touched again, and its original is out of the draw, so that which one is linked stays certain.
        self._live.remove(was.id)
        name = f"f{self._seed}-{number}-copy"
        article = _changed(was, was.text, None, name=name, published=was.published + timedelta(seconds=30))
        return Published(number, "near", name, was.stream, article, was.id)

    def _stream(self, number: int) -> str:
        return f"desk-{number % self._streams}"

    def _text(self, number: int) -> str:
        words = self._random.choices(_WORDS, k=self._words)
        return f"{COMMON_WORD} only{self._seed}x{number} {' '.join(words)}."


def _changed(
    was: Article,
    text: str,
    updated: datetime | None,
    *,
    name: str | None = None,
    published: datetime | None = None,
) -> Article:
    return Article(
        id=name or was.id,
        published=published or was.published,
        updated=updated,
        source=was.source,
        title=was.title,
        text=text,
        topics=was.topics,
        url=was.url,
        stream=was.stream,
    )
