"""What the write-ahead log keeps of an append: decided operations, packed with msgpack.

The log holds decisions, not requests: a version that changed nothing is kept as its coordinate and
outcome alone, and a replay applies what was decided then, whatever has been compacted since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from pipeline.article import Article
from pipeline.store.records import Chunk, Coordinate, Outcome, TopicPartition

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, eq=False)
class StoreOp:
    """Store a version; `previous_ms` is the live version that it replaces."""

    coordinate: Coordinate
    article: Article
    chunks: list[Chunk]
    vectors: NDArray[np.float16]
    signature: bytes
    previous_ms: int | None


@dataclass(frozen=True, slots=True)
class LinkOp:
    """Remember a near-duplicate; `previous_ms` is the live version that it replaces."""

    coordinate: Coordinate
    article: Article
    canonical_id: str
    similarity: float
    previous_ms: int | None


@dataclass(frozen=True, slots=True)
class DeleteOp:
    """Withdraw an article; `version_ms` is the version withdrawn, None if the id was unknown."""

    coordinate: Coordinate
    article_id: str
    version_ms: int | None


@dataclass(frozen=True, slots=True)
class CountOp:
    """A record that only the ledger remembers."""

    coordinate: Coordinate
    outcome: Outcome
    reason: str = ""


Op = StoreOp | LinkOp | DeleteOp | CountOp


@dataclass(frozen=True, slots=True)
class Batch:
    """One append: its operations, the next offsets, and the ingester's epoch."""

    ops: list[Op]
    through: dict[TopicPartition, int]
    epoch: int


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The UTC datetime of microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=microseconds)


def pack_batch(batch: Batch) -> bytes:
    """Bytes for the log."""
    ops = [_pack_op(op) for op in batch.ops]
    through = [(topic, partition, offset) for (topic, partition), offset in batch.through.items()]
    return cast(bytes, msgpack.packb((ops, through, batch.epoch), use_bin_type=True))


def unpack_batch(data: bytes, dim: int) -> Batch:
    """The batch that `pack_batch` packed."""
    ops, through, epoch = msgpack.unpackb(data, raw=False, use_list=True, strict_map_key=False)
    return Batch(
        [_unpack_op(op, dim) for op in ops],
        {(topic, partition): offset for topic, partition, offset in through},
        epoch,
    )


def _pack_op(op: Op) -> tuple[Any, ...]:
    if isinstance(op, StoreOp):
        chunks = [(c.text, c.num_tokens, c.start, c.end) for c in op.chunks]
        vectors = np.ascontiguousarray(op.vectors, dtype=np.float16).tobytes()
        return ("s", op.coordinate, pack_article(op.article), chunks, vectors, op.signature, op.previous_ms)
    if isinstance(op, LinkOp):
        return (
            "l",
            op.coordinate,
            pack_article(op.article),
            op.canonical_id,
            op.similarity,
            op.previous_ms,
        )
    if isinstance(op, DeleteOp):
        return ("d", op.coordinate, op.article_id, op.version_ms)
    return ("c", op.coordinate, op.outcome, op.reason)


def _unpack_op(packed: list[Any], dim: int) -> Op:
    kind: Literal["s", "l", "d", "c"] = packed[0]
    coordinate = Coordinate(*packed[1])
    if kind == "s":
        chunks = [Chunk(ordinal, *fields) for ordinal, fields in enumerate(packed[3])]
        vectors = np.frombuffer(packed[4], dtype=np.float16).reshape(len(chunks), dim)
        return StoreOp(coordinate, unpack_article(packed[2]), chunks, vectors, packed[5], packed[6])
    if kind == "l":
        return LinkOp(coordinate, unpack_article(packed[2]), packed[3], packed[4], packed[5])
    if kind == "d":
        return DeleteOp(coordinate, packed[2], packed[3])
    return CountOp(coordinate, packed[2], packed[3])


def pack_article(article: Article) -> tuple[Any, ...]:
    """The article's fields in the order that `unpack_article` reads them."""
    return (
        article.id,
        to_us(article.published),
        None if article.updated is None else to_us(article.updated),
        article.source,
        article.title,
        article.text,
        article.topics,
        article.url,
        article.stream,
    )


def unpack_article(packed: Sequence[Any]) -> Article:
    """The article that `pack_article` packed."""
    article_id, published, updated, source, title, text, topics, url, stream = packed
    return Article(
        id=article_id,
        published=from_us(published),
        updated=None if updated is None else from_us(updated),
        source=source,
        title=title,
        text=text,
        topics=tuple(topics),
        url=url,
        stream=stream,
    )
