"""The inside of a shard: its parts, their locks, recovery, and how a decided batch is applied.

Locks, taken in this order and never the other way round: `maintenance` (seal, compact, expire, snapshot:
one at a time), `writer` (appends and checkpoints), `view` (short: which segments there are and what lives in them).
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.log import get_logger
from pipeline.store.codec import Batch, CountOp, DeleteOp, LinkOp, Op, StoreOp
from pipeline.store.config import StoreConfig
from pipeline.store.errors import ChunkIdCollision, StoreFailed
from pipeline.store.growing import GrowingSegment
from pipeline.store.ids import chunk_ids
from pipeline.store.lock import FolderLock
from pipeline.store.manifest import Checkpoint, Identity
from pipeline.store.records import SearchRequest
from pipeline.store.recovery import recover
from pipeline.store.segment import ArticleRow, Segment
from pipeline.store.state import Entry, ShardState

_COMMIT_S = 120.0
_MAX_WAITING = 2_048
"""Operations that may wait for the keyword index; an append that adds more carries them there itself."""


@dataclass(frozen=True, slots=True)
class SegmentView:
    """What one search may see of a segment: rows below `num_rows` that `allowed` (None: all) lets through."""

    segment: Segment
    num_rows: int
    allowed: NDArray[np.bool_] | None


class ShardCore:
    """An open shard's parts. `segments` holds sealed and frozen ones, oldest first, and the growing one last."""

    def __init__(self, folder: Path, config: StoreConfig, identity: Identity) -> None:
        self.folder = folder
        self.config = config
        self.identity = identity
        self.log = get_logger(shard_id=identity.shard_index)
        self.maintenance = threading.Lock()
        self.writer = threading.RLock()
        self.view = threading.Lock()
        self.lexical_lock = threading.Lock()
        self.state = ShardState(change_log=config.change_log)
        self.segments: list[Segment] = []
        self.checkpoint = Checkpoint(identity=identity, wal=None)
        self.next_segment = 1
        self.looked_at = -1
        """Generation of the checkpoint that the last look of maintenance left."""
        self.repairs: list[str] = []
        """What was damaged when the shard was opened, and what became of it."""
        self.lexical_broken = ""
        """Why the keyword index takes nothing more; it is made again by maintenance. Empty while all is well."""
        self._waiting: deque[StoreOp | LinkOp | DeleteOp] = deque()
        self._committer: threading.Thread | None = None
        self._committer_lock = threading.Lock()
        self._closing = threading.Event()
        self.lock = FolderLock(folder)
        try:
            self.wal, self.lexical = recover(self)
        except BaseException:
            self.lock.release()
            raise

    @property
    def growing(self) -> GrowingSegment:
        """The segment that takes new rows."""
        segment = self.segments[-1]
        assert isinstance(segment, GrowingSegment)
        return segment

    def new_growing(self) -> GrowingSegment:
        """An empty growing segment."""
        return GrowingSegment("growing", self.identity.dim, self.config.seal_rows, self.config.device)

    def apply(self, batch: Batch, *, replaying: bool = False) -> int:
        """Apply a logged batch: at once for searches by vector, while for searches by word it waits for the next
        commit. Returns the number of chunks that were added."""
        num_chunks = 0
        with self.view:
            for op in batch.ops:
                num_chunks += self._apply(op)
            self.state.advance(batch)
        if not replaying:
            if not self.lexical_broken:
                self._waiting.extend(op for op in batch.ops if not isinstance(op, CountOp))
            return num_chunks
        with self.lexical_lock:
            try:
                for op in batch.ops if not self.lexical_broken else ():
                    self._apply_lexical(op, replaying=True)
            except BaseException as error:
                self._lexical_failed(error)
        return num_chunks

    def look(self, request: SearchRequest) -> list[SegmentView]:
        """A consistent view of all segments for one search."""
        with self.view:
            return [
                SegmentView(segment, segment.num_rows, segment.allowed(request))
                for segment in self.segments
                if segment.num_rows > segment.num_dead
            ]

    def check_collisions(self, batch: Batch) -> None:
        """Raise ChunkIdCollision if a chunk to be stored has the id of another article's chunk."""
        owners: dict[int, str] = {}
        for op in batch.ops:
            if isinstance(op, StoreOp):
                for chunk_id in chunk_ids(op.article.id, len(op.chunks)):
                    if owners.setdefault(chunk_id, op.article.id) != op.article.id:
                        raise _collision(op.article.id, owners[chunk_id], chunk_id)
        if not owners:
            return
        ids = np.fromiter(owners, dtype=np.int64, count=len(owners))
        for segment in self.segments:
            rows = segment.find(ids)
            for at in np.flatnonzero(rows >= 0):
                holder = segment.heading(int(segment.article[rows[at]]))[0]
                chunk_id = int(ids[at])
                if holder != owners[chunk_id]:
                    raise _collision(owners[chunk_id], holder, chunk_id)

    def commit_lexical(self, *, force: bool = False, wait: bool = True) -> None:
        """Make keyword search see what was appended, unless it did so less than `lexical_commit_ms` ago (or,
        without `wait`, unless another is at the index)."""
        if not self.lexical_lock.acquire(blocking=wait):
            return
        try:
            if not self.lexical_broken and (force or self._commit_is_due()):
                self._carry()
                self.lexical.commit()
        except BaseException as error:
            self._lexical_failed(error)
        finally:
            self.lexical_lock.release()

    def commit_lexical_soon(self) -> None:
        """`commit_lexical` for an append: at once after a pause; beside the appends that follow while they come
        one upon the other, and not later than `lexical_commit_ms` after the commit before."""
        if len(self._waiting) > _MAX_WAITING:
            with self.lexical_lock:
                try:
                    self._carry()
                except BaseException as error:
                    self._lexical_failed(error)
        with self._committer_lock:
            if self._committer is not None:
                return
            paused = self.lexical.since_commit_ms >= 2 * self.config.lexical_commit_ms
            if not paused:
                self._committer = threading.Thread(target=self._commit_in_time, name="words", daemon=True)
                self._committer.start()
        if paused:
            self.commit_lexical()

    def remove_lexical(self, article_ids: list[str]) -> None:
        """Take articles out of the keyword index now."""
        with self.lexical_lock:
            self._carry()
            for article_id in article_ids:
                self.lexical.remove(article_id)
            self.lexical.commit()

    def stop_committing(self) -> None:
        """Let the thread that commits end; StoreFailed where it does not, and then the folder must stay locked."""
        self._closing.set()
        with self._committer_lock:
            committer = self._committer
        if committer is not None:
            committer.join(_COMMIT_S)
            if committer.is_alive():
                raise StoreFailed(
                    f"the keyword index of {self.folder} has not been committed within {_COMMIT_S:.0f} s; end this "
                    "process: what it lacks is made again when the shard is opened"
                )

    def close_lexical(self) -> None:
        """Commit what waits and give the keyword index back; the caller lets nobody append any more."""
        self.stop_committing()
        with self.lexical_lock:
            if not self.lexical_broken:
                self._carry()
                self.lexical.close()

    def _commit_in_time(self) -> None:
        """Commit whenever it is due until nothing waits, so that no thread outlives the appends for long."""
        while True:
            wait_ms = self.config.lexical_commit_ms - self.lexical.since_commit_ms
            if not self._closing.wait(max(0.0, wait_ms) / 1_000):
                self.commit_lexical()
            with self._committer_lock:
                if not self._waiting or self.lexical_broken or self._closing.is_set():
                    self._committer = None
                    return

    def _commit_is_due(self) -> bool:
        waiting = bool(self._waiting) or self.lexical.has_pending
        return waiting and self.lexical.since_commit_ms >= self.config.lexical_commit_ms

    def _carry(self) -> None:
        """Bring what waits to the keyword index; the caller has `lexical_lock`."""
        while self._waiting:
            self._apply_lexical(self._waiting.popleft(), replaying=False)

    def rebuild_lexical(self) -> None:
        """Make the keyword index again from the segments."""
        self.log.warning("lexical_index_rebuilt", folder=str(self.folder))
        with self.lexical_lock:
            self._waiting.clear()  # the segments have them
            self.lexical.clear()
            for segment in self.segments:
                for row in np.flatnonzero(~segment.dead_articles[: segment.num_articles]):
                    first, count = int(segment.first_chunk[row]), int(segment.num_chunks[row])
                    if count:
                        chunks = [segment.chunk(at) for at in range(first, first + count)]
                        ids = segment.chunk_id[first : first + count].tolist()
                        self.lexical.add(segment.article_row(int(row)).article, chunks, ids)
            self.lexical.commit()
            self.lexical_broken = ""

    def mend_lexical(self) -> None:
        """Try to make a broken keyword index again; it stays broken where the disk still refuses."""
        if not self.lexical_broken:
            return
        try:
            with self.writer:
                self.rebuild_lexical()
        except BaseException as error:
            self._lexical_failed(error)

    def _lexical_failed(self, error: BaseException) -> None:
        # The rows are durable and found by vector; a full disk must not turn an append that was logged into an
        # error. The Rust side raises several types, and a panic is a BaseException.
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise error
        self.lexical_broken = str(error) or type(error).__name__
        self._waiting.clear()
        self.log.error("keyword_index_broken", error=self.lexical_broken)

    def capture(self) -> Checkpoint:
        """The state now, at the log's position, as a checkpoint still without segments."""
        state = self.state
        return Checkpoint(
            identity=self.identity,
            wal=self.wal.position,
            generation=self.checkpoint.generation,
            next_segment=self.next_segment,
            offsets=dict(state.offsets),
            epochs=dict(state.epochs),
            ledger=state.ledger.copy(),
            tombstones=dict(state.tombstones),
            sequence=state.sequence,
            changes=list(state.recent_changes),
            dead={
                segment.name: segment.dead_articles[: segment.num_articles].copy()
                for segment in self.segments
            },
        )

    def live_chunks(self) -> int:
        """Chunks that a search without filters may return."""
        return sum(segment.num_rows - segment.num_dead for segment in self.segments)

    def _apply(self, op: Op) -> int:
        state = self.state
        if isinstance(op, StoreOp | LinkOp):
            article = op.article
            state.remove(article.id)
            if isinstance(op, StoreOp):
                ids = chunk_ids(article.id, len(op.chunks))
                row = self.growing.add(ArticleRow(article, op.signature), op.chunks, ids, op.vectors)
                state.count(op.coordinate, "stored")
            else:
                linked = ArticleRow(article, b"", op.canonical_id, op.similarity)
                row = self.growing.add(linked, [], [], np.zeros((0, self.identity.dim), dtype=np.float16))
                state.count(op.coordinate, "linked")
            entry = Entry(
                article.version_ms,
                article.published_ms,
                article.stream,
                self.growing,
                row,
                isinstance(op, LinkOp),
            )
            state.add(article.id, entry)
            if op.previous_ms is not None:
                state.note_change(article.id, "updated", article.version_ms)
            return len(op.chunks) if isinstance(op, StoreOp) else 0
        if isinstance(op, DeleteOp):
            entry_was = state.remove(op.article_id)
            if op.version_ms is not None:
                _, known_ms = state.tombstones.get(op.article_id, (0, op.version_ms))
                published_ms = known_ms if entry_was is None else entry_was.published_ms
                state.tombstones[op.article_id] = (op.version_ms, published_ms)
            state.note_change(op.article_id, "deleted", op.version_ms)
            state.count(op.coordinate, "deleted")
            return 0
        state.count(op.coordinate, op.outcome)
        return 0

    def _apply_lexical(self, op: Op, *, replaying: bool) -> None:
        # The index may be ahead of the replayed log, so a replay removes before it adds.
        if isinstance(op, StoreOp | LinkOp):
            if replaying or op.previous_ms is not None:
                self.lexical.remove(op.article.id)
            if isinstance(op, StoreOp):
                self.lexical.add(op.article, op.chunks, chunk_ids(op.article.id, len(op.chunks)))
        elif isinstance(op, DeleteOp) and (replaying or op.version_ms is not None):
            self.lexical.remove(op.article_id)


def _collision(article_id: str, holder: str, chunk_id: int) -> ChunkIdCollision:
    return ChunkIdCollision(
        f"a chunk of article {article_id!r} has id {chunk_id}, which is a chunk of article {holder!r}; "
        "dead-letter the article, or publish it under another id",
        article_id,
    )
