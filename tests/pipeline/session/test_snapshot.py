"""Snapshots on disk: whole or not at all, newest valid first, one owner at a time."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.session.snapshot import CorruptSnapshot, NewerLease, Snapshot, SnapshotFolder, StaleLease


def snapshot(number: int) -> Snapshot:
    """A snapshot that tells which one it is."""
    return Snapshot(cache=bytes([number]) * 64, state=f'{{"number": {number}}}'.encode())


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_snapshot_survives_its_bytes(cache: bytes, state: bytes) -> None:
    """What was saved comes back, and the same session gives the same file."""
    saved = Snapshot(cache=cache, state=state)
    assert Snapshot.from_bytes(saved.to_bytes()) == saved
    assert saved.to_bytes() == Snapshot(cache=bytes(cache), state=bytes(state)).to_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_single_change_goes_unnoticed(data: st.DataObject) -> None:
    """A flipped byte or a cut file is corrupt, never another session."""
    good = snapshot(3).to_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[place] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(flipped), good[:place]):
        try:
            assert Snapshot.from_bytes(bad) == snapshot(3)
        except CorruptSnapshot:
            continue


def test_newest_valid_snapshot_is_taken(tmp_path: Path) -> None:
    """A damaged newest snapshot is passed over, and named."""
    folder = SnapshotFolder(tmp_path, "one")
    folder.acquire()
    paths = [folder.write(snapshot(number)) for number in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-5])
    found, problems = folder.newest()
    assert found == snapshot(2)
    assert len(problems) == 1 and paths[2].name in problems[0]


def test_only_the_last_snapshots_are_kept(tmp_path: Path) -> None:
    """Old snapshots make room; the newest is never the one that goes."""
    folder = SnapshotFolder(tmp_path, "one", keep=2)
    folder.acquire()
    for number in range(5):
        folder.write(snapshot(number))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert folder.newest()[0] == snapshot(4)


def test_replaced_owner_may_not_write(tmp_path: Path) -> None:
    """Once another has taken the session over, the former owner's write fails and nothing is lost."""
    old, new = SnapshotFolder(tmp_path, "old"), SnapshotFolder(tmp_path, "new")
    old.acquire()
    old.write(snapshot(1))
    new.acquire()
    assert new.newest()[0] == snapshot(1)
    with pytest.raises(StaleLease, match="belongs to new"):
        old.write(snapshot(2))
    new.write(snapshot(3))
    assert new.newest()[0] == snapshot(3)


def test_late_write_of_a_replaced_owner_never_wins(tmp_path: Path) -> None:
    """A file that the former owner put in place after the change of owner sorts below the new owner's."""
    old, new = SnapshotFolder(tmp_path, "old"), SnapshotFolder(tmp_path, "new")
    old.acquire()
    new.acquire()
    new.write(snapshot(3))
    late = tmp_path / f"{old.epoch:010d}-{999:012d}.safetensors"
    late.write_bytes(snapshot(2).to_bytes())
    assert new.newest()[0] == snapshot(3)


def test_epoch_grows_even_where_the_lease_is_lost(tmp_path: Path) -> None:
    """Every owner has an epoch above all before, also when the lease file is gone or broken."""
    first = SnapshotFolder(tmp_path, "a")
    first.acquire()
    first.write(snapshot(1))
    (tmp_path / "lease.json").write_text("{")
    second = SnapshotFolder(tmp_path, "b")
    assert second.acquire() > first.epoch
    (tmp_path / "lease.json").unlink()
    with pytest.raises(StaleLease):
        second.write(snapshot(2))


def test_a_session_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """Its lease names the version: nobody takes it over, and no byte of its folder changes."""
    SnapshotFolder(tmp_path, "a").acquire()
    lease = tmp_path / "lease.json"
    body = orjson.loads(lease.read_bytes())
    assert body["version"] == 1
    lease.write_bytes(orjson.dumps({**body, "version": 2}))
    (tmp_path / ".x.safetensors.1.tmp").write_bytes(b"half")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        NewerLease, match=r"lease\.json has version 2; this DySRA reads up to 1: upgrade DySRA"
    ):
        SnapshotFolder(tmp_path, "b").acquire()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_lease_of_before_versions_is_read_and_written_anew(tmp_path: Path) -> None:
    """Its epoch counts."""
    lease = tmp_path / "lease.json"
    lease.write_bytes(orjson.dumps({"epoch": 7, "owner": "a"}))
    assert SnapshotFolder(tmp_path, "b").acquire() == 8
    assert orjson.loads(lease.read_bytes()) == {"version": 1, "epoch": 8, "owner": "b"}


def test_leftovers_of_a_crash_are_swept(tmp_path: Path) -> None:
    """Half-written temporary files do not pile up."""
    (tmp_path / ".x.safetensors.1.tmp").write_bytes(b"half")
    SnapshotFolder(tmp_path, "one").acquire()
    assert list(tmp_path.glob(".*.tmp")) == []


def test_folder_without_snapshots_is_empty(tmp_path: Path) -> None:
    """A new session has nothing to continue."""
    folder = SnapshotFolder(tmp_path / "new", "one")
    folder.acquire()
    assert folder.newest() == (None, [])
