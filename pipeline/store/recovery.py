"""Opening a shard: from its manifest, segments and log, and from less where files are damaged.

What is damaged is made again from the next best source: derived files from the truth, the truth from its mapped
copy, a manifest or a segment from the checkpoint before and its longer log. Where none of these is whole, the shard
begins anew, and ingest, which goes by the shard's own offsets, reads the topic again. Nothing damaged is
deleted: it is set aside in `damaged/`.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from pipeline.store import manifest
from pipeline.store.codec import unpack_batch
from pipeline.store.errors import StoreCorrupt
from pipeline.store.files import set_aside
from pipeline.store.lexical import LexicalIndex
from pipeline.store.manifest import Checkpoint
from pipeline.store.records import Ledger
from pipeline.store.sealed import SealedSegment
from pipeline.store.segment import Segment
from pipeline.store.state import Entry, ShardState
from pipeline.store.wal import Wal

if TYPE_CHECKING:
    from pipeline.store.core import ShardCore


def recover(core: ShardCore) -> tuple[Wal, LexicalIndex]:
    """Fill an empty core with what its folder holds; its log and its keyword index.

    Raises StoreMismatch, StoreTooNew, and StoreCorrupt where damage cannot be mended or may not (`repair`).
    """
    (core.folder / "segments").mkdir(parents=True, exist_ok=True)
    try:
        fell_back = _load(core)
    except StoreCorrupt as error:
        if not core.config.repair:
            raise
        _begin_anew(core, str(error))
        fell_back = _load(core)
    wal = Wal(core.folder / "wal", max_bytes=core.config.wal_bytes, compress=core.config.wal_compress)
    lexical = core.lexical = LexicalIndex(core.folder / "lexical", verify=core.config.verify)
    core.wal = wal
    _replay(core, wal)
    core.repairs += wal.repairs
    if lexical.damaged:
        core.repairs.append(f"the keyword index was damaged ({lexical.damaged}) and made again")
    if not fell_back:
        manifest.collect_garbage(core.folder)
    core.commit_lexical(force=True)
    if fell_back or core.lexical_broken or not _lexical_is_whole(core, lexical):
        core.rebuild_lexical()
    return wal, lexical


def _load(core: ShardCore) -> bool:
    """Load the newest checkpoint whose files are whole; whether that is the previous one."""
    folder = core.folder
    if not (folder / manifest.CURRENT).exists() and not (folder / manifest.PREVIOUS).exists():
        if any((folder / "segments").iterdir()):
            raise StoreCorrupt(
                f"{folder} holds segments but no {manifest.CURRENT}; restore the shard from a snapshot"
            )
        core.checkpoint = Checkpoint(identity=core.identity, wal=None)
        _load_segments(core)
        return False
    core.checkpoint, fell_back = manifest.load(folder)
    manifest.check_identity(folder, core.checkpoint.identity, core.identity)
    try:
        _load_segments(core)
    except StoreCorrupt as error:
        if fell_back or not core.config.repair or not (folder / manifest.PREVIOUS).exists():
            raise
        core.log.error("checkpoint_damaged", error=str(error), using=manifest.PREVIOUS)
        core.repairs.append(f"{error}; the checkpoint before was taken, and the log since then")
        core.checkpoint = manifest.load_previous(folder)
        _load_segments(core)
        # Kept as it is, it would become the previous manifest of the next checkpoint.
        set_aside(folder, [folder / manifest.CURRENT], "manifest")
        return True
    if fell_back:
        core.repairs.append(
            f"{folder / manifest.CURRENT} is damaged; the one before and a longer log were taken"
        )
    return fell_back


def _load_segments(core: ShardCore) -> None:
    saved = core.checkpoint
    state = core.state = ShardState(change_log=core.config.change_log)
    state.offsets, state.epochs = dict(saved.offsets), dict(saved.epochs)
    state.ledger, state.tombstones = Ledger(saved.ledger).copy(), dict(saved.tombstones)
    state.sequence, state.recent_changes = saved.sequence, deque(saved.changes)
    core.next_segment = saved.next_segment
    segments: list[Segment] = []
    infos = []
    for info in saved.segments:
        segment = SealedSegment(core.folder / "segments" / info.name, info.truth, core.config)
        for row in np.flatnonzero(saved.dead[info.name]):
            segment.kill(int(row))
        segments.append(segment)
        _catalogue(core, segment)
        infos.append(dataclasses.replace(info, truth=segment.truth))
        if segment.repaired:
            core.repairs.append(segment.repaired)
    core.segments = [*segments, core.new_growing()]
    if infos != saved.segments:
        saved.segments = infos
        manifest.save(core.folder, saved)


def _catalogue(core: ShardCore, segment: SealedSegment) -> None:
    ids, streams, linked = segment.article_ids(), segment.article_streams(), segment.linked()
    versions, published = segment.article_version_ms, segment.article_published_ms
    for row in np.flatnonzero(~segment.dead_articles).tolist():
        entry = Entry(int(versions[row]), int(published[row]), streams[row], segment, row, bool(linked[row]))
        core.state.add(ids[row], entry)


def _replay(core: ShardCore, wal: Wal) -> None:
    if core.checkpoint.wal is None:
        wal.create()
        core.checkpoint.wal = wal.position
        manifest.save(core.folder, core.checkpoint)
        return
    batches = 0
    for _, payload in wal.replay(core.checkpoint.wal, repair=core.config.repair):
        core.apply(unpack_batch(payload, core.identity.dim), replaying=True)
        batches += 1
    if batches:
        core.log.info("wal_replayed", batches=batches, articles=core.growing.num_articles)


def _begin_anew(core: ShardCore, why: str) -> None:
    """Set everything aside; an empty shard knows no offsets, and ingest reads the topic from its beginning."""
    paths = [path for path in core.folder.iterdir() if path.name not in ("lock", "damaged")]
    aside = set_aside(core.folder, paths, "shard")
    core.log.error("shard_begun_anew", reason=why, set_aside=str(aside))
    core.repairs = [f"{why}; the shard was begun anew, what was left of it is in {aside}"]
    (core.folder / "segments").mkdir(parents=True, exist_ok=True)


def _lexical_is_whole(core: ShardCore, lexical: LexicalIndex) -> bool:
    """Whether the keyword index holds exactly what lives; it may be ahead of a log that was cut."""
    if not core.config.verify:
        return lexical.num_docs == core.live_chunks()
    alive = [~segment.dead[: segment.num_rows] for segment in core.segments]
    parts = list(zip(core.segments, alive, strict=True))
    ids = np.concatenate([segment.chunk_id[: segment.num_rows][rows] for segment, rows in parts])
    versions = np.concatenate([segment.version_ms[: segment.num_rows][rows] for segment, rows in parts])
    try:
        return lexical.holds(ids, versions)
    except BaseException as error:  # its list of files has no checksum; the Rust side panics over a wrong one
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        core.log.warning("lexical_index_unreadable", error=str(error))
        return False
