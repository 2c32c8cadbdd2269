"""Live keyword search (BM25, English stems) over a shard's chunks, by tantivy.

The index is derived: it is made again from the segments when it is missing, damaged, or disagrees with
them. Questions are untrusted text: they are cut into terms here, never parsed as a query language.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tantivy
from numpy.typing import NDArray
from tantivy import FieldType, Filter, Occur, Query, TextAnalyzerBuilder, Tokenizer

from pipeline.article import Article
from pipeline.log import get_logger
from pipeline.store.errors import StoreFailed
from pipeline.store.records import Chunk, SearchRequest

_ANALYZER = "english"
_HEAP_BYTES = 50_000_000
_MAX_TERMS = 128
_MAX_QUERY_CHARS = 8_192
_FOOTED = frozenset({".fast", ".fieldnorm", ".idx", ".pos", ".store", ".term", ".del"})
_FOOTER_MAGIC = 1_337
_VERSION = "3"
"""Part of the folder's name: a change of the fields below starts a new index."""


class LexicalHit(NamedTuple):
    """A chunk that holds words of the question."""

    chunk_id: int
    version_ms: int
    score: float


class LexicalIndex:
    """Chunks by their words. One writer; searches see what was committed."""

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        """With `verify` every file is read first, and an index with a damaged one (`damaged`) is begun anew: the
        Rust side, given one, may end the process."""
        self._folder = folder / f"v{_VERSION}"
        self._schema = _schema()
        self._analyzer = _analyzer(stopwords=True)
        self._question_analyzer = _analyzer(stopwords=False)
        self._pending = 0
        self._committed_at = -math.inf
        self.damaged = self.damaged_file() if verify else ""
        if self.damaged:
            get_logger(lexical=str(self._folder)).warning("lexical_index_damaged", file=self.damaged)
            shutil.rmtree(self._folder, ignore_errors=True)
        self._open()

    @property
    def num_docs(self) -> int:
        """Committed chunks."""
        count: int = self._index.searcher().num_docs
        return count

    def damaged_file(self) -> str:
        """A file of the index that does not match the checksum in its own footer; empty if there is none."""
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if path.suffix in _FOOTED and not _footer_holds(path.read_bytes()):
                return path.name
        return ""

    @property
    def has_pending(self) -> bool:
        """Whether something was added or removed since the last commit."""
        return self._pending > 0

    @property
    def since_commit_ms(self) -> float:
        """Milliseconds since the last commit."""
        return (time.monotonic() - self._committed_at) * 1_000

    def holds(self, chunk_ids: NDArray[np.int64], versions_ms: NDArray[np.int64]) -> bool:
        """Whether the committed chunks are exactly these, in any order."""
        searcher = self._index.searcher()
        if searcher.num_docs != len(chunk_ids):
            return False
        if not len(chunk_ids):
            return True
        hits = searcher.search(Query.all_query(), limit=searcher.num_docs, count=False).hits
        addresses = [address for _, address in hits]
        has = np.array(
            [searcher.fast_field_values(name, addresses) for name in ("chunk_id", "version_ms")], np.int64
        )
        wanted = np.array([chunk_ids, versions_ms], np.int64)
        return bool((_sorted(has) == _sorted(wanted)).all())

    def add(self, article: Article, chunks: Iterable[Chunk], chunk_ids: Iterable[int]) -> None:
        """Add the chunks of an article; visible after the next commit."""
        version_ms, published_ms = article.version_ms, article.published_ms
        for chunk, chunk_id in zip(chunks, chunk_ids, strict=True):
            document = tantivy.Document()
            # Title and text in one field: every chunk of an article answers to its title's words, and BM25 of
            # the whole found more than a sum over two fields on every question set that was measured.
            document.add_text("text", f"{article.title}\n{chunk.text}")
            document.add_text("article", article.id)
            document.add_text("stream", article.stream)
            document.add_text("source", article.source)
            document.add_integer("chunk_id", chunk_id)
            document.add_integer("published_ms", published_ms)
            document.add_integer("version_ms", version_ms)
            self._writer.add_document(document)
            self._pending += 1

    def remove(self, article_id: str) -> None:
        """Remove every chunk of an article; visible after the next commit."""
        self._writer.delete_documents_by_term("article", article_id)
        self._pending += 1

    def commit(self) -> None:
        """Make everything added and removed so far durable and visible."""
        if self._pending:
            self._writer.commit()
            self._index.reload()
            self._pending = 0
        self._committed_at = time.monotonic()

    def search(self, text: str, k: int, request: SearchRequest) -> list[LexicalHit]:
        """The best k chunks for a question; never raises for any text."""
        query = self._question(text)
        if query is None:
            return []
        return self._run(Query.boolean_query([(Occur.Must, query), *self._filters(request)]), k)

    def scores(self, text: str, chunk_ids: list[int]) -> dict[int, float]:
        """The scores of certain chunks; one that holds none of the words is left out (its score is 0)."""
        query = self._question(text)
        if query is None or not chunk_ids:
            return {}
        chosen = Query.const_score_query(Query.term_set_query(self._schema, "chunk_id", chunk_ids), 0.0)
        hits = self._run(Query.boolean_query([(Occur.Must, query), (Occur.Must, chosen)]), len(chunk_ids))
        return {hit.chunk_id: hit.score for hit in hits}

    def clear(self) -> None:
        """Start again with an empty index, whatever state this one is in."""
        try:
            self._close_writer()
        except BaseException as error:  # a writer that a full disk has ended raises what ended it
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
        self._pending = 0
        shutil.rmtree(self._folder, ignore_errors=True)
        self._open()

    def close(self) -> None:
        """Commit, let merges finish, and give the folder back."""
        self.commit()
        self._close_writer()

    def _open(self) -> None:
        for attempt in range(2):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._index: Any = tantivy.Index(self._schema, path=str(self._folder), reuse=True)
                self._index.register_tokenizer(_ANALYZER, self._analyzer)
                self._index.config_reader("manual")
                self._writer: Any = self._index.writer(heap_size=_HEAP_BYTES, num_threads=1)
                self._index.reload()
                return
            # A damaged index makes the Rust side raise several types; a panic is a BaseException.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                    raise
                if attempt:
                    raise StoreFailed(f"{self._folder}: no keyword index can be made: {error}") from None
                get_logger(lexical=str(self._folder)).warning("lexical_index_unreadable", error=str(error))
                shutil.rmtree(self._folder, ignore_errors=True)

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.wait_merging_threads()

    def _run(self, query: Query, k: int) -> list[LexicalHit]:
        searcher = self._index.searcher()
        hits = searcher.search(query, limit=max(1, k), count=False).hits
        addresses = [address for _, address in hits]
        ids = searcher.fast_field_values("chunk_id", addresses)
        versions = searcher.fast_field_values("version_ms", addresses)
        return [
            LexicalHit(chunk_id, version_ms, float(score))
            for (score, _), chunk_id, version_ms in zip(hits, ids, versions, strict=True)
        ]

    def _question(self, text: str) -> Query | None:
        clean = text[:_MAX_QUERY_CHARS].encode("utf-8", "replace").decode("utf-8")
        # Words such as "the" cost most of a search and say nothing, unless a question has no others.
        terms = self._question_analyzer.analyze(clean) or self._analyzer.analyze(clean)
        if not terms:
            return None
        unique = list(dict.fromkeys(terms))[:_MAX_TERMS]
        clauses = [Query.term_query(self._schema, "text", term, index_option="freq") for term in unique]
        return Query.boolean_query([(Occur.Should, clause) for clause in clauses])

    def _filters(self, request: SearchRequest) -> list[tuple[Occur, Query]]:
        filters = []
        for field, chosen in (("stream", request.streams), ("source", request.sources)):
            if chosen is not None:
                filters.append(Query.term_set_query(self._schema, field, sorted(chosen)))
        if request.since_ms is not None:
            filters.append(_range(self._schema, "published_ms", request.since_ms, None))
        if request.as_of_ms is not None:
            filters.append(_range(self._schema, "version_ms", None, request.as_of_ms))
        return [(Occur.Must, Query.const_score_query(query, 0.0)) for query in filters]


def _footer_holds(data: bytes) -> bool:
    """tantivy ends its files with a JSON footer (its length and a magic number after it) that has their CRC-32."""
    try:
        length, magic = struct.unpack("<II", data[-8:])
        footer = json.loads(data[-8 - length : -8])
        return bool(magic == _FOOTER_MAGIC and zlib.crc32(data[: -8 - length]) == footer["crc"])
    except (struct.error, ValueError, KeyError, TypeError):
        return False


def _sorted(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    ordered: NDArray[np.int64] = pairs[:, np.lexsort(pairs[::-1])]
    return ordered


def _range(schema: Any, field: str, low: int | None, high: int | None) -> Query:
    return Query.range_query(schema, field, FieldType.Integer, low, high)


def _analyzer(*, stopwords: bool) -> Any:
    steps = [Filter.remove_long(64), Filter.lowercase(), Filter.ascii_fold()]
    if not stopwords:
        steps.append(Filter.stopword("english"))
    builder = TextAnalyzerBuilder(Tokenizer.simple())
    for step in (*steps, Filter.stemmer("english")):
        builder = builder.filter(step)
    return builder.build()


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name=_ANALYZER, index_option="freq")
    for name in ("article", "stream", "source"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    builder.add_integer_field("chunk_id", indexed=True, fast=True)
    for name in ("published_ms", "version_ms"):
        builder.add_integer_field(name, indexed=False, fast=True)
    return builder.build()
