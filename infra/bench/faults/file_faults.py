"""Faults of a shard's files: tails cut, bits flipped, files lost, disks full, snapshots damaged."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.bench.faults.process import Died, Failed
from infra.bench.faults.shard_world import ShardWorld

_ROOM_BYTES = 400_000


def wal_tail(world: ShardWorld, draw: random.Random) -> str:
    """The end of the log is gone, acknowledged records with it, as after a power cut of a lying disk."""
    _stop_in_work(world, draw)
    path = max((world.shard_folder / "wal").glob("*.wal"))
    size = path.stat().st_size
    keep = draw.choice((draw.randrange(size + 1), max(0, size - draw.randrange(1, 200))))
    os.truncate(path, keep)
    return f"{path.name}: {size - keep} of {size} bytes cut"


def wal_lost(world: ShardWorld, draw: random.Random) -> str:
    """A whole file of the log is gone."""
    _stop_in_work(world, draw)
    path = draw.choice(sorted((world.shard_folder / "wal").glob("*.wal")))
    path.unlink()
    return path.name


def flip(pattern: str, world: ShardWorld, draw: random.Random) -> str:
    """One bit of one file is turned over while no process has it open."""
    _stop_in_work(world, draw)
    return flip_one(sorted(world.shard_folder.glob(pattern)), draw)


def flip_running(pattern: str, world: ShardWorld, draw: random.Random) -> str:
    """One bit of one file is turned over under a running shard, which dies a while later."""
    world.publish(6)
    note = flip_one(sorted(world.shard_folder.glob(pattern)), draw)
    with contextlib.suppress(Failed, Died):
        world.append_next(6)
        world.call(draw.choice(("seal", "compact")))
    world.kill()
    return note


def segment_twice(world: ShardWorld, draw: random.Random) -> str:
    """Truth and derived files of one segment are both damaged: only the topic knows what was in it."""
    _stop_in_work(world, draw)
    folders = sorted((world.shard_folder / "segments").glob("seg-??????"))
    if not folders:
        return "no segment yet"
    folder = draw.choice(folders)
    table = draw.choice(("chunks", "articles"))
    for name in (f"{table}.parquet", f"{table}.arrow"):
        flip_one([folder / name], draw)
    return f"{folder.name}/{table}.*"


def manifests_both(world: ShardWorld, draw: random.Random) -> str:
    """Both manifests are damaged: nothing says what the files mean."""
    _stop_in_work(world, draw)
    for path in world.shard_folder.glob("manifest*.json"):
        if draw.random() < 0.5:
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2)
    return "both"


def snapshot_flip(world: ShardWorld, draw: random.Random) -> str:
    """A bit of a snapshot is flipped; restoring it must be refused, or must give a store that can go on."""
    from pipeline.errors import DysraError
    from pipeline.store.shard import Shard

    world.publish(8)
    world.append_next(8)
    snapshot = world.snapshot()
    world.publish(8)
    world.append_next(8)
    note = flip_one([path for path in snapshot.rglob("*") if path.is_file()], draw, copy=True)
    world.kill()
    _lose(world)
    try:
        Shard.restore(snapshot, world.root)
        note += ", restored"
    except DysraError as error:
        note += f", refused ({type(error).__name__})"
        _lose(world)
    world.drop(snapshot)
    return note


def snapshot_restored(world: ShardWorld, draw: random.Random) -> str:
    """The shard's folder is lost and a snapshot of some time ago put in its place.

    Its files are hard links to the store's, so bits that earlier faults turned over there are turned over in it
    too. Where that took both forms of a segment, it must be refused by name, and the shard starts anew from the
    topic. Any other refusal is a fault that did not hold.
    """
    from pipeline.store.errors import StoreCorrupt
    from pipeline.store.shard import Shard

    if not world.snapshots:
        world.snapshot()
    world.publish(12)
    world.append_next(12)
    world.kill()
    _lose(world)
    snapshot = draw.choice(world.snapshots)
    try:
        Shard.restore(snapshot, world.root)
    except StoreCorrupt:
        lost = world.lost_in(snapshot)
        if not lost:
            raise
        _lose(world)
        world.drop(snapshot)
        return f"{snapshot.name}, refused: both forms of {lost[0]} had been damaged before"
    return snapshot.name


def disk_full(world: ShardWorld, draw: random.Random) -> str:
    """The file system fills up during appends, sealing, compaction or a snapshot, and is freed later."""
    world.publish(40)
    room = draw.choice((0, draw.randrange(30_000), draw.randrange(_ROOM_BYTES)))
    refused: list[str] = []
    with fill(world.folder, room):
        died = False
        for _ in range(draw.randrange(2, 8)):
            operation = draw.choice(("append", "append", "append", "seal", "compact", "snapshot"))
            try:
                if operation == "append":
                    world.append_next(draw.randrange(4, 24))
                elif operation == "snapshot":
                    world.call("snapshot", str(world.folder / f"full-{draw.randrange(10**9)}"))
                else:
                    world.call(operation)
            except Failed as error:
                refused.append(f"{operation}: {error.name}")
            except Died:
                died = True
                break
        if not died and draw.random() < 0.3:
            world.kill()
            with contextlib.suppress(Failed, Died):
                world.start()
    for path in world.folder.glob("full-*"):
        shutil.rmtree(path, ignore_errors=True)
    return f"{room} bytes left; " + (", ".join(sorted(set(refused))) or "nothing refused")


@contextlib.contextmanager
def fill(folder: Path, room: int) -> Iterator[None]:
    """Leave `room` bytes on the file system of `folder`, until the end of the block."""
    free = os.statvfs(folder)
    filler = folder / "filler"
    try:
        with filler.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(4_096, free.f_bavail * free.f_frsize - room))
        yield
    finally:
        filler.unlink(missing_ok=True)


def _stop_in_work(world: ShardWorld, draw: random.Random) -> None:
    world.publish(8)
    world.append_next(draw.randrange(1, 9))
    world.kill()


def _lose(world: ShardWorld) -> None:
    shutil.rmtree(world.shard_folder, ignore_errors=True)


def flip_one(paths: list[Path], draw: random.Random, *, copy: bool = False) -> str:
    """Turn one bit of one of the files over; which it was."""
    paths = [path for path in paths if path.is_file() and path.stat().st_size]
    if not paths:
        return "no such file yet"
    path = draw.choice(paths)
    size = path.stat().st_size
    byte, bit = draw.randrange(size), draw.randrange(8)
    if copy:  # the snapshot's files are hard links to the store's: only this one is to be damaged
        path.write_bytes(_unlinked(path))
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0] ^ (1 << bit)
        file.seek(byte)
        file.write(bytes([value]))
    return f"{path.parent.name}/{path.name}: bit {bit} of byte {byte} of {size}"


def _unlinked(path: Path) -> bytes:
    data = path.read_bytes()
    path.unlink()
    return data


Inject = Callable[[ShardWorld, random.Random], str]
