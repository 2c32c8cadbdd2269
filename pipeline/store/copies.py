"""Near-duplicates whose original was withdrawn: found, and made to stand on their own or behind another.

The accounting stays exact: a copy's own record was counted once, as a duplicate, when it was read, and what
becomes of the copy later is counted nowhere. Decisions are logged like any append and may be repeated: a copy
that is not linked any more, or to something else, or in another version, is left as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.article import Article
from pipeline.store.codec import Batch, LinkOp, Op, StoreOp, pack_batch
from pipeline.store.core import ShardCore
from pipeline.store.growing import GrowingSegment
from pipeline.store.records import NO_RECORD, Chunk
from pipeline.store.sealed import SealedSegment
from pipeline.store.segment import Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A linked article and what it is linked to."""

    article: Article
    canonical_id: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Settlement:
    """What becomes of a copy: linked to another article, or with `linked_to` None stored with its chunks."""

    article_id: str
    version_ms: int
    canonical_id: str
    linked_to: str | None = None
    similarity: float = 0.0
    chunks: list[Chunk] = field(default_factory=list)
    vectors: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float16))
    signature: bytes = b""


def originals(core: ShardCore) -> list[str]:
    """Everything that this shard's copies are linked to, each once."""
    with core.view:
        segments = list(core.segments)
    found: set[str] = set()
    for segment in segments:
        found.update(name for _, name in _linked(segment, None))
    return sorted(found)


def copies_of(core: ShardCore, article_ids: Collection[str]) -> list[Copy]:
    """This shard's copies that are linked to one of these articles now, oldest publication first."""
    with core.view:
        segments = list(core.segments)
    found = []
    for segment in segments:
        for row, canonical_id in _linked(segment, article_ids):
            article = segment.article_row(row).article
            with core.view:
                entry = core.state.catalog.get(article.id)
            if entry is not None and entry.linked and (entry.segment, entry.row) == (segment, row):
                found.append(Copy(article=article, canonical_id=canonical_id))
    return sorted(found, key=lambda copy: (copy.article.published_ms, copy.article.id))


def settle(core: ShardCore, settlements: Sequence[Settlement]) -> list[bool]:
    """Apply what was decided, durably; whether each still held. The caller has `core.writer`."""
    ops: list[Op] = []
    done = []
    for wanted in settlements:
        entry = core.state.catalog.get(wanted.article_id)
        holds = entry is not None and entry.linked and entry.version_ms == wanted.version_ms
        row = entry.segment.article_row(entry.row) if entry is not None and holds else None
        done.append(row is not None and row.canonical_id == wanted.canonical_id)
        if row is None or not done[-1]:
            continue
        if wanted.linked_to is None:
            vectors = wanted.vectors.reshape(len(wanted.chunks), core.identity.dim)
            ops.append(
                StoreOp(NO_RECORD, row.article, wanted.chunks, vectors, wanted.signature, wanted.version_ms)
            )
        else:
            ops.append(LinkOp(NO_RECORD, row.article, wanted.linked_to, wanted.similarity, wanted.version_ms))
    if ops:
        batch = Batch(ops, {}, 0)
        core.check_collisions(batch)
        core.wal.append(pack_batch(batch))
        core.apply(batch)
    return done


def _linked(segment: Segment, article_ids: Collection[str] | None) -> list[tuple[int, str]]:
    """Living rows of copies, with what each is linked to; of all, or of these originals."""
    if isinstance(segment, SealedSegment):
        column = segment.canonical_ids()
        wanted = (
            column.is_valid()
            if article_ids is None
            else pc.is_in(column, value_set=pa.array(list(article_ids), pa.string()))
        )
        rows = np.flatnonzero(wanted.to_numpy(zero_copy_only=False) & ~segment.dead_articles)
        return [(int(row), column[int(row)].as_py()) for row in rows]
    assert isinstance(segment, GrowingSegment)
    names = [(row, segment.articles[row].canonical_id) for row in range(segment.num_articles)]
    return [
        (row, name)
        for row, name in names
        if name is not None
        and not segment.dead_articles[row]
        and (article_ids is None or name in article_ids)
    ]
