"""Records on their way from an ingester to a shard's process, as bytes: far cheaper than pickling their objects.

Nothing that the other side can make again is carried: a chunk is its span of the article's text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import msgpack
import numpy as np

from pipeline.store.codec import pack_article, unpack_article
from pipeline.store.records import Chunk, Coordinate, DeadLetter, Delete, Link, StoreRecord, Upsert


def pack_records(records: Iterable[StoreRecord]) -> bytes:
    """Bytes for `unpack_records`. The chunks of an Upsert must be spans of its article's text."""
    return cast(bytes, msgpack.packb([_packed(record) for record in records], use_bin_type=True))


def unpack_records(data: bytes, dim: int) -> list[StoreRecord]:
    """The records that were packed; their vectors are of width `dim`, and not to be written to."""
    rows = msgpack.unpackb(data, raw=False, use_list=False, strict_map_key=False)
    return [_unpacked(row, dim) for row in rows]


def _packed(record: StoreRecord) -> tuple[Any, ...]:
    at = record.coordinate
    if isinstance(record, Upsert):
        spans = [(chunk.num_tokens, chunk.start, chunk.end) for chunk in record.chunks]
        vectors = np.ascontiguousarray(record.vectors, dtype=np.float16).tobytes()
        return ("u", at, pack_article(record.article), spans, vectors, record.signature)
    if isinstance(record, Link):
        return ("l", at, pack_article(record.article), record.canonical_id, record.similarity)
    if isinstance(record, Delete):
        return ("d", at, record.article_id)
    return ("x", at, record.reason)


def _unpacked(row: tuple[Any, ...], dim: int) -> StoreRecord:
    kind, at = row[0], Coordinate(*row[1])
    if kind == "u":
        article = unpack_article(row[2])
        text = article.text
        chunks = [
            Chunk(ordinal, text[start:end], num_tokens, start, end)
            for ordinal, (num_tokens, start, end) in enumerate(row[3])
        ]
        vectors = np.frombuffer(row[4], dtype=np.float16).reshape(len(chunks), dim)
        return Upsert(coordinate=at, article=article, chunks=chunks, vectors=vectors, signature=row[5])
    if kind == "l":
        return Link(coordinate=at, article=unpack_article(row[2]), canonical_id=row[3], similarity=row[4])
    if kind == "d":
        return Delete(coordinate=at, article_id=row[2])
    return DeadLetter(coordinate=at, reason=row[2])
