"""The manifest: which files make up a shard, and up to where in the log they reach.

A checkpoint is two files: the state (tombstones, dead rows, changes) and, last, `manifest.json`, replaced
atomically. The one before it stays as `manifest.prev.json`, and its files stay with it, so that a damaged
manifest costs a longer replay of the log and nothing else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zstandard
from numpy.typing import NDArray

from pipeline.log import get_logger
from pipeline.store.errors import StoreCorrupt, StoreMismatch
from pipeline.store.files import describe, read_json, require, write_atomic, write_json
from pipeline.store.records import Change, Ledger, TopicLedger, TopicPartition
from pipeline.store.wal import Position

CURRENT, PREVIOUS = "manifest.json", "manifest.prev.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a shard was made for; a shard opened for something else is refused."""

    shard_index: int
    num_shards: int
    embedder: str
    dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentInfo:
    """A sealed segment as the manifest lists it; `truth` has the size and checksum of its Parquet files."""

    name: str
    rows: int
    articles: int
    oldest_ms: int
    newest_ms: int
    truth: dict[str, dict[str, int]]
    dead_rows: int = 0
    """Chunks of it that were dead at the checkpoint."""


@dataclass(kw_only=True)
class Checkpoint:
    """Everything that is durable outside the log, as of `wal` (None: a restored shard, whose log is new)."""

    identity: Identity
    wal: Position | None
    generation: int = 0
    next_segment: int = 1
    segments: list[SegmentInfo] = field(default_factory=list)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    epochs: dict[TopicPartition, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    tombstones: dict[str, tuple[int, int]] = field(default_factory=dict)
    sequence: int = 0
    changes: list[Change] = field(default_factory=list)
    dead: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Segment name -> which of its articles are dead."""
    state_file: str = ""

    def wal_file(self) -> int:
        """The first file of the log that this checkpoint needs."""
        return self.wal.file if self.wal is not None else 0


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Make a checkpoint the shard's current one, durable before this returns."""
    checkpoint.generation += 1
    checkpoint.state_file = f"state-{checkpoint.generation:08d}.bin"
    write_atomic(folder / checkpoint.state_file, _pack_state(checkpoint))
    body = _body(checkpoint)
    body["state"] = {"name": checkpoint.state_file, **describe(folder / checkpoint.state_file)}
    current = folder / CURRENT
    if _is_whole(current):
        write_atomic(folder / PREVIOUS, current.read_bytes())
    write_json(current, body)


def load(folder: Path) -> tuple[Checkpoint, bool]:
    """The newest readable checkpoint, and whether it is the previous one because the current is damaged."""
    try:
        return _load(folder, CURRENT), False
    except StoreCorrupt as error:
        if not (folder / PREVIOUS).exists():
            raise
        get_logger(shard=str(folder)).error("manifest_damaged", error=str(error), using=PREVIOUS)
    return _load(folder, PREVIOUS), True


def load_previous(folder: Path) -> Checkpoint:
    """The checkpoint before the current one; StoreCorrupt where it is damaged too."""
    return _load(folder, PREVIOUS)


def collect_garbage(folder: Path) -> Checkpoint:
    """Remove segments and state files that neither manifest names; returns the older of the two."""
    keep = [_load(folder, CURRENT, with_state=False)]
    if (folder / PREVIOUS).exists():
        try:
            keep.append(_load(folder, PREVIOUS, with_state=False))
        except StoreCorrupt:
            get_logger(shard=str(folder)).warning("previous_manifest_damaged")
    names = {info.name for checkpoint in keep for info in checkpoint.segments}
    states = {checkpoint.state_file for checkpoint in keep}
    _remove(path for path in (folder / "segments").iterdir() if path.name not in names)
    _remove(path for path in folder.glob("state-*.bin*") if path.name not in states)
    return min(keep, key=lambda checkpoint: checkpoint.wal_file())


def check_identity(folder: Path, found: Identity, wanted: Identity) -> None:
    """Raise StoreMismatch that says which of the shard's fixed properties differs."""
    for name, advice in (
        ("embedder", "use the embedder that made the store, or another folder for a new store"),
        ("dim", "use the embedder that made the store, or another folder for a new store"),
        ("num_shards", "open the store with the number of shards that it was made with"),
        ("shard_index", "a shard's folder cannot be renamed to another shard's"),
    ):
        has, given = getattr(found, name), getattr(wanted, name)
        if has != given:
            raise StoreMismatch(f"{folder} was made with {name} {has!r}; given {given!r}: {advice}")


def _load(folder: Path, name: str, *, with_state: bool = True) -> Checkpoint:
    body = read_json(folder / name)
    try:
        checkpoint = Checkpoint(
            identity=Identity(**body["identity"]),
            wal=None if body["wal"] is None else Position(*body["wal"]),
            generation=body["generation"],
            next_segment=body["next_segment"],
            segments=[SegmentInfo(**info) for info in body["segments"]],
            offsets={(topic, partition): value for topic, partition, value in body["offsets"]},
            epochs={(topic, partition): value for topic, partition, value in body["epochs"]},
            ledger=Ledger({topic: TopicLedger(**counts) for topic, counts in body["ledger"].items()}),
            state_file=body["state"]["name"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"{folder / name} lacks or misnames a field: {error}") from None
    if with_state:
        state = folder / checkpoint.state_file
        require(state, body["state"], verify=True)
        _unpack_state(state.read_bytes(), checkpoint)
    return checkpoint


def _body(checkpoint: Checkpoint) -> dict[str, Any]:
    identity = checkpoint.identity
    return {
        "identity": {name: getattr(identity, name) for name in Identity.__slots__},
        "wal": None if checkpoint.wal is None else list(checkpoint.wal),
        "generation": checkpoint.generation,
        "next_segment": checkpoint.next_segment,
        "segments": [
            {name: getattr(info, name) for name in SegmentInfo.__slots__} for info in checkpoint.segments
        ],
        "offsets": [[*partition, value] for partition, value in sorted(checkpoint.offsets.items())],
        "epochs": [[*partition, value] for partition, value in sorted(checkpoint.epochs.items())],
        "ledger": {
            topic: {name: getattr(counts, name) for name in TopicLedger.__slots__}
            for topic, counts in checkpoint.ledger.items()
        },
        "written_ms": int(time.time() * 1000),
    }


def _pack_state(checkpoint: Checkpoint) -> bytes:
    dead = {name: (len(rows), np.packbits(rows).tobytes()) for name, rows in checkpoint.dead.items()}
    packed = msgpack.packb((checkpoint.tombstones, checkpoint.sequence, checkpoint.changes, dead))
    return zstandard.ZstdCompressor(level=3).compress(packed)


def _unpack_state(data: bytes, checkpoint: Checkpoint) -> None:
    packed = zstandard.ZstdDecompressor().decompress(data)
    tombstones, checkpoint.sequence, changes, dead = msgpack.unpackb(packed)
    checkpoint.tombstones = {name: (version, published) for name, (version, published) in tombstones.items()}
    checkpoint.changes = [Change(*change) for change in changes]
    checkpoint.dead = {
        name: np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=count).astype(bool)
        for name, (count, bits) in dead.items()
    }


def _is_whole(path: Path) -> bool:
    try:
        return bool(read_json(path))
    except StoreCorrupt:
        return False


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
