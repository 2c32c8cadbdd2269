"""What a session needs from the parts around it, as types: records, the store, and a place for model work.

The backbone and its cache have their own: `models/backbone.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.article import Article
from pipeline.store.records import Passage, StoredArticle

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One search: times in milliseconds since the epoch, None where there is no bound."""

    text: str
    k: int
    streams: frozenset[str] | None = None
    sources: frozenset[str] | None = None
    since_ms: int | None = None
    as_of_ms: int | None = None


class Changed(NamedTuple):
    """Articles corrected or withdrawn after a cursor, and the next cursor; `truncated`: others too, maybe."""

    article_ids: frozenset[str]
    cursor: Sequence[int]
    truncated: bool


class Place(NamedTuple):
    """An article's newest version and the stream that it stands in; None: it was withdrawn."""

    version_ms: int
    stream: str | None


def place_of(stored: StoredArticle) -> Place:
    """Where a stored article, or the tombstone of one, stands."""
    stream = None if stored.deleted or stored.article is None else stored.article.stream
    return Place(stored.version_ms or 0, stream)


class Library(Protocol):
    """The store as a session sees it; every call returns within its deadline or raises."""

    def search(self, query: Query, deadline_s: float) -> tuple[list[Passage], bool]:
        """Passages, best first, and whether a shard did not answer in time."""

    def articles(self, article_ids: Sequence[str], deadline_s: float) -> Mapping[str, StoredArticle]:
        """The newest version, or tombstone, of each article; unknown ids are left out."""

    def recent(self, stream: str, limit: int, before_ms: int | None, deadline_s: float) -> list[Article]:
        """The newest articles of a stream, newest first."""

    def changes(self, cursor: Sequence[int] | None) -> Changed:
        """What changed since (None: since as long ago as is known); raises where a shard does not answer."""

    def places(self, article_ids: Sequence[str]) -> Mapping[str, Place]:
        """Where articles stand, unknown ones left out; raises where a shard does not answer."""

    def embed(self, texts: Sequence[str], deadline_s: float) -> npt.NDArray[np.float32] | None:
        """Unit vectors of the texts, or None where no embedder is at hand."""


class ModelRunner(Protocol):
    """Where model work runs: one job at a time, questions before reading."""

    def call(self, job: Callable[[], T]) -> T:
        """The result of `job`."""

    def iterate(self, job: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The items of the iterator that `job` makes, each as soon as it is there."""


class InlineRunner:
    """Runs model work where it is asked for: for one thread, in tests and scripts."""

    def call(self, job: Callable[[], T]) -> T:
        """The result of `job`."""
        return job()

    def iterate(self, job: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The items of the iterator that `job` makes."""
        yield from job()
