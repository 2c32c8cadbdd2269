"""What the store's tests damage, and what must stand afterwards."""

from __future__ import annotations

from pathlib import Path

from pipeline.store import Shard
from tests.pipeline.store import make

NAMES = [f"n{n}" for n in range(12)]


def filled(root: Path) -> tuple[int, set[tuple[str, int]]]:
    """Two sealed segments, tombstones and a growing segment; returns the next offset and what is searchable."""
    shard = make.open_shard(root)
    make.put(shard, *(make.upsert(name, n, hours=n) for n, name in enumerate(NAMES[:5])))
    shard.seal()
    make.put(shard, *(make.upsert(name, n, hours=n) for n, name in enumerate(NAMES[5:10], 5)))
    make.put(shard, make.delete("n0", 10), make.upsert("n1", 11, version=3, hours=1))
    shard.seal()
    make.put(shard, make.upsert("n10", 12), make.delete("n6", 13))
    live = everything(shard)
    shard.close()
    return 14, live


def everything(shard: Shard) -> set[tuple[str, int]]:
    """All chunks that a dense search can find; keyword search must find the same."""
    found = make.found(shard, make.near("x", k=1_000))
    assert set(found) == set(make.found(shard, make.says("says", k=1_000)))
    assert len(found) == len(set(found)) == shard.stats()["live_chunks"]
    return set(found)


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << (bit % 8)
    path.write_bytes(content)
