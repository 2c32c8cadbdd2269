"""Files that survive a crash: written to a temporary name, flushed, renamed, and checked by CRC-32C."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import crc32c
import orjson

from pipeline.store.errors import StoreCorrupt, StoreTooNew

SCHEMA_VERSION = 2
"""Version of every format in this folder; files of a newer one are refused, older ones are read and written anew
in this one. From 2 on the checksum of a header covers its version, so that a flipped bit is no newer version."""
_BLOCK = 1 << 20


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename in it lasts."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash the file is the old one or the new one, never a mixture."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def checksum(path: Path) -> int:
    """CRC-32C of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = crc32c.crc32c(block, value)
    return value


def describe(path: Path) -> dict[str, int]:
    """Size and checksum of a file, as a manifest keeps them."""
    return {"bytes": path.stat().st_size, "crc32c": checksum(path)}


def matches(path: Path, described: dict[str, int], *, verify: bool) -> bool:
    """Whether a file is there with the size (and with `verify` the checksum) that was written."""
    if not path.is_file() or path.stat().st_size != described["bytes"]:
        return False
    return not verify or checksum(path) == described["crc32c"]


def require(path: Path, described: dict[str, int], *, verify: bool) -> None:
    """Raise StoreCorrupt that names the file unless it matches."""
    if not matches(path, described, verify=verify):
        what = "is missing" if not path.is_file() else "does not match its checksum"
        raise StoreCorrupt(
            f"{path} {what}; restore the shard from a snapshot (`dysra store snapshot` makes them), or delete "
            "the store and ingest again"
        )


def write_json(path: Path, body: dict[str, Any]) -> None:
    """Write a JSON object with its own checksum and schema version."""
    envelope = {
        "schema_version": SCHEMA_VERSION,
        "crc32c": _envelope_crc(SCHEMA_VERSION, body),
        "body": body,
    }
    write_atomic(path, orjson.dumps(envelope, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote; raises StoreTooNew or StoreCorrupt, naming the file."""
    try:
        envelope = orjson.loads(path.read_bytes())
        version = int(envelope["schema_version"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"{path} cannot be read: {error}") from None
    try:
        body: dict[str, Any] = envelope["body"]
        expected = envelope["crc32c"]
    except KeyError as error:
        raise StoreCorrupt(f"{path} lacks {error}") from None
    if _envelope_crc(version, body) != expected:
        raise StoreCorrupt(f"{path} does not match its checksum")
    if version > SCHEMA_VERSION:
        raise too_new(path, version)
    return body


def _envelope_crc(version: int, body: dict[str, Any]) -> int:
    start = 0 if version == 1 else crc32c.crc32c(str(version).encode())
    return int(crc32c.crc32c(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), start))


def too_new(path: Path, version: int) -> StoreTooNew:
    """The error for a file of a later schema."""
    return StoreTooNew(
        f"{path} has schema version {version}; this DySRA reads up to {SCHEMA_VERSION}: upgrade DySRA, or "
        "point it at another store"
    )


def set_aside(folder: Path, paths: Iterable[Path], why: str) -> Path:
    """Move damaged files of a shard into a folder of their own in `damaged/`, for a person to look at."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    target = folder / "damaged" / f"{stamp}-{why}"
    target.mkdir(parents=True)
    for path in paths:
        if path.exists():
            path.rename(target / path.name)
    sync_folder(folder)
    return target


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows one, else a copy, flushed."""
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """A copy that shares nothing with its source, flushed."""
    shutil.copyfile(source, target)
    sync_file(target)


def folder_bytes(path: Path) -> int:
    """Bytes of all files under a folder; files and folders that vanish meanwhile count as nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total
