"""The growing segment: rows arrive, room doubles, search is brute force over a preallocated matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.article import Article
from pipeline.store.records import Chunk
from pipeline.store.segment import COLUMNS, ArticleRow, Hits, Names, Segment
from pipeline.store.vector_index import MatrixIndex, growing_matrix

_FAR = 2**63 - 1


class GrowingSegment(Segment):
    """Rows in memory; the write-ahead log is what makes them durable. One writer, any number of readers:
    a reader only looks at rows below the count that it took under the shard's lock."""

    _index: MatrixIndex

    def __init__(self, name: str, dim: int, capacity: int, device: str) -> None:
        self.name = name
        self.num_rows = self.num_articles = self.num_dead = self.num_dead_articles = 0
        self.num_text_bytes = 0
        self.oldest_ms, self.newest_ms = _FAR, -_FAR
        self.streams, self.sources = Names(), Names()
        for column, dtype in COLUMNS.items():
            setattr(self, column, np.zeros(capacity, dtype=dtype))
        self.dead = np.zeros(capacity, dtype=bool)
        self.first_chunk = np.zeros(capacity, dtype=np.int64)
        self.num_chunks = np.zeros(capacity, dtype=np.int32)
        self.dead_articles = np.zeros(capacity, dtype=bool)
        self.articles: list[ArticleRow] = []
        self.chunks: list[Chunk] = []
        self._index = growing_matrix(dim, capacity, device)
        self._row_of: dict[int, int] = {}

    def add(
        self, row: ArticleRow, chunks: list[Chunk], chunk_ids: Sequence[int], vectors: NDArray[np.float16]
    ) -> int:
        """Append an article and its chunks; returns its article row."""
        article, at, begin = row.article, self.num_articles, self.num_rows
        end = begin + len(chunks)
        self._make_room(end, at + 1)
        if chunks:
            self._index.add(vectors)
            span = slice(begin, end)
            self.chunk_id[span] = chunk_ids
            self.published_ms[span] = article.published_ms
            self.version_ms[span] = article.version_ms
            self.stream[span] = self.streams.code(article.stream)
            self.source[span] = self.sources.code(article.source)
            self.article[span] = at
            self.chunks.extend(chunks)
            self._row_of.update(zip(chunk_ids, range(begin, end), strict=True))
        self.first_chunk[at], self.num_chunks[at] = begin, len(chunks)
        self.articles.append(row)
        self.num_text_bytes += 2 * len(article.text)
        self.oldest_ms = min(self.oldest_ms, article.published_ms)
        self.newest_ms = max(self.newest_ms, article.published_ms)
        self.num_rows, self.num_articles = end, at + 1
        return at

    def begin(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Callable[[], Hits]:
        """As promised by Segment."""
        return self._index.begin(queries, k, num_rows, allowed)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """As promised by Segment."""
        return self._index.gather(rows)

    def chunk(self, row: int) -> Chunk:
        """As promised by Segment."""
        return self.chunks[row]

    def article_row(self, row: int) -> ArticleRow:
        """As promised by Segment."""
        return self.articles[row]

    def heading(self, row: int) -> tuple[str, str, str, str, str | None]:
        """As promised by Segment."""
        article: Article = self.articles[row].article
        return article.id, article.title, article.source, article.stream, article.url

    def signature(self, row: int) -> bytes:
        """As promised by Segment."""
        return self.articles[row].signature

    def find(self, chunk_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """As promised by Segment; the last row written with an id is the living one, if any lives."""
        rows = [self._row_of.get(chunk_id, -1) for chunk_id in chunk_ids.tolist()]
        return np.array(rows, dtype=np.int64)

    @property
    def memory_bytes(self) -> int:
        """As promised by Segment, texts included."""
        fields = sum(int(getattr(self, column).nbytes) for column in COLUMNS)
        return self._index.memory_bytes + fields + 2 * self.num_text_bytes

    def _make_room(self, rows: int, articles: int) -> None:
        if rows > len(self.dead):
            room = max(rows, 2 * len(self.dead))
            for column in (*COLUMNS, "dead"):
                setattr(self, column, _grown(getattr(self, column), room))
        if articles > len(self.dead_articles):
            room = max(articles, 2 * len(self.dead_articles))
            for column in ("first_chunk", "num_chunks", "dead_articles"):
                setattr(self, column, _grown(getattr(self, column), room))


def _grown(array: NDArray[np.generic], room: int) -> NDArray[np.generic]:
    grown = np.zeros(room, dtype=array.dtype)
    grown[: len(array)] = array
    return grown
