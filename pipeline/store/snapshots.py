"""Snapshots of shards, and their restoration: every file is checked on the way, and mended where it can be."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.store import manifest
from pipeline.store.errors import StoreCorrupt
from pipeline.store.files import copy_file, folder_bytes, link_or_copy, matches, require, sync_folder
from pipeline.store.manifest import Checkpoint
from pipeline.store.sealed import TRUTH, rewritten_truth


def shard_folder(root: Path, shard_index: int) -> Path:
    """The folder of a shard in a store's folder."""
    return root / f"shard-{shard_index:04d}"


def shard_folders(root: Path) -> list[Path]:
    """The folders of all shards in a store's (or a snapshot's) folder; raises UsageError if there are none."""
    if (root / manifest.CURRENT).exists():
        return [root]
    folders = sorted(path for path in root.glob("shard-[0-9][0-9][0-9][0-9]") if path.is_dir())
    if not folders:
        raise UsageError(f"{root} holds no store: a folder with shard-0000 and so on is needed")
    return folders


def copy_shard(folder: Path, checkpoint: Checkpoint, target: Path, *, copies: bool) -> list[Path]:
    """Bring a checkpoint's segments to `target` and write its manifest last, without its log.

    Every file of the truth matches its checksum there; returns those that were damaged in `folder` and were written
    again from their mapped copies. Hard links where possible, unless `copies` are wanted: a link shares a bit that
    flips later. Raises StoreCorrupt that names a file which is damaged and cannot be mended.
    """
    if target.exists():
        raise UsageError(f"{target} exists; name a folder that does not")
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "segments").mkdir(parents=True)
    infos, mended = [], []
    try:
        for info in checkpoint.segments:
            source, into = folder / "segments" / info.name, temporary / "segments" / info.name
            into.mkdir()
            for path in sorted(source.iterdir()):
                (copy_file if copies else link_or_copy)(path, into / path.name)
            truth, damaged = _mended(source, into, info.truth)
            mended += [source / name for name in damaged]
            infos.append(dataclasses.replace(info, truth=truth))
            sync_folder(into)
        sync_folder(temporary / "segments")
        manifest.save(temporary, dataclasses.replace(checkpoint, segments=infos, wal=None))
        temporary.rename(target)
    except StoreCorrupt:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return mended


def _mended(
    source: Path, into: Path, truth: dict[str, dict[str, int]]
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """The truth's checksums in `into`, and which of its files had to be written again there."""
    damaged = [name for name in TRUTH if not matches(into / name, truth[name], verify=True)]
    if not damaged:
        return truth, []
    try:
        return rewritten_truth(into, truth, damaged, repair=True), damaged
    except StoreCorrupt:
        for name in damaged:  # told of the file that stays, not of the copy that goes
            require(source / name, truth[name], verify=True)
        raise


def restore(source: Path, root: Path) -> list[Path]:
    """Restore a snapshot (of one shard or of a whole store) into the store folder `root`; returns the shards'
    folders. The log starts anew, and reading goes on from the snapshot's offsets."""
    restored = []
    for folder in shard_folders(source):
        checkpoint, _ = manifest.load(folder)
        target = shard_folder(root, checkpoint.identity.shard_index)
        root.mkdir(parents=True, exist_ok=True)
        copy_shard(folder, checkpoint, target, copies=True)  # the snapshot stays what it is
        restored.append(target)
    return restored


def summarize_shard(folder: Path) -> dict[str, Any]:
    """What a shard's last checkpoint says, as plain values: reads only, needs no lock, loads no segment."""
    checkpoint, _ = manifest.load(folder)
    identity = checkpoint.identity
    occupied = [info for info in checkpoint.segments if info.articles]
    return {
        "shard_index": identity.shard_index,
        "num_shards": identity.num_shards,
        "embedder": identity.embedder,
        "dim": identity.dim,
        "generation": checkpoint.generation,
        "segments": len(checkpoint.segments),
        "chunks": sum(info.rows for info in checkpoint.segments),
        "dead_chunks": sum(info.dead_rows for info in checkpoint.segments),
        "articles": sum(info.articles for info in checkpoint.segments),
        "oldest_ms": min((info.oldest_ms for info in occupied), default=None),
        "newest_ms": max((info.newest_ms for info in occupied), default=None),
        "deleted_articles": len(checkpoint.tombstones),
        "offsets": {f"{topic}[{part}]": offset for (topic, part), offset in checkpoint.offsets.items()},
        "ledger": checkpoint.ledger.total().to_dict(),
        "set_aside": sorted(path.name for path in (folder / "damaged").glob("*")),
        "disk_bytes": folder_bytes(folder),
        "wal_bytes": folder_bytes(folder / "wal") if (folder / "wal").is_dir() else 0,
    }
