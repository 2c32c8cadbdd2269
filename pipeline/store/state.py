"""What a shard knows of every article: versions, tombstones, offsets, the ledger and the changes.

Deciding (`plan`) and applying are apart: a batch is decided, logged, and only then applied, and a replay
of the log applies the same decisions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.store.codec import Batch, CountOp, DeleteOp, LinkOp, Op, StoreOp
from pipeline.store.errors import OffsetGap, StaleEpoch
from pipeline.store.records import (
    Change,
    Changes,
    Coordinate,
    Delete,
    Ledger,
    Link,
    Outcome,
    StoreRecord,
    Through,
    TopicLedger,
    TopicPartition,
    Upsert,
)
from pipeline.store.stream_order import StreamOrder

if TYPE_CHECKING:
    from pipeline.store.segment import Segment

Kind = Literal["live", "linked", "deleted", "unknown"]


class Entry:
    """Where the newest version of an article lies."""

    __slots__ = ("linked", "published_ms", "row", "segment", "stream", "version_ms")

    def __init__(
        self, version_ms: int, published_ms: int, stream: str, segment: Segment, row: int, linked: bool
    ) -> None:
        self.version_ms = version_ms
        self.published_ms = published_ms
        self.stream = stream
        self.segment = segment
        self.row = row
        self.linked = linked


@dataclass(slots=True)
class ShardState:
    """The mutable state of a shard beside its segments; the shard's locks guard it."""

    change_log: int
    catalog: dict[str, Entry] = field(default_factory=dict)
    tombstones: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Deleted id -> (version that was deleted, its publication time), ms."""
    ledger: Ledger = field(default_factory=Ledger)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    epochs: dict[TopicPartition, int] = field(default_factory=dict)
    sequence: int = 0
    recent_changes: deque[Change] = field(default_factory=deque)
    streams: dict[str, StreamOrder] = field(default_factory=dict)
    num_linked: int = 0

    def plan(
        self, records: Sequence[StoreRecord], through: Through, epoch: int, dim: int
    ) -> tuple[Batch, list[Outcome]]:
        """Decide a batch without changing anything; raises StaleEpoch, or ValueError for a bad record."""
        self._check_epoch({*through, *((r.coordinate.topic, r.coordinate.partition) for r in records)}, epoch)
        seen: set[tuple[str, int, int]] = set()
        decided: dict[str, tuple[Kind, int]] = {}
        ops: list[Op] = []
        outcomes: list[Outcome] = []
        for record in records:
            at = record.coordinate
            partition = (at.topic, at.partition)
            if at.offset >= through.get(partition, -1):
                raise ValueError(
                    f"record {at.topic}[{at.partition}] offset {at.offset} is not below the batch's next "
                    f"offset {through.get(partition)}; `through` must cover every record given"
                )
            if at.offset < self.offsets.get(partition, 0) or at[:3] in seen:
                outcomes.append("replayed")
                continue
            seen.add(at[:3])
            if isinstance(record, Upsert):
                _check_vectors(record, dim)
            op, outcome = self._decide(record, decided)
            ops.append(op)
            outcomes.append(outcome)
        return Batch(ops, dict(through), epoch), outcomes

    def check_since(self, since: Through) -> None:
        """Raise OffsetGap if the shard has less of a partition than its writer believes."""
        for partition, offset in since.items():
            has = self.offsets.get(partition, 0)
            if has < offset:
                raise OffsetGap(
                    f"{partition[0]}[{partition[1]}]: this shard has the records before offset {has}, and an "
                    f"append that follows offset {offset} was given: what lies between was lost with a damaged "
                    "file; read the topic again from the shard's own offset"
                )

    def status(self, article_id: str) -> tuple[Kind, int]:
        """What is known of an id, with its version (of a deleted one: the version that was deleted)."""
        entry = self.catalog.get(article_id)
        if entry is not None:
            return ("linked" if entry.linked else "live"), entry.version_ms
        tombstone = self.tombstones.get(article_id)
        return ("unknown", 0) if tombstone is None else ("deleted", tombstone[0])

    def changes_anything(self, batch: Batch) -> bool:
        """Whether a batch must be logged: it has operations, or moves an offset or an epoch."""
        return bool(batch.ops) or any(
            offset > self.offsets.get(partition, 0) or batch.epoch > self.epochs.get(partition, 0)
            for partition, offset in batch.through.items()
        )

    def advance(self, batch: Batch) -> None:
        """Move offsets and epochs on; neither ever goes back."""
        for partition, offset in batch.through.items():
            self.offsets[partition] = max(offset, self.offsets.get(partition, 0))
            self.epochs[partition] = max(batch.epoch, self.epochs.get(partition, 0))

    def count(self, coordinate: Coordinate, outcome: Outcome) -> None:
        """Count one coordinate in the ledger; NO_RECORD is none."""
        if coordinate.offset < 0:
            return
        self.ledger.setdefault(coordinate.topic, TopicLedger()).count(outcome)

    def add(self, article_id: str, entry: Entry) -> None:
        """Make `entry` the newest version of an article."""
        self.tombstones.pop(article_id, None)
        self.catalog[article_id] = entry
        self.num_linked += entry.linked
        self.streams.setdefault(entry.stream, StreamOrder()).add(entry.published_ms, article_id)

    def remove(self, article_id: str) -> Entry | None:
        """Forget the newest version, whose rows die with it; returns what it was."""
        entry = self.catalog.pop(article_id, None)
        if entry is not None:
            entry.segment.kill(entry.row)
            self.num_linked -= entry.linked
            order = self.streams[entry.stream]
            order.discard(entry.published_ms, article_id)
            if not order:
                del self.streams[entry.stream]
        return entry

    def note_change(
        self, article_id: str, kind: Literal["updated", "deleted"], version_ms: int | None
    ) -> None:
        """Add to the bounded list of changes."""
        self.sequence += 1
        self.recent_changes.append(Change(self.sequence, article_id, kind, version_ms))
        while len(self.recent_changes) > self.change_log:
            self.recent_changes.popleft()

    def changes(self, since: int) -> Changes:
        """Changes with a sequence above `since`."""
        oldest = self.recent_changes[0].sequence if self.recent_changes else self.sequence + 1
        skip = max(0, since + 1 - oldest)
        entries = tuple(self.recent_changes[i] for i in range(skip, len(self.recent_changes)))
        truncated = since + 1 < oldest or since > self.sequence
        return Changes(entries=entries, latest=self.sequence, truncated=truncated)

    def expire_tombstones(self, before_ms: int) -> None:
        """Forget deletions of articles that retention would have dropped by now."""
        old = [name for name, (_, published_ms) in self.tombstones.items() if published_ms < before_ms]
        for name in old:
            del self.tombstones[name]

    def _decide(self, record: StoreRecord, decided: dict[str, tuple[Kind, int]]) -> tuple[Op, Outcome]:
        at = record.coordinate
        if isinstance(record, Upsert | Link):
            article = record.article
            kind, known_ms = decided.get(article.id) or self.status(article.id)
            version_ms = article.version_ms
            if kind != "unknown" and version_ms <= known_ms:
                outcome: Outcome = "same_version" if version_ms == known_ms else "older"
                return CountOp(at, outcome), outcome
            previous_ms = known_ms if kind in ("live", "linked") else None
            if isinstance(record, Upsert):
                decided[article.id] = ("live", version_ms)
                return StoreOp(
                    at, article, record.chunks, record.vectors, record.signature, previous_ms
                ), "stored"
            decided[article.id] = ("linked", version_ms)
            return LinkOp(at, article, record.canonical_id, record.similarity, previous_ms), "linked"
        if isinstance(record, Delete):
            kind, known_ms = decided.get(record.article_id) or self.status(record.article_id)
            if kind == "unknown":
                return DeleteOp(at, record.article_id, None), "deleted"
            decided[record.article_id] = ("deleted", known_ms)
            return DeleteOp(at, record.article_id, known_ms), "deleted"
        return CountOp(at, "dead_lettered", record.reason), "dead_lettered"

    def _check_epoch(self, partitions: Iterable[TopicPartition], epoch: int) -> None:
        for partition in partitions:
            newest = self.epochs.get(partition, 0)
            if epoch < newest:
                raise StaleEpoch(
                    f"{partition[0]}[{partition[1]}]: epoch {epoch} is older than {newest}: another ingester "
                    "has taken this partition over; this one must stop"
                )


def dump_changes(state: ShardState) -> list[Any]:
    """The changes as plain lists, for the state file."""
    return [list(change) for change in state.recent_changes]


def _check_vectors(record: Upsert, dim: int) -> None:
    if record.chunks and record.vectors.shape[1] != dim:
        raise ValueError(
            f"article {record.article.id!r}: vectors of width {record.vectors.shape[1]}; this shard holds {dim}"
        )
    if not np.isfinite(record.vectors).all():
        raise ValueError(f"article {record.article.id!r}: a vector holds values that are not finite")
