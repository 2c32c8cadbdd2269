"""A shard of the store: durable before it answers, searchable at once, the same after any crash."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from pipeline.article import Article
from pipeline.store import copies, maintenance, searching
from pipeline.store.codec import pack_batch
from pipeline.store.config import StoreConfig
from pipeline.store.core import ShardCore
from pipeline.store.errors import StoreFailed
from pipeline.store.files import folder_bytes
from pipeline.store.joined import SearchQueue
from pipeline.store.manifest import Identity
from pipeline.store.records import (
    AppendResult,
    Candidates,
    Changes,
    Ledger,
    SearchRequest,
    SignatureRow,
    StoredArticle,
    StoreRecord,
    Through,
    TopicPartition,
)
from pipeline.store.snapshots import restore, shard_folder

_SEALING_S = 600.0
"""How long closing waits for a sealing: an IVF of a million rows takes minutes on two cores."""
_TURN_S = 4.0
"""How long maintenance waits for a sealing. Under load one follows upon the other: looks that do not wait may fall
upon one for minutes, and what retention would drop stays."""


class Shard:
    """One slice of the store. Safe to use from several threads; one process at a time."""

    def __init__(self, core: ShardCore) -> None:
        self._core = core
        self._searches = SearchQueue.on(core.config.device, self._search)
        self._sealing: threading.Thread | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        root: Path,
        config: StoreConfig,
        shard_index: int,
        num_shards: int,
        embedder_identity: str,
        dim: int,
    ) -> Shard:
        """Open or make the shard in its folder under `root`, as of the last acknowledged append.

        Raises StoreMismatch (another embedder, width or number of shards), StoreLocked (open elsewhere),
        StoreCorrupt (damage that nothing else can mend, with the file) or StoreTooNew.
        """
        if not 0 <= shard_index < num_shards:
            raise ValueError(f"shard_index is {shard_index}; allowed is 0 to {num_shards - 1}")
        if dim < 1:
            raise ValueError(f"dim is {dim}; it must be at least 1")
        identity = Identity(
            shard_index=shard_index, num_shards=num_shards, embedder=embedder_identity, dim=dim
        )
        return cls(ShardCore(shard_folder(Path(root), shard_index), config, identity))

    def append(
        self,
        records: Sequence[StoreRecord],
        through: Through,
        epoch: int,
        since: Through | None = None,
    ) -> AppendResult:
        """Store a batch: decided, logged, flushed, then visible. Records given before are `replayed`.

        `through` is the next offset of each partition, above every record given; `since` the offsets that the
        caller knows this shard to have. Raises StaleEpoch (a newer ingester has written), OffsetGap (the shard has
        less than `since`), ValueError (a record that contradicts the shard), ChunkIdCollision, or StoreFailed (the
        disk); in each case nothing of the batch is stored.
        """
        core = self._core
        with core.writer:
            self._check_open()
            core.state.check_since(since or {})
            batch, outcomes = core.state.plan(records, through, epoch, core.identity.dim)
            core.check_collisions(batch)
            num_chunks = 0
            if core.state.changes_anything(batch):
                core.wal.append(pack_batch(batch))
                num_chunks = core.apply(batch)
            generation = core.checkpoint.generation
            full = maintenance.should_freeze(core.growing, core.config)
        core.commit_lexical_soon()
        if full:
            self._seal_in_background()
        return AppendResult(outcomes=tuple(outcomes), num_chunks=num_chunks, generation=generation)

    def candidates(self, request: SearchRequest, limit_s: float | None = None) -> Candidates:
        """This shard's best passages of each list; `pipeline.merge.merge_candidates` joins the shards.

        Searches that wait for others are joined into one (`joined.py`); TimeoutError after `limit_s`.
        """
        return self._searches.ask(request, limit_s)

    def _search(self, request: SearchRequest) -> Candidates:
        self._check_open()
        if request.mode != "dense":
            # What the last append left uncommitted is due by now, and no later append may come.
            self._core.commit_lexical(wait=False)
        return searching.candidates(self._core, request)

    def offsets(self) -> dict[TopicPartition, int]:
        """The next offset that this shard wants of each partition."""
        with self._core.view:
            return dict(self._core.state.offsets)

    def ledger(self) -> Ledger:
        """Outcomes by topic: every coordinate that this shard was given, once."""
        with self._core.view:
            return self._core.state.ledger.copy()

    def known(self, article_ids: Iterable[str]) -> dict[str, int | None]:
        """For each id the version (ms) that is stored and searchable, or None."""
        with self._core.view:
            catalog = self._core.state.catalog
            found: dict[str, int | None] = {}
            for article_id in article_ids:
                entry = catalog.get(article_id)
                found[article_id] = None if entry is None or entry.linked else entry.version_ms
            return found

    def seen(self, article_ids: Iterable[str]) -> dict[str, int]:
        """The ids that `article` answers for, each with the newest version (ms) that was taken in, be it stored,
        linked or deleted: what comes with that or an older one changes nothing any more."""
        with self._core.view:
            found = {name: self._core.state.status(name) for name in article_ids}
        return {name: version_ms for name, (kind, version_ms) in found.items() if kind != "unknown"}

    def article(self, article_id: str) -> StoredArticle | None:
        """The newest version of an article, or its tombstone; None for an id never stored (or expired)."""
        with self._core.view:
            entry = self._core.state.catalog.get(article_id)
            if entry is None:
                tombstone = self._core.state.tombstones.get(article_id)
                if tombstone is None:
                    return None
                return StoredArticle(id=article_id, version_ms=tombstone[0], deleted=True)
            segment, at = entry.segment, entry.row
        row = segment.article_row(at)
        return StoredArticle(
            id=article_id,
            version_ms=row.article.version_ms,
            article=row.article,
            num_chunks=int(segment.num_chunks[at]),
            canonical_id=row.canonical_id,
            similarity=row.similarity,
        )

    def recent(self, stream: str, limit: int, before_ms: int | None = None) -> list[Article]:
        """The newest articles of a stream published before `before_ms`, newest first; near-duplicates of an
        article of the same stream are left out."""
        articles: list[Article] = []
        with self._core.view:
            state = self._core.state
            order = state.streams.get(stream)
            for _, article_id in () if order is None else order.newest(before_ms):
                if len(articles) >= limit:
                    break
                entry = state.catalog[article_id]
                row = entry.segment.article_row(entry.row)
                if entry.linked:
                    canonical = state.catalog.get(cast(str, row.canonical_id))
                    if canonical is not None and canonical.stream == stream:
                        continue
                articles.append(row.article)
        return articles

    def signatures(self, since_ms: int) -> list[SignatureRow]:
        """The near-duplicate signatures of stored articles published at or after `since_ms`, oldest first."""
        with self._core.view:
            chosen = [
                (entry.published_ms, article_id, entry.stream, entry.segment, entry.row)
                for article_id, entry in self._core.state.catalog.items()
                if not entry.linked and entry.published_ms >= since_ms
            ]
        chosen.sort(key=lambda item: item[:2])
        return [
            SignatureRow(article_id, stream, published_ms, segment.signature(row))
            for published_ms, article_id, stream, segment, row in chosen
        ]

    def changes(self, since: int) -> Changes:
        """Corrections and withdrawals after a sequence number (0: from the first)."""
        with self._core.view:
            return self._core.state.changes(since)

    def originals(self) -> list[str]:
        """What the linked near-duplicates of this shard are linked to, each once."""
        return copies.originals(self._core)

    def copies_of(self, article_ids: Collection[str]) -> list[copies.Copy]:
        """The near-duplicates that are linked to one of these articles, oldest first."""
        return copies.copies_of(self._core, article_ids)

    def settle(self, settlements: Sequence[copies.Settlement]) -> list[bool]:
        """Make copies of what was withdrawn searchable or link them anew, durably; whether each still was one."""
        with self._core.writer:
            self._check_open()
            done = copies.settle(self._core, settlements)
        self._core.commit_lexical(force=True)
        return done

    def maintain(self, now_ms: int) -> dict[str, int]:
        """What is due: expiry and compaction; returns chunks expired and segments replaced. Call it every few
        seconds or minutes; it waits its turn after a sealing, and does nothing where that takes above 4 s. Files of
        what left go with the checkpoint after it: a sealing's or, where nothing comes, that of the next call."""
        core = self._core
        core.mend_lexical()
        core.commit_lexical(force=True)
        if not core.maintenance.acquire(timeout=_TURN_S):
            return {"expired_chunks": 0, "compacted_segments": 0}
        try:
            self._check_open()
            expired, compacted = maintenance.expire(core, now_ms), maintenance.compact(core)
            maintenance.let_go(core)
            return {"expired_chunks": expired, "compacted_segments": compacted}
        finally:
            core.maintenance.release()

    def seal(self) -> int:
        """Write the growing segment to disk and make a checkpoint; returns the segments written."""
        with self._core.maintenance:
            self._check_open()
            return maintenance.seal(self._core)

    def compact(self) -> int:
        """Rewrite segments with too much dead, join small ones; returns the segments replaced."""
        with self._core.maintenance:
            self._check_open()
            return maintenance.compact(self._core)

    def expire(self, now_ms: int) -> int:
        """Drop segments past retention; returns the chunks dropped."""
        with self._core.maintenance:
            self._check_open()
            return maintenance.expire(self._core, now_ms)

    def snapshot(self, target: Path) -> Path:
        """Copy the shard as of now to its folder under `target`; appends and searches go on meanwhile."""
        folder = shard_folder(Path(target), self._core.identity.shard_index)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self._core.maintenance:
            self._check_open()
            maintenance.snapshot(self._core, folder)
        return folder

    @staticmethod
    def restore(snapshot: Path, root: Path) -> list[Path]:
        """Restore the shards of a snapshot into the store folder `root`, every checksum verified."""
        return restore(Path(snapshot), Path(root))

    def stats(self) -> dict[str, Any]:
        """Sizes, ages, offsets and the ledger, as plain values for JSON."""
        core = self._core
        with core.view:
            state, segments = core.state, list(core.segments)
            occupied = [s for s in segments if s.num_articles > s.num_dead_articles]
            figures: dict[str, Any] = {
                "shard_index": core.identity.shard_index,
                "num_shards": core.identity.num_shards,
                "embedder": core.identity.embedder,
                "dim": core.identity.dim,
                "generation": core.checkpoint.generation,
                "live_chunks": core.live_chunks(),
                "live_articles": len(state.catalog) - state.num_linked,
                "linked_articles": state.num_linked,
                "deleted_articles": len(state.tombstones),
                "tombstones": sum(s.num_dead for s in segments),
                "growing_chunks": core.growing.num_rows,
                "oldest_ms": min((s.oldest_ms for s in occupied), default=None),
                "newest_ms": max((s.newest_ms for s in occupied), default=None),
                "changes": state.sequence,
                "offsets": {f"{topic}[{part}]": offset for (topic, part), offset in state.offsets.items()},
                "ledger": {topic: counts.to_dict() for topic, counts in state.ledger.items()},
            }
        figures["segments"] = [
            {
                "name": s.name,
                "chunks": s.num_rows,
                "dead": s.num_dead,
                "oldest_ms": s.oldest_ms,
                "newest_ms": s.newest_ms,
            }
            for s in segments[:-1]
        ]
        figures["repairs"] = list(core.repairs)
        figures["keyword_index_broken"] = core.lexical_broken
        figures["index_bytes"] = sum(s.memory_bytes for s in segments)
        figures["wal_bytes"] = core.wal.num_bytes
        figures["disk_bytes"] = folder_bytes(core.folder)
        figures["keyword_chunks"] = core.lexical.num_docs
        return figures

    @property
    def failed(self) -> str:
        """Why appends are refused until the shard is opened again; empty while they are not."""
        return self._core.wal.failed

    def close(self) -> None:
        """Wait for a sealing under way, and give files and the lock back; nothing is lost without it. StoreFailed
        where a thread does not let go of the files: the lock is kept then, until the process ends."""
        if self._closed:
            return
        self._join_sealing()
        core = self._core
        core.stop_committing()
        with core.maintenance, core.writer:
            self._closed = True
            try:
                core.close_lexical()
            finally:
                core.wal.close()
                core.lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this shard is closed; open it again")

    def _seal_in_background(self) -> None:
        """Freeze the full segment now and write it beside the appends; wait only when far behind."""
        core = self._core
        behind = core.growing.num_rows >= 4 * core.config.seal_rows
        if not core.maintenance.acquire(blocking=behind):
            return
        try:
            with core.writer:
                if self._closed or not maintenance.should_freeze(core.growing, core.config):
                    core.maintenance.release()
                    return
                checkpoint = maintenance.freeze(core)
        except OSError as error:  # the append that came here is durable: a full disk is no failure of it
            core.maintenance.release()
            core.log.error("sealing_failed", error=repr(error))
            return
        except BaseException:
            core.maintenance.release()
            raise

        def work() -> None:
            try:
                maintenance.seal(core, checkpoint)
            except Exception as error:
                # The rows stay in memory and in the log; the next sealing takes them along.
                core.log.error("sealing_failed", error=repr(error))
            finally:
                core.maintenance.release()

        self._sealing = threading.Thread(target=work, name="seal", daemon=True)
        self._sealing.start()

    def _join_sealing(self) -> None:
        if self._sealing is not None:
            self._sealing.join(_SEALING_S)
            if self._sealing.is_alive():
                raise StoreFailed(
                    f"sealing {self._core.folder} has not ended within {_SEALING_S:.0f} s; end this process: the "
                    "rows are in the log, and the next one opens with them"
                )
            self._sealing = None
