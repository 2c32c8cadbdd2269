"""Tables of a segment: from the rows of a growing one, or several segments' rows in one."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.store.codec import to_us
from pipeline.store.growing import GrowingSegment

_ARTICLES = pa.schema(
    [
        ("id", pa.string()),
        ("version_ms", pa.int64()),
        ("published_us", pa.int64()),
        ("updated_us", pa.int64()),
        ("source", pa.string()),
        ("stream", pa.string()),
        ("title", pa.string()),
        ("text", pa.large_string()),
        ("topics", pa.list_(pa.string())),
        ("url", pa.string()),
        ("signature", pa.binary()),
        ("canonical_id", pa.string()),
        ("similarity", pa.float64()),
        ("first_chunk", pa.int64()),
        ("num_chunks", pa.int32()),
    ]
)


def growing_tables(segment: GrowingSegment, dim: int) -> tuple[pa.Table, pa.Table]:
    """The chunks and articles of a frozen growing segment, dead ones too, in their order."""
    _leave_pandas_out()
    n = segment.num_rows
    chunks = segment.chunks
    vectors = segment.vectors(np.arange(n)).astype(np.float16)
    chunk_table = pa.table(
        {
            "chunk_id": pa.array(segment.chunk_id[:n], pa.int64()),
            "article": pa.array(segment.article[:n], pa.int32()),
            "ordinal": pa.array([c.ordinal for c in chunks], pa.int32()),
            "text": pa.array([c.text for c in chunks], pa.large_string()),
            "num_tokens": pa.array([c.num_tokens for c in chunks], pa.int32()),
            "start": pa.array([c.start for c in chunks], pa.int32()),
            "end": pa.array([c.end for c in chunks], pa.int32()),
            "vector": _vector_column(vectors, dim),
        }
    )
    rows = segment.articles
    articles = [row.article for row in rows]
    columns = [
        [a.id for a in articles],
        [a.version_ms for a in articles],
        [to_us(a.published) for a in articles],
        [None if a.updated is None else to_us(a.updated) for a in articles],
        [a.source for a in articles],
        [a.stream for a in articles],
        [a.title for a in articles],
        [a.text for a in articles],
        [list(a.topics) for a in articles],
        [a.url for a in articles],
        [row.signature for row in rows],
        [row.canonical_id for row in rows],
        [row.similarity for row in rows],
        segment.first_chunk[: len(rows)],
        segment.num_chunks[: len(rows)],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _ARTICLES, strict=True)]
    return chunk_table, pa.Table.from_arrays(arrays, schema=_ARTICLES)


def join_tables(parts: list[tuple[pa.Table, pa.Table]]) -> tuple[pa.Table, pa.Table]:
    """Several segments' tables as one, rows and articles numbered on."""
    chunk_parts, article_parts = [], []
    rows = articles = 0
    for chunks, heads in parts:
        at = chunks.schema.get_field_index("article")
        chunk_parts.append(
            chunks.set_column(at, "article", pa.array(chunks["article"].to_numpy() + articles, pa.int32()))
        )
        at = heads.schema.get_field_index("first_chunk")
        article_parts.append(
            heads.set_column(at, "first_chunk", pa.array(heads["first_chunk"].to_numpy() + rows, pa.int64()))
        )
        rows, articles = rows + chunks.num_rows, articles + heads.num_rows
    return pa.concat_tables(chunk_parts), pa.concat_tables(article_parts)


def _vector_column(vectors: NDArray[np.float16], dim: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float16()), dim)


class _NoPandas:
    """An import hook that refuses pandas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ImportError("not needed here")


@cache
def _leave_pandas_out() -> None:
    """pyarrow looks for pandas at the first array that it makes, and loading it takes a process two seconds and
    60 MB, in the midst of the appends. It looks once: told no, it goes without (`to_pandas` still works)."""
    if "pandas" in sys.modules:
        return
    hook = _NoPandas()
    sys.meta_path.insert(0, hook)  # type: ignore[arg-type]
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hook)  # type: ignore[arg-type]
