"""The write-ahead log."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.errors import StoreCorrupt, StoreFailed, StoreTooNew
from pipeline.store.wal import Position, Wal

START = Position(1, 20)


def wal_in(folder: Path, *, max_bytes: int = 1 << 20, compress: bool = False) -> Wal:
    """A log that is not open yet."""
    return Wal(folder / "wal", max_bytes=max_bytes, compress=compress)


def written(folder: Path, payloads: list[bytes], **options: object) -> Position:
    """A closed log with these payloads; returns the position after the last."""
    wal = wal_in(folder, **options)  # type: ignore[arg-type]
    wal.create()
    for payload in payloads:
        wal.append(payload)
    wal.close()
    return wal.position


def read(folder: Path, start: Position = START) -> list[bytes]:
    """All payloads from `start` on."""
    wal = wal_in(folder)
    payloads = [payload for _, payload in wal.replay(start)]
    wal.close()
    return payloads


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("max_bytes", [64, 1 << 20])
def test_what_was_appended_is_replayed_in_order_over_files(
    tmp_path: Path, compress: bool, max_bytes: int
) -> None:
    """Rotation and compression change nothing about what comes back."""
    payloads = [bytes([n]) * n for n in range(1, 40)]
    written(tmp_path, payloads, max_bytes=max_bytes, compress=compress)
    assert read(tmp_path) == payloads


def test_replay_from_a_position_gives_only_what_follows(tmp_path: Path) -> None:
    """A checkpoint's position cuts exactly between two appends, and appending goes on after a replay."""
    middle = written(tmp_path, [b"one", b"two"])
    wal = wal_in(tmp_path)
    assert [payload for _, payload in wal.replay(middle)] == []
    wal.append(b"three")
    wal.close()
    assert read(tmp_path, middle) == [b"three"]
    assert read(tmp_path) == [b"one", b"two", b"three"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_torn_tail_costs_only_the_last_append(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere inside the last frame, the log opens without that frame and takes appends again."""
    folder = tmp_path_factory.mktemp("torn")
    before = written(folder, [b"first", b"second"])
    wal = wal_in(folder)
    list(wal.replay(before))
    after = wal.append(b"torn" * 50)
    wal.close()
    path = next((folder / "wal").glob("*.wal"))
    os.truncate(path, data.draw(st.integers(before.byte, after.byte - 1)))
    wal = wal_in(folder)
    assert [payload for _, payload in wal.replay(START)] == [b"first", b"second"]
    wal.append(b"third")
    wal.close()
    assert read(folder) == [b"first", b"second", b"third"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_is_never_replayed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Damage before the last frame is refused with file and byte; in the last one it is cut off."""
    folder = tmp_path_factory.mktemp("flip")
    payloads = [b"first" * 9, b"second" * 9, b"third" * 9]
    end = written(folder, payloads)
    path = next((folder / "wal").glob("*.wal"))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(START.byte * 8, end.byte * 8 - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)
    last_frame = end.byte - 16 - len(payloads[2])
    if bit // 8 >= last_frame:
        assert read(folder) == payloads[:2]
    else:
        with pytest.raises(StoreCorrupt, match=rf"{path.name}: byte \d+"):
            read(folder)


def test_damage_in_an_earlier_file_is_refused(tmp_path: Path) -> None:
    """Only the last file can have a torn tail."""
    written(tmp_path, [b"x" * 100, b"y" * 100], max_bytes=64)
    first = sorted((tmp_path / "wal").glob("*.wal"))[0]
    os.truncate(first, first.stat().st_size - 1)
    with pytest.raises(StoreCorrupt, match=r"000000000001\.wal: byte 24"):
        read(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A hole in the log is told by the file's name."""
    written(tmp_path, [b"x" * 100, b"y" * 100, b"z" * 100], max_bytes=64)
    files = sorted((tmp_path / "wal").glob("*.wal"))
    files[1].unlink()
    with pytest.raises(StoreCorrupt, match=r"000000000002\.wal is missing"):
        read(tmp_path)
    files[0].unlink()
    with pytest.raises(StoreCorrupt, match=r"000000000001\.wal is missing"):
        read(tmp_path)


def test_a_file_whose_header_was_torn_is_taken_as_new(tmp_path: Path) -> None:
    """A crash while a file was being made loses nothing."""
    end = written(tmp_path, [b"x" * 100], max_bytes=64)
    (tmp_path / "wal" / f"{end.file + 1:012d}.wal").write_bytes(b"DYSR")
    wal = wal_in(tmp_path)
    assert [payload for _, payload in wal.replay(START)] == [b"x" * 100]
    wal.append(b"more")
    wal.close()
    assert read(tmp_path) == [b"x" * 100, b"more"]


def with_header(path: Path, version: int, *, checked: bool) -> None:
    """Put a header of another schema before the frames of a log file."""
    head = struct.pack("<8sIQ", b"DYSRAWAL", version, int(path.stem))
    check = struct.pack("<I", crc32c.crc32c(head)) if checked else b""
    path.write_bytes(head + check + path.read_bytes()[24:])


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A log of a later version says so instead of being read wrongly."""
    written(tmp_path, [b"x"])
    with_header(next((tmp_path / "wal").glob("*.wal")), 99, checked=True)
    with pytest.raises(StoreTooNew, match="schema version 99"):
        read(tmp_path)


def test_a_flipped_version_is_damage_and_no_newer_schema(tmp_path: Path) -> None:
    """The header's checksum tells a later version from a version that is not what was written."""
    written(tmp_path, [b"x"])
    path = next((tmp_path / "wal").glob("*.wal"))
    content = bytearray(path.read_bytes())
    content[8] ^= 64
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="header does not match"):
        read(tmp_path)


def test_a_log_of_the_first_schema_is_read_and_gone_on_with(tmp_path: Path) -> None:
    """Its headers had no checksum; new files get the present form."""
    end = written(tmp_path, [b"x" * 100])
    with_header(next((tmp_path / "wal").glob("*.wal")), 1, checked=False)
    wal = wal_in(tmp_path)
    assert [payload for _, payload in wal.replay(START)] == [b"x" * 100]
    assert wal.position.byte == end.byte - 4
    wal.append(b"more")
    wal.rotate()
    wal.append(b"most")
    wal.close()
    assert read(tmp_path) == [b"x" * 100, b"more", b"most"]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_repair_keeps_what_lies_before_the_damage(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bit is flipped, a prefix of the payloads comes back, appends follow it, the rest is set aside."""
    folder = tmp_path_factory.mktemp("repair")
    payloads = [bytes([65 + number]) * 40 for number in range(6)]
    written(folder, payloads, max_bytes=130)
    path = data.draw(st.sampled_from(sorted((folder / "wal").glob("*.wal"))))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)
    wal = wal_in(folder)
    kept = [payload for _, payload in wal.replay(START, repair=True)]
    assert kept == payloads[: len(kept)] and len(kept) < len(payloads)
    wal.append(b"next")
    wal.close()
    assert read(folder) == [*kept, b"next"]


def test_files_before_a_position_are_dropped(tmp_path: Path) -> None:
    """What segments have taken over leaves the disk."""
    wal = wal_in(tmp_path, max_bytes=64)
    wal.create()
    for _ in range(5):
        position = wal.append(b"x" * 100)
    before = wal.num_bytes
    wal.drop_before(position)
    assert wal.num_bytes < before
    assert [path.name for path in (tmp_path / "wal").iterdir()] == [f"{position.file:012d}.wal"]
    wal.close()


def test_a_full_disk_refuses_the_append_and_keeps_the_log_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append that could not be written is an error, not a hole; later appends go on."""
    wal = wal_in(tmp_path)
    wal.create()
    wal.append(b"one")
    real = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", full)
        return real(descriptor, data[: len(data) // 2])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(StoreFailed, match="No space left"):
        wal.append(b"two" * 100)
    monkeypatch.setattr(os, "write", real)
    wal.append(b"three")
    wal.close()
    assert read(tmp_path) == [b"one", b"three"]


def test_after_a_failed_flush_the_log_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what is on the disk then, so every later append is refused until a restart."""
    wal = wal_in(tmp_path)
    wal.create()

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(StoreFailed, match="cannot flush"):
            wal.append(b"one")
    with pytest.raises(StoreFailed, match="restart to recover"):
        wal.append(b"two")
    wal.close()
