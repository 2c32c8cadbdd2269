"""`dysra store status|compact|snapshot|restore`: what an operator does with a store's folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, progress, say, verb
from pipeline.errors import UsageError
from pipeline.store import Shard, StoreConfig, StoreLocked, summarize_shard
from pipeline.store.snapshots import restore as restore_snapshot
from pipeline.store.snapshots import shard_folders

StorePath = Annotated[Path | None, typer.Option("--store", help="the store's folder; default: store.path")]


def register(app: typer.Typer) -> None:
    """Add the family to the command line."""
    family = typer.Typer(
        help="Look at a store, compact it, copy it, bring a copy back.", no_args_is_help=True
    )
    family.command("status")(status)
    family.command("compact")(compact)
    family.command("snapshot")(snapshot)
    family.command("restore")(restore)
    app.add_typer(family, name="store")


@verb
def status(
    store: StorePath = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Show what each shard holds as of its last checkpoint; works beside a running store.

    Example: dysra store status --store store
    """
    root, _ = _store(store, config)
    shards = [summarize_shard(folder) for folder in shard_folders(root)]
    total = {name: sum(shard[name] for shard in shards) for name in ("chunks", "dead_chunks", "disk_bytes")}
    ledger = {
        name: sum(shard["ledger"].get(name, 0) for shard in shards)
        for name in ("read", "stored", "deleted", "dead_lettered", "duplicates")
    }
    say(f"[bold]{root}[/bold]: {len(shards)} shards, embedder {shards[0]['embedder']}")
    for shard in shards:
        say(
            f"  shard {shard['shard_index']}: {shard['chunks']:,} chunks ({shard['dead_chunks']:,} dead) in "
            f"{shard['segments']} segments, {shard['disk_bytes'] / 1e6:,.1f} MB on disk, "
            f"{shard['wal_bytes'] / 1e6:,.1f} MB in the log since checkpoint {shard['generation']}"
        )
        if shard["set_aside"]:
            say(
                f"    damaged files were mended and set aside in its damaged/: {', '.join(shard['set_aside'])}"
            )
    counted = ", ".join(f"{name.replace('_', '-')} {count:,}" for name, count in ledger.items())
    say(f"  records as of the checkpoints: {counted}")
    return {"store": str(root), "shards": shards, **total, "ledger": ledger}


@verb
def compact(
    store: StorePath = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Drop what is past retention, rewrite segments with too much dead, join small ones.

    A running store does this by itself; here the store must be stopped.
    Example: dysra store compact --store store
    """
    root, settings = _store(store, config)
    folders = shard_folders(root)
    figures = {"compacted_segments": 0, "expired_chunks": 0, "freed_bytes": 0}
    with progress("shards compacted", len(folders)) as steps:
        for folder in folders:
            shard = _open(folder, settings)
            try:
                before = shard.stats()["disk_bytes"]
                figures["expired_chunks"] += shard.expire(int(time.time() * 1000))
                figures["compacted_segments"] += shard.compact()
                # The second checkpoint lets go of what only the one before the compaction needed.
                shard.seal()
                figures["freed_bytes"] += before - shard.stats()["disk_bytes"]
            finally:
                shard.close()
            steps.advance()
    say(
        f"{root}: {figures['compacted_segments']} segments replaced, {figures['expired_chunks']:,} chunks "
        f"expired, {figures['freed_bytes'] / 1e6:,.1f} MB freed"
    )
    return {"store": str(root), **figures}


@verb
def snapshot(
    target: Annotated[Path, typer.Argument(help="folder to write the copy to; it must not exist")],
    store: StorePath = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Copy a stopped store, every checksum verified, offsets and ledger included.

    Example: dysra store snapshot backup/2026-11-22 --store store
    """
    root, settings = _store(store, config)
    if target.exists():
        raise UsageError(f"{target} exists; name a folder that does not")
    folders = shard_folders(root)
    with progress("shards copied", len(folders)) as steps:
        for folder in folders:
            shard = _open(folder, settings)
            try:
                shard.snapshot(target)
            finally:
                shard.close()
            steps.advance()
    say(f"{root} copied to {target}; `dysra store restore {target} --store FOLDER` brings it back")
    return {"store": str(root), "snapshot": str(target), "shards": len(folders)}


@verb
def restore(
    source: Annotated[Path, typer.Argument(help="a snapshot's folder")],
    store: StorePath = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Bring a snapshot back as a store, every checksum verified; ingest goes on from its offsets.

    Example: dysra store restore backup/2026-11-22 --store store
    """
    root = store or load_config(config).store.path
    restored = restore_snapshot(source, root)
    say(f"{len(restored)} shards of {source} restored to {root}")
    return {"snapshot": str(source), "store": str(root), "shards": len(restored)}


def _store(store: Path | None, config: Path | None) -> tuple[Path, StoreConfig]:
    settings: StoreConfig = load_config(config).store
    return store or settings.path, settings


def _open(folder: Path, settings: StoreConfig) -> Shard:
    """The shard as it was made: what a stopped store needs no embedder for. Damage is told, not mended: without
    ingest nothing would be read again."""
    settings = replace(settings, repair=False)
    made: dict[str, Any] = summarize_shard(folder)
    try:
        return Shard.open(
            folder.parent, settings, made["shard_index"], made["num_shards"], made["embedder"], made["dim"]
        )
    except StoreLocked as error:
        raise UsageError(f"{error} (a running store compacts itself)") from None
