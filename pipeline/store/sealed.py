"""Sealed segments: Parquet is the truth; the faiss index and the mapped Arrow files are made from it.

A segment's folder holds `chunks.parquet` and `articles.parquet` (their checksums stand in the manifest), and
`chunks.arrow`, `articles.arrow` and `index.faiss` (checksums in `derived.json`): any of these three that
is missing or damaged is made again when the segment is opened.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.article import Article
from pipeline.log import get_logger
from pipeline.store.codec import from_us
from pipeline.store.config import StoreConfig
from pipeline.store.errors import StoreCorrupt
from pipeline.store.files import describe, matches, read_json, require, sync_file, sync_folder, write_json
from pipeline.store.records import Chunk
from pipeline.store.segment import ArticleRow, Fields, Hits, Names, Segment
from pipeline.store.vector_index import FaissIndex, device_index

TRUTH = ("chunks.parquet", "articles.parquet")
_MANY_ROWS = 16
_DERIVED = ("chunks.arrow", "articles.arrow", "index.faiss")


def write_segment(
    folder: Path, chunks: pa.Table, articles: pa.Table, config: StoreConfig
) -> dict[str, dict[str, int]]:
    """Write a whole segment, flushed, under its final name; returns the truth's sizes and checksums."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, table in zip(TRUTH, (chunks, articles), strict=True):
        pq.write_table(table, temporary / name, compression="zstd", compression_level=1)
        sync_file(temporary / name)
    _write_derived(temporary, chunks, articles, config)
    truth = {name: describe(temporary / name) for name in TRUTH}
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync_folder(folder.parent)
    return truth


class SealedSegment(Segment):
    """An immutable segment: rows only die. Texts and vectors stay on disk, mapped; fields and index are in
    memory."""

    def __init__(self, folder: Path, truth: dict[str, dict[str, int]], config: StoreConfig) -> None:
        """Open, making again whatever derived file is missing or damaged, and the truth from its mapped copy where
        that one is whole; StoreCorrupt that names the file where neither is."""
        self.name = folder.name
        self.folder = folder
        self.truth = truth
        self.repaired = ""
        damaged = [name for name in TRUTH if not matches(folder / name, truth[name], verify=config.verify)]
        if damaged:
            self.truth = rewritten_truth(folder, truth, damaged, repair=config.repair)
            self.repaired = f"{folder / damaged[0]} was written again from its mapped copy"
        if not _derived_is_whole(folder, config):
            get_logger(segment=str(folder)).warning("segment_index_rebuilt")
            _write_derived(folder, *_read_truth(folder, self.truth), config)
        self._chunks = _map(folder / "chunks.arrow")
        self._articles = _map(folder / "articles.arrow")
        self.num_rows, self.num_articles = len(self._chunks["chunk_id"]), len(self._articles["id"])
        self._vectors = _matrix(self._chunks["vector"])
        index = FaissIndex.load(folder / "index.faiss", config.ivf_probes)
        self._index = device_index(index, self._vectors, config.device)
        self._load_fields()
        self._by_id = np.argsort(self.chunk_id, kind="stable")
        self._sorted_ids = self.chunk_id[self._by_id]

    def _load_fields(self) -> None:
        columns = self._articles
        self.streams, streams = _codes(columns["stream"])
        self.sources, sources = _codes(columns["source"])
        published_ms = columns["published_us"].to_numpy() // 1000
        version_ms = columns["version_ms"].to_numpy()
        self.article_version_ms, self.article_published_ms = version_ms, published_ms
        self.first_chunk = np.array(columns["first_chunk"].to_numpy(), dtype=np.int64)
        self.num_chunks = np.array(columns["num_chunks"].to_numpy(), dtype=np.int32)
        self.chunk_id = np.array(self._chunks["chunk_id"].to_numpy(), dtype=np.int64)
        self.article = np.array(self._chunks["article"].to_numpy(), dtype=np.int32)
        self.published_ms, self.version_ms = published_ms[self.article], version_ms[self.article]
        self.stream, self.source = streams[self.article], sources[self.article]
        self.dead = np.zeros(self.num_rows, dtype=bool)
        self.dead_articles = np.zeros(self.num_articles, dtype=bool)
        self.num_dead = self.num_dead_articles = 0
        self.oldest_ms = int(published_ms.min()) if self.num_articles else 2**63 - 1
        self.newest_ms = int(published_ms.max()) if self.num_articles else -(2**63 - 1)

    def begin(
        self, queries: NDArray[np.float32], k: int, num_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Callable[[], Hits]:
        """As promised by Segment."""
        return self._index.begin(queries, k, num_rows, allowed)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """As promised by Segment."""
        return self._vectors[rows].astype(np.float32)

    def chunk(self, row: int) -> Chunk:
        """As promised by Segment."""
        at = self._chunks
        return Chunk(
            ordinal=at["ordinal"][row].as_py(),
            text=at["text"][row].as_py(),
            num_tokens=at["num_tokens"][row].as_py(),
            start=at["start"][row].as_py(),
            end=at["end"][row].as_py(),
        )

    def article_row(self, row: int) -> ArticleRow:
        """As promised by Segment."""
        value = {name: column[row].as_py() for name, column in self._articles.items()}
        updated = value["updated_us"]
        article = Article(
            id=value["id"],
            published=from_us(value["published_us"]),
            updated=None if updated is None else from_us(updated),
            source=value["source"],
            title=value["title"],
            text=value["text"],
            topics=tuple(value["topics"]),
            url=value["url"],
            stream=value["stream"],
        )
        return ArticleRow(article, value["signature"], value["canonical_id"], value["similarity"])

    def heading(self, row: int) -> tuple[str, str, str, str, str | None]:
        """As promised by Segment."""
        at = self._articles
        values: list[Any] = [at[name][row].as_py() for name in ("id", "title", "source", "stream", "url")]
        return values[0], values[1], values[2], values[3], values[4]

    def passage_fields(self, rows: list[int]) -> list[Fields]:
        """As promised by Segment; many rows are taken column by column."""
        if len(rows) < _MANY_ROWS:
            return super().passage_fields(rows)
        at = pa.array(rows, pa.int64())
        articles = pa.array(self.article[rows], pa.int64())
        columns = [self._chunks[name].take(at).to_pylist() for name in ("ordinal", "text", "num_tokens")]
        columns += [
            self._articles[name].take(articles).to_pylist()
            for name in ("id", "title", "source", "stream", "url")
        ]
        return list(zip(*columns, strict=True))

    def signature(self, row: int) -> bytes:
        """As promised by Segment."""
        value: bytes = self._articles["signature"][row].as_py()
        return value

    def find(self, chunk_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """As promised by Segment."""
        if not self.num_rows:
            return np.full(len(chunk_ids), -1, dtype=np.int64)
        low = np.searchsorted(self._sorted_ids, chunk_ids)
        places = np.minimum(low, self.num_rows - 1)
        rows = np.where(self._sorted_ids[places] == chunk_ids, self._by_id[places], -1)
        # Several versions of a chunk may lie in one segment; at most one lives.
        for at in np.flatnonzero((rows >= 0) & self.dead[np.maximum(rows, 0)]):
            place = int(low[at])
            while place < self.num_rows and self._sorted_ids[place] == chunk_ids[at]:
                rows[at] = self._by_id[place]
                if not self.dead[rows[at]]:
                    break
                place += 1
        return rows

    def tables(self, alive: NDArray[np.bool_]) -> tuple[pa.Table, pa.Table]:
        """The chunks and articles whose article is `alive`, renumbered from 0, for a rewrite."""
        chunks, articles = _read_truth(self.folder, self.truth)
        keep = alive[chunks["article"].to_numpy()]
        new_row = np.cumsum(alive) - 1
        chunks = chunks.filter(pa.array(keep))
        chunks = chunks.set_column(
            chunks.schema.get_field_index("article"),
            "article",
            pa.array(new_row[chunks["article"].to_numpy()], pa.int32()),
        )
        articles = articles.filter(pa.array(alive))
        counts = articles["num_chunks"].to_numpy()
        first = pa.array(np.cumsum(counts) - counts, pa.int64())
        return chunks, articles.set_column(
            articles.schema.get_field_index("first_chunk"), "first_chunk", first
        )

    def article_ids(self) -> list[str]:
        """The id at every article row."""
        ids: list[str] = self._articles["id"].to_pylist()
        return ids

    def article_streams(self) -> list[str]:
        """The stream at every article row."""
        streams: list[str] = self._articles["stream"].to_pylist()
        return streams

    def canonical_ids(self) -> pa.ChunkedArray:
        """For each article row what a near-duplicate is linked to, null for other articles."""
        return self._articles["canonical_id"]

    def linked(self) -> NDArray[np.bool_]:
        """For each article row whether it is a linked near-duplicate."""
        column = self._articles["canonical_id"]
        mask: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
        return mask

    @property
    def memory_bytes(self) -> int:
        """As promised by Segment."""
        fields = (self.chunk_id, self.published_ms, self.version_ms, self.stream, self.source, self.article)
        return self._index.memory_bytes + sum(array.nbytes for array in fields) + 17 * self.num_rows


def _write_derived(folder: Path, chunks: pa.Table, articles: pa.Table, config: StoreConfig) -> None:
    for name, table in (("chunks.arrow", chunks), ("articles.arrow", articles)):
        table = table.combine_chunks()
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, table.num_rows))
    rows = chunks.num_rows
    dim = chunks.schema.field("vector").type.list_size
    vectors = _matrix(chunks.combine_chunks()["vector"]) if rows else np.zeros((0, dim), dtype=np.float16)
    ivf = 0 < config.ivf_rows <= rows
    FaissIndex.build(vectors, ivf=ivf, probes=config.ivf_probes).save(folder / "index.faiss")
    for name in _DERIVED:
        sync_file(folder / name)
    described = {name: describe(folder / name) for name in _DERIVED}
    write_json(folder / "derived.json", {"files": described})


def _derived_is_whole(folder: Path, config: StoreConfig) -> bool:
    try:
        described = read_json(folder / "derived.json")["files"]
        return all(matches(folder / name, described[name], verify=config.verify) for name in _DERIVED)
    except (StoreCorrupt, KeyError):
        return False


def rewritten_truth(
    folder: Path, truth: dict[str, dict[str, int]], damaged: list[str], *, repair: bool
) -> dict[str, dict[str, int]]:
    """Write damaged Parquet files again from their Arrow copies; the truth's new sizes and checksums."""
    try:
        derived = read_json(folder / "derived.json")["files"]
    except (StoreCorrupt, KeyError):
        derived = {}
    renewed = dict(truth)
    for name in damaged:
        copy = folder / name.replace(".parquet", ".arrow")
        if not repair or not derived or not matches(copy, derived[copy.name], verify=True):
            require(folder / name, truth[name], verify=True)
            raise StoreCorrupt(f"{folder / name} does not match its checksum")
        get_logger(segment=str(folder)).error("segment_truth_rewritten", file=name)
        table = pa.ipc.open_file(pa.memory_map(str(copy))).read_all()
        temporary = folder / f"{name}.tmp"
        pq.write_table(table, temporary, compression="zstd", compression_level=1)
        sync_file(temporary)
        temporary.replace(folder / name)
        sync_folder(folder)
        renewed[name] = describe(folder / name)
    return renewed


def _read_truth(folder: Path, truth: dict[str, dict[str, int]]) -> tuple[pa.Table, pa.Table]:
    """Both tables, from files that match their checksums: a rewrite must not carry damage on as truth."""
    tables = []
    for name in TRUTH:
        require(folder / name, truth[name], verify=True)
        try:
            tables.append(pq.read_table(folder / name))
        except (OSError, pa.ArrowException) as error:
            raise StoreCorrupt(f"{folder / name} cannot be read: {error}") from None
    return tables[0], tables[1]


def _map(path: Path) -> dict[str, pa.Array]:
    """The columns of an Arrow file, mapped from disk, each in one piece."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    columns = {}
    for name in table.column_names:
        column = table[name]
        empty = pa.array([], column.type)
        columns[name] = (
            column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([empty, *column.chunks])
        )
    return columns


def _matrix(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float16]:
    """A fixed-size list column as a matrix, without a copy."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    dim = column.type.list_size
    rows: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return rows


def _codes(column: pa.Array) -> tuple[Names, NDArray[np.int32]]:
    encoded = column.dictionary_encode()
    codes: NDArray[np.int32] = np.array(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int32)
    return Names(encoded.dictionary.to_pylist()), codes
