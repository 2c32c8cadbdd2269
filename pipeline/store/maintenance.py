"""Sealing, compaction, expiry and snapshots: what changes segments without changing what is stored.

Each begins with a checkpoint and only touches what is durable as of it; what happens meanwhile (appends
go on) is carried over when the new segments take the old ones' places. Callers hold `core.maintenance`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.store import manifest
from pipeline.store.config import StoreConfig
from pipeline.store.core import ShardCore
from pipeline.store.growing import GrowingSegment
from pipeline.store.manifest import Checkpoint, SegmentInfo
from pipeline.store.sealed import SealedSegment, write_segment
from pipeline.store.segment import Segment
from pipeline.store.snapshots import copy_shard
from pipeline.store.tables import growing_tables, join_tables

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000


def freeze(core: ShardCore) -> Checkpoint:
    """Stop adding to the growing segment and go on in a new one; returns the state at that moment.

    Quick, so appends may call it; `seal` must follow.
    """
    with core.writer:
        core.wal.rotate()
        with core.view:
            if core.growing.num_articles:
                core.growing.name = _segment_name(core.next_segment)
                core.next_segment += 1
                core.segments.append(core.new_growing())
            return core.capture()


def seal(core: ShardCore, checkpoint: Checkpoint | None = None) -> int:
    """Write all frozen rows as segments and make a checkpoint; returns the number of segments written."""
    checkpoint = checkpoint or freeze(core)
    core.commit_lexical(force=True)
    frozen = [segment for segment in core.segments[:-1] if isinstance(segment, GrowingSegment)]
    frozen = [segment for segment in frozen if segment.name in checkpoint.dead]
    written: list[tuple[GrowingSegment, SealedSegment]] = []
    for segment in frozen:
        folder = core.folder / "segments" / segment.name
        truth = write_segment(folder, *growing_tables(segment, core.identity.dim), core.config)
        written.append((segment, SealedSegment(folder, truth, core.config)))
    checkpoint.segments = [*core.checkpoint.segments, *(_info(sealed) for _, sealed in written)]
    _commit(core, checkpoint)
    with core.writer, core.view:
        for old, new in written:
            rows = np.arange(old.num_articles)
            _move(core, old, new, rows, rows)
            core.segments[core.segments.index(old)] = new
    return len(written)


def compact(core: ShardCore) -> int:
    """Rewrite segments of which too much is dead, and join many small ones; returns segments replaced."""
    if not _groups(core, _live_dead(core)):
        return 0
    seal(core)
    replaced = 0
    while groups := _groups(core, core.checkpoint.dead):
        for group in groups:
            _rewrite(core, group)
            replaced += len(group)
    return replaced


def expire(core: ShardCore, now_ms: int) -> int:
    """Drop every segment whose newest article is past retention; returns the number of chunks dropped."""
    if not core.config.retention_days:
        return 0
    before_ms = now_ms - int(core.config.retention_days * _DAY_MS)
    if not any(segment.num_articles and segment.newest_ms < before_ms for segment in core.segments):
        return 0
    with core.writer, core.view:
        core.state.expire_tombstones(before_ms)
    seal(core)
    old = [s for s in core.segments if isinstance(s, SealedSegment) and s.newest_ms < before_ms]
    names = {segment.name for segment in old}
    kept = [info for info in core.checkpoint.segments if info.name not in names]
    _commit(core, dataclasses.replace(core.checkpoint, segments=kept))
    num_chunks = 0
    with core.writer:
        gone: list[str] = []
        with core.view:
            for segment in old:
                num_chunks += segment.num_rows - segment.num_dead
                ids = segment.article_ids()
                gone.extend(ids[row] for row in np.flatnonzero(~segment.dead_articles))
            for article_id in gone:
                core.state.remove(article_id)
            core.segments = [segment for segment in core.segments if segment not in old]
        core.remove_lexical(gone)
    core.log.info("segments_expired", segments=len(old), chunks=num_chunks, before_ms=before_ms)
    return num_chunks


def let_go(core: ShardCore) -> bool:
    """Make a checkpoint where none has come since the last look, and only the one before needs files that are
    there: what has expired would otherwise lie on the disk until the next article comes. True if it did."""
    before, core.looked_at = core.looked_at, core.checkpoint.generation
    names = {info.name for info in core.checkpoint.segments}
    folder = core.folder / "segments"
    if before != core.looked_at or not folder.exists() or all(p.name in names for p in folder.iterdir()):
        return False
    _commit(core, dataclasses.replace(core.checkpoint))
    core.looked_at = core.checkpoint.generation
    return True


def snapshot(core: ShardCore, target: Path) -> None:
    """Write a whole copy of the shard as of now into `target`, which must not exist yet."""
    seal(core)
    mended = copy_shard(core.folder, core.checkpoint, target, copies=core.config.snapshot_copies)
    for path in mended:
        core.log.error(
            "snapshot_mended", file=str(path), note="the live file is damaged until it is next opened"
        )


def should_freeze(segment: GrowingSegment, config: StoreConfig) -> bool:
    """Whether the growing segment has reached its size, or spans more than a time window."""
    if segment.num_rows >= config.seal_rows or segment.num_articles >= 2 * config.seal_rows:
        return True
    if segment.num_text_bytes >= config.seal_bytes:
        return True
    span_ms = segment.newest_ms - segment.oldest_ms
    return segment.num_rows >= config.min_seal_rows and span_ms > config.window_hours * _HOUR_MS


def _commit(core: ShardCore, checkpoint: Checkpoint) -> None:
    """Make `checkpoint` the durable one, then remove what nothing refers to any more."""
    names = {info.name for info in checkpoint.segments}
    checkpoint.dead = {name: rows for name, rows in checkpoint.dead.items() if name in names}
    counts = {segment.name: segment.num_chunks for segment in core.segments}
    infos = []
    for info in checkpoint.segments:
        dead = checkpoint.dead[info.name]
        dead_rows = int(counts[info.name][: len(dead)][dead].sum()) if dead.any() else 0
        infos.append(dataclasses.replace(info, dead_rows=dead_rows))
    checkpoint.segments = infos
    checkpoint.generation = core.checkpoint.generation
    checkpoint.next_segment = core.next_segment
    manifest.save(core.folder, checkpoint)
    core.checkpoint = checkpoint
    older = manifest.collect_garbage(core.folder)
    if older.wal is not None:
        core.wal.drop_before(older.wal)


def _rewrite(core: ShardCore, group: list[SealedSegment]) -> None:
    """Replace segments by one that holds what of them was alive at the checkpoint."""
    checkpoint = core.checkpoint
    alive = [~checkpoint.dead[segment.name] for segment in group]
    names = {segment.name for segment in group}
    infos = [info for info in checkpoint.segments if info.name not in names]
    dead = dict(checkpoint.dead)
    new: SealedSegment | None = None
    if any(rows.any() for rows in alive):
        folder = core.folder / "segments" / _segment_name(core.next_segment)
        core.next_segment += 1
        parts = [segment.tables(rows) for segment, rows in zip(group, alive, strict=True)]
        truth = write_segment(folder, *join_tables(parts), core.config)
        new = SealedSegment(folder, truth, core.config)
        infos.append(_info(new))
        dead[new.name] = np.zeros(new.num_articles, dtype=bool)
    _commit(core, dataclasses.replace(checkpoint, segments=infos, dead=dead))
    with core.writer, core.view:
        begin = 0
        for segment, rows in zip(group, alive, strict=True):
            old_rows = np.flatnonzero(rows)
            if new is not None:
                _move(core, segment, new, old_rows, np.arange(begin, begin + len(old_rows)))
            begin += len(old_rows)
        place = min(core.segments.index(segment) for segment in group)
        core.segments = [segment for segment in core.segments if segment not in group]
        if new is not None:
            core.segments.insert(place, new)
    core.log.info("segments_compacted", replaced=len(group), rows=0 if new is None else new.num_rows)


def _move(
    core: ShardCore,
    old: Segment,
    new: SealedSegment,
    old_rows: NDArray[np.int64],
    new_rows: NDArray[np.int64],
) -> None:
    """Point the catalogue at the new rows; what died in the meantime dies there too."""
    ids = new.article_ids()
    for old_row, new_row in zip(old_rows.tolist(), new_rows.tolist(), strict=True):
        if old.dead_articles[old_row]:
            new.kill(new_row)
        else:
            entry = core.state.catalog[ids[new_row]]
            entry.segment, entry.row = new, new_row


def _live_dead(core: ShardCore) -> dict[str, NDArray[np.bool_]]:
    return {segment.name: segment.dead_articles for segment in core.segments}


def _groups(core: ShardCore, dead: dict[str, NDArray[np.bool_]]) -> list[list[SealedSegment]]:
    """Segments to rewrite: alone where too much is dead, together where many are small."""
    config = core.config
    sealed = [segment for segment in core.segments if isinstance(segment, SealedSegment)]
    groups = [
        [segment] for segment in sealed if _dead_share(segment, dead[segment.name]) > config.compact_dead
    ]
    if groups or not config.merge_segments:
        return groups
    tiers: dict[int, list[SealedSegment]] = {}
    for segment in sorted(sealed, key=lambda s: s.oldest_ms):
        size = max(1.0, segment.num_rows / config.seal_rows)
        tiers.setdefault(int(math.log(size, config.merge_segments) + 1e-9), []).append(segment)
    for tier in tiers.values():
        group = tier[: config.merge_segments]
        rows = sum(segment.num_rows for segment in group)
        if (
            len(group) == config.merge_segments
            and rows <= config.max_segment_rows
            and _may_join(group, config)
        ):
            return [group]
    return []


def _may_join(group: list[SealedSegment], config: StoreConfig) -> bool:
    """Segments stay apart where joining would keep old articles long after their retention."""
    if not config.retention_days:
        return True
    span_ms = max(s.newest_ms for s in group) - min(s.oldest_ms for s in group)
    return span_ms <= max(config.window_hours * _HOUR_MS, config.retention_days * _DAY_MS / 8)


def _dead_share(segment: SealedSegment, dead: NDArray[np.bool_]) -> float:
    """Dead chunks over all, and dead articles where a segment holds only links."""
    rows = segment.num_chunks[dead].sum() / segment.num_rows if segment.num_rows else 0.0
    return float(max(rows, dead.sum() / max(1, segment.num_articles) if not segment.num_rows else 0.0))


def _info(segment: SealedSegment) -> SegmentInfo:
    return SegmentInfo(
        name=segment.name,
        rows=segment.num_rows,
        articles=segment.num_articles,
        oldest_ms=segment.oldest_ms,
        newest_ms=segment.newest_ms,
        truth=segment.truth,
    )


def _segment_name(number: int) -> str:
    return f"seg-{number:06d}"
