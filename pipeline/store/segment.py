"""What growing and sealed segments have in common: the fields of their rows, deaths, and filters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.article import Article
from pipeline.store.records import Chunk, SearchRequest

if TYPE_CHECKING:
    from pipeline.store.vector_index import VectorIndex

COLUMNS = {
    "chunk_id": np.int64,
    "published_ms": np.int64,
    "version_ms": np.int64,
    "stream": np.int32,
    "source": np.int32,
    "article": np.int32,
}


Hits = tuple[NDArray[np.float32], NDArray[np.int64]]
Fields = tuple[int, str, int, str, str, str, str, str | None]
"""Of a chunk: ordinal, text and tokens; of its article: id, title, source, stream and URL."""


@dataclass(frozen=True, slots=True)
class ArticleRow:
    """An article as a segment keeps it; `canonical_id` names what a near-duplicate was linked to."""

    article: Article
    signature: bytes = b""
    canonical_id: str | None = None
    similarity: float | None = None


class Names:
    """Names as small numbers."""

    def __init__(self, names: list[str] | None = None) -> None:
        self.names = names or []
        self._codes = {name: code for code, name in enumerate(self.names)}

    def code(self, name: str) -> int:
        """The number of a name, given on first sight."""
        code = self._codes.get(name)
        if code is None:
            code = self._codes[name] = len(self.names)
            self.names.append(name)
        return code

    def allowed(self, chosen: frozenset[str]) -> NDArray[np.bool_]:
        """For each number whether its name is chosen."""
        return np.fromiter((name in chosen for name in self.names), dtype=bool, count=len(self.names))


class Segment(ABC):
    """Rows of chunks and of articles; an article's chunks are neighbours. Rows die, they never move.

    `num_rows` and `num_articles` count dead ones too. `num_dead` and `num_dead_articles` say how many died.
    """

    name: str
    num_rows: int
    num_articles: int
    num_dead: int
    num_dead_articles: int
    oldest_ms: int
    newest_ms: int
    chunk_id: NDArray[np.int64]
    published_ms: NDArray[np.int64]
    version_ms: NDArray[np.int64]
    stream: NDArray[np.int32]
    source: NDArray[np.int32]
    article: NDArray[np.int32]
    first_chunk: NDArray[np.int64]
    num_chunks: NDArray[np.int32]
    dead: NDArray[np.bool_]
    dead_articles: NDArray[np.bool_]
    streams: Names
    sources: Names
    _index: VectorIndex
    _alive: tuple[int, int, NDArray[np.bool_]] | None = None

    def kill(self, row: int) -> None:
        """Let the article at `row` and its chunks die."""
        if self.dead_articles[row]:
            return
        self.dead_articles[row] = True
        self.num_dead_articles += 1
        first, count = int(self.first_chunk[row]), int(self.num_chunks[row])
        self.dead[first : first + count] = True
        self.num_dead += count

    def allowed(self, request: SearchRequest) -> NDArray[np.bool_] | None:
        """Which rows a request may see now; None stands for all, without the cost of a mask."""
        n = self.num_rows
        mask: NDArray[np.bool_] | None = self._living(n) if self.num_dead else None
        for names, codes, chosen in (
            (self.streams, self.stream, request.streams),
            (self.sources, self.source, request.sources),
        ):
            if chosen is not None:
                mask = _both(
                    mask, names.allowed(chosen)[codes[:n]] if names.names else np.zeros(n, dtype=bool)
                )
        if request.since_ms is not None and request.since_ms > self.oldest_ms:
            mask = _both(mask, self.published_ms[:n] >= request.since_ms)
        if request.as_of_ms is not None:
            mask = _both(mask, self.version_ms[:n] <= request.as_of_ms)
        return mask

    def _living(self, n: int) -> NDArray[np.bool_]:
        """The rows that live; the same array until something is added or dies, so that an index may keep it."""
        known = self._alive
        if known is None or known[:2] != (n, self.num_dead):
            known = self._alive = (n, self.num_dead, ~self.dead[:n])
        return known[2]

    @property
    def index(self) -> VectorIndex:
        """The index of its vectors."""
        return self._index

    @abstractmethod
    def begin(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Callable[[], Hits]:
        """Start a search; the call that is returned gives scores and rows [Q, k'] of the best allowed rows below
        `num_rows`, where row -1 fills what is missing."""

    def search(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Hits:
        """`begin`, and wait."""
        return self.begin(queries, k, num_rows, allowed)()

    @abstractmethod
    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors [len(rows), D], as kept in float16."""

    @abstractmethod
    def chunk(self, row: int) -> Chunk:
        """The chunk at a row."""

    @abstractmethod
    def article_row(self, row: int) -> ArticleRow:
        """The article at an article row."""

    @abstractmethod
    def heading(self, row: int) -> tuple[str, str, str, str, str | None]:
        """Id, title, source, stream and URL of the article at an article row."""

    def passage_fields(self, rows: list[int]) -> list[Fields]:
        """What passages show of the chunks at `rows`, in that order."""
        found: list[Fields] = []
        for row in rows:
            chunk, heading = self.chunk(row), self.heading(int(self.article[row]))
            found.append((chunk.ordinal, chunk.text, chunk.num_tokens, *heading))
        return found

    @abstractmethod
    def signature(self, row: int) -> bytes:
        """The near-duplicate signature of the article at an article row."""

    @abstractmethod
    def find(self, chunk_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each id, a living one where there is one; -1 where the id is not here."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes of the index and the fields held in memory (files mapped from disk are not counted)."""

    def close(self) -> None:  # noqa: B027 - a growing segment has nothing to close
        """Give mapped files back."""


def top_rows(
    scores: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best k of each question's scores [Q, n], best first."""
    if scores.shape[1] > k:
        keep = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, keep, 1), np.take_along_axis(rows, keep, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _both(mask: NDArray[np.bool_] | None, other: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return other if mask is None else mask & other
