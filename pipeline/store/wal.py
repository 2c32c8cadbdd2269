"""The write-ahead log: an append is on the disk before anything else knows of it.

A log is a row of numbered files. Each begins with a header (magic, schema version, number) and holds
frames: magic, length, CRC-32C of the payload, flags, payload. One append is one frame, written by one call and
flushed before the next, so a crash can tear only the last frame; that one was never acknowledged and is cut off
on opening. A bad frame with a good one after it is damage: it is refused, or the log is cut before it, what follows
set aside, and the topic read again from there.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import crc32c
import zstandard

from pipeline.log import get_logger
from pipeline.store.errors import StoreCorrupt, StoreFailed
from pipeline.store.files import SCHEMA_VERSION, set_aside, sync_folder, too_new

_HEADER = struct.Struct("<8sIQI")
_HEADER_1 = struct.Struct("<8sIQ")
"""The first schema's header, without a checksum; such files are still read."""
_FRAME = struct.Struct("<4sIII")
_FILE_MAGIC = b"DYSRAWAL"
_FRAME_MAGIC = b"\xd7WA\xc5"
_COMPRESSED = 1
_MAX_FRAME = 1 << 30


class Position(NamedTuple):
    """A place in the log: everything before it has been taken over by segments."""

    file: int
    byte: int


class Wal:
    """An open log. Not thread-safe: one writer at a time."""

    def __init__(self, folder: Path, *, max_bytes: int, compress: bool) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._compressor = zstandard.ZstdCompressor(level=1) if compress else None
        self._log = get_logger(wal=str(folder))
        self._descriptor = -1
        self._number = 0
        self._size = 0
        self._failed = ""
        self.repairs: list[str] = []
        """What `replay` cut off or found missing, in words; the shard's own offsets have gone back with it."""

    @property
    def failed(self) -> str:
        """Why the log takes no more until it is opened again; empty while it does."""
        return self._failed

    @property
    def position(self) -> Position:
        """Where the next frame will lie."""
        return Position(self._number, self._size)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files of the log."""
        return sum(path.stat().st_size for path in self._files().values())

    def create(self, number: int = 1) -> None:
        """Start an empty log."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open_new(number)

    def replay(self, start: Position, *, repair: bool = False) -> Iterator[tuple[Position, bytes]]:
        """Every payload from `start` on with the position after it, then open the log for appending.

        A torn tail is cut off with a logged event. A missing file or a bad frame elsewhere raises StoreCorrupt with
        its file and byte; with `repair` the log ends there instead, and what follows is set aside.
        """
        files = self._files()
        last = max(files, default=0)
        number = start.file
        try:
            if start.file not in files:
                raise StoreCorrupt(
                    f"{self._path(start.file)} is missing: the log from the last manifest on is lost; restore a "
                    "snapshot, or delete the store and ingest again"
                )
            for number in range(start.file, last + 1):
                if number not in files:
                    raise StoreCorrupt(f"{self._path(number)} is missing between other files of the log")
                begin = start.byte if number == start.file else 0
                yield from self._replay_file(files[number], number, begin, is_last=number == last)
        except StoreCorrupt as error:
            if not repair:
                raise
            self._end_in(number, error.keep_bytes if isinstance(error, _Damaged) else 0, str(error))
            return
        self._open_existing(last)

    def _end_in(self, number: int, keep_bytes: int, why: str) -> None:
        """Let the log end in file `number` after `keep_bytes`, with all that followed out of the way."""
        files = self._files()
        later = [path for at, path in files.items() if at > number or (at == number and not keep_bytes)]
        aside = set_aside(self._folder.parent, later, "wal")
        self.repairs.append(why)
        self._log.error("wal_cut", reason=why, set_aside=str(aside))
        if not keep_bytes:
            self._open_new(number)
            return
        shutil.copyfile(files[number], aside / files[number].name)
        self._truncate(files[number], keep_bytes, files[number].stat().st_size)
        self._open_existing(number)

    def append(self, payload: bytes) -> Position:
        """Write and flush one frame; returns the position after it.

        Raises StoreFailed when the disk refuses: a frame that could not be written is cut off again; after a
        failed flush nobody knows what is on the disk, and the log takes no more until it is opened anew.
        """
        if self._failed:
            raise StoreFailed(f"{self._path(self._number)}: {self._failed}; restart to recover")
        if self._size >= self._max_bytes:
            try:
                self.rotate()
            except OSError as error:  # the file at hand takes no harm, and some more
                raise StoreFailed(f"cannot begin {self._path(self._number + 1)}: {error.strerror}") from error
        flags = 0
        if self._compressor is not None:
            payload, flags = self._compressor.compress(payload), _COMPRESSED
        if len(payload) > _MAX_FRAME:
            raise ValueError(f"an append of {len(payload)} bytes is too large; at most {_MAX_FRAME}")
        head = _FRAME.pack(_FRAME_MAGIC, len(payload), _crc(payload, flags), flags)
        frame = memoryview(head + payload)
        try:
            written = 0
            while written < len(frame):
                written += os.write(self._descriptor, frame[written:])
        except OSError as error:
            self._cut(error)
            raise StoreFailed(f"cannot write {self._path(self._number)}: {error.strerror}") from error
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failed = f"a flush failed ({error.strerror})"
            raise StoreFailed(f"cannot flush {self._path(self._number)}: {error.strerror}") from error
        self._size += len(frame)
        return self.position

    def rotate(self) -> Position:
        """Close the file and go on in the next; returns the position of its first frame."""
        if self._size > _HEADER.size:
            old = self._descriptor
            self._open_new(self._number + 1)
            os.close(old)
        return self.position

    def drop_before(self, position: Position) -> None:
        """Remove files that end before `position`."""
        for number, path in self._files().items():
            if number < position.file:
                path.unlink()

    def close(self) -> None:
        """Close the file; nothing is pending, since every append is flushed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _replay_file(
        self, path: Path, number: int, begin: int, *, is_last: bool
    ) -> Iterator[tuple[Position, bytes]]:
        data = path.read_bytes()
        if is_last and len(data) < _HEADER_1.size:
            self._truncate(path, 0, len(data))
            _write_new(path, _header(number))
            return
        header_bytes = _check_header(path, data, number, is_last=is_last)
        if header_bytes > len(data):
            self._truncate(path, 0, len(data))
            _write_new(path, _header(number))
            return
        offset = max(begin, header_bytes)
        while offset < len(data):
            payload = _frame_at(data, offset)
            if payload is None:
                if is_last and not _any_frame_after(data, offset + 1):
                    self._truncate(path, offset, len(data))
                    return
                raise _Damaged(
                    f"{path}: byte {offset}: a damaged record with good ones after it; restore the shard from "
                    "a snapshot, or delete the store and ingest again",
                    offset if offset > header_bytes else 0,
                )
            offset += _FRAME.size + payload[1]
            yield Position(number, offset), payload[0]

    def _truncate(self, path: Path, size: int, had: int) -> None:
        self._log.warning("wal_tail_truncated", file=str(path), byte=size, dropped_bytes=had - size)
        with path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())

    def _cut(self, cause: OSError) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
        except OSError:
            self._failed = f"a write failed ({cause.strerror})"

    def _open_new(self, number: int) -> None:
        path = self._path(number)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            head = _header(number)
            if os.write(descriptor, head) != len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
            sync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._descriptor, self._number, self._size = descriptor, number, len(head)

    def _open_existing(self, number: int) -> None:
        self._descriptor = os.open(self._path(number), os.O_RDWR)
        self._number, self._size = number, os.lseek(self._descriptor, 0, os.SEEK_END)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}.wal"

    def _files(self) -> dict[int, Path]:
        return {int(path.stem): path for path in sorted(self._folder.glob("*.wal"))}


class _Damaged(StoreCorrupt):
    """A bad record in the middle of a file, of which the first `keep_bytes` are good."""

    def __init__(self, message: str, keep_bytes: int) -> None:
        super().__init__(message)
        self.keep_bytes = keep_bytes


def _header(number: int) -> bytes:
    fields = (_FILE_MAGIC, SCHEMA_VERSION, number)
    return _HEADER.pack(*fields, crc32c.crc32c(_HEADER_1.pack(*fields)))


def _check_header(path: Path, data: bytes, number: int, *, is_last: bool) -> int:
    """Bytes of the file's header; StoreCorrupt where it is damaged, StoreTooNew where it is of a later schema."""
    if len(data) < _HEADER_1.size:
        raise StoreCorrupt(f"{path}: byte {len(data)}: the file's header is cut off")
    magic, version, stated = _HEADER_1.unpack_from(data)
    if magic != _FILE_MAGIC or stated != number:
        raise StoreCorrupt(f"{path}: byte 0: not a log file of this shard")
    if version == 1:
        return _HEADER_1.size
    if len(data) < _HEADER.size and is_last:
        return _HEADER.size
    if data[_HEADER_1.size : _HEADER.size] != struct.pack("<I", crc32c.crc32c(data[: _HEADER_1.size])):
        raise StoreCorrupt(f"{path}: byte 0: the file's header does not match its checksum")
    if version > SCHEMA_VERSION:
        raise too_new(path, version)
    return _HEADER.size


def _write_new(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _crc(payload: bytes, flags: int) -> int:
    """CRC-32C of a frame, its length and flags included."""
    return crc32c.crc32c(payload, crc32c.crc32c(struct.pack("<II", len(payload), flags)))


def _frame_at(data: bytes, offset: int) -> tuple[bytes, int] | None:
    """Payload (decompressed) and its stored length, or None if no whole frame lies there."""
    if offset + _FRAME.size > len(data):
        return None
    magic, length, expected, flags = _FRAME.unpack_from(data, offset)
    begin = offset + _FRAME.size
    if magic != _FRAME_MAGIC or begin + length > len(data):
        return None
    payload = data[begin : begin + length]
    if _crc(payload, flags) != expected:
        return None
    if flags & _COMPRESSED:
        payload = zstandard.ZstdDecompressor().decompress(payload)
    return payload, length


def _any_frame_after(data: bytes, offset: int) -> bool:
    """Whether a whole frame begins anywhere from `offset` on."""
    while (offset := data.find(_FRAME_MAGIC, offset)) >= 0:
        if _frame_at(data, offset) is not None:
            return True
        offset += 1
    return False
