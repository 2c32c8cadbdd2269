"""Snapshots: the same store again, damage mended or refused, nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.store import Shard, StoreCorrupt, StoreMismatch
from tests.pipeline.store import make
from tests.pipeline.store.damage import everything, flip


def test_a_snapshot_restores_to_the_same_store(tmp_path: Path) -> None:
    """With offsets, ledger, tombstones and changes, while the original goes on; then both take appends."""
    shard = make.open_shard(tmp_path / "one")
    make.put(shard, make.upsert("a", 0), make.upsert("b", 1), make.link("c", 2, "a"), make.delete("b", 3))
    target = shard.snapshot(tmp_path / "copy")
    assert target == tmp_path / "copy/shard-0000"
    live, offsets, ledger = everything(shard), shard.offsets(), shard.ledger()
    make.put(shard, make.upsert("later", 4))
    assert Shard.restore(tmp_path / "copy", tmp_path / "two") == [tmp_path / "two/shard-0000"]
    copy = make.open_shard(tmp_path / "two")
    assert everything(copy) == live
    assert copy.offsets() == offsets
    assert copy.ledger() == ledger
    assert copy.changes(0) == shard.changes(0)
    assert copy.article("c") == shard.article("c")
    assert make.put(copy, make.upsert("b", 4)) == ("same_version",)
    make.put(copy, make.upsert("d", 5))
    make.crash(copy)
    again = make.open_shard(tmp_path / "two")
    assert everything(again) == live | {("d", 0), ("d", 1)}
    again.close()
    shard.close()


def _truth(root: Path) -> Path:
    """The Parquet file of a shard's only segment."""
    return next(root.glob("shard-0000/segments/*/chunks.parquet"))


def test_a_damaged_snapshot_is_mended_or_not_restored(tmp_path: Path) -> None:
    """From its mapped copy where that is whole; else the error names the file, and nothing is left behind."""
    shard = make.open_shard(tmp_path / "one", snapshot_copies=True)
    make.put(shard, make.upsert("a", 0))
    live = everything(shard)
    shard.snapshot(tmp_path / "copy")
    shard.close()
    path = _truth(tmp_path / "copy")
    flip(path, 999)
    damaged = path.read_bytes()
    Shard.restore(tmp_path / "copy", tmp_path / "two")
    restored = make.open_shard(tmp_path / "two")
    assert everything(restored) == live and path.read_bytes() == damaged
    restored.close()
    flip(path.with_name("chunks.arrow"), 999)
    with pytest.raises(StoreCorrupt, match=str(path)):
        Shard.restore(tmp_path / "copy", tmp_path / "three")
    assert list((tmp_path / "three").iterdir()) == []


def test_a_bit_that_flips_in_the_live_file_is_not_in_a_copied_snapshot(tmp_path: Path) -> None:
    """With `snapshot_copies` a snapshot shares no file with the store, nor a restored store with its snapshot."""
    shard = make.open_shard(tmp_path / "one", snapshot_copies=True)
    make.put(shard, make.upsert("a", 0))
    live = everything(shard)
    shard.snapshot(tmp_path / "copy")
    shard.close()
    for path in (tmp_path / "one").glob("shard-0000/segments/*/*"):
        flip(path, path.stat().st_size // 2)
    for target in ("two", "three"):
        Shard.restore(tmp_path / "copy", tmp_path / target)
        restored = make.open_shard(tmp_path / target)
        assert everything(restored) == live
        restored.close()
        for path in (tmp_path / target).glob("shard-0000/segments/*/*"):
            flip(path, path.stat().st_size // 2)


@pytest.mark.parametrize("copies", [False, True])
def test_a_damaged_live_file_is_mended_in_the_snapshot_or_refused(tmp_path: Path, copies: bool) -> None:
    """A snapshot is never made of damage: it holds the file written again, or none is made."""
    shard = make.open_shard(tmp_path / "one", snapshot_copies=copies)
    make.put(shard, make.upsert("a", 0))
    shard.seal()
    live = everything(shard)
    path = _truth(tmp_path / "one")
    flip(path, 999)
    shard.snapshot(tmp_path / "copy")
    Shard.restore(tmp_path / "copy", tmp_path / "two")
    restored = make.open_shard(tmp_path / "two")
    assert everything(restored) == live and restored.stats()["repairs"] == []
    restored.close()
    flip(path.with_name("chunks.arrow"), 999)
    with pytest.raises(StoreCorrupt, match=str(path)):
        shard.snapshot(tmp_path / "second")
    assert not (tmp_path / "second/shard-0000").exists()
    shard.close()


def test_snapshots_and_restores_never_overwrite(tmp_path: Path) -> None:
    """Both need a place that is free; a folder without a store is told."""
    shard = make.open_shard(tmp_path / "one")
    shard.snapshot(tmp_path / "copy")
    with pytest.raises(UsageError, match="exists"):
        shard.snapshot(tmp_path / "copy")
    shard.close()
    with pytest.raises(UsageError, match="exists"):
        Shard.restore(tmp_path / "copy", tmp_path / "one")
    with pytest.raises(UsageError, match="holds no store"):
        Shard.restore(tmp_path / "nowhere", tmp_path / "two")


def test_a_restored_shard_still_knows_its_embedder(tmp_path: Path) -> None:
    """A snapshot cannot be opened for another one."""
    shard = make.open_shard(tmp_path / "one")
    shard.snapshot(tmp_path / "copy")
    shard.close()
    Shard.restore(tmp_path / "copy", tmp_path / "two")
    with pytest.raises(StoreMismatch, match="given 'other'"):
        Shard.open(tmp_path / "two", make.config(), 0, 1, "other", make.DIM)
