"""Snapshots of sessions on disk: whole or not at all, newest valid one first, one owner at a time.

A session's folder holds `lease.json` (epoch and owner) and files `<epoch>-<number>.safetensors`. Whoever
opens a session takes the next epoch. An owner that was replaced finds a newer epoch and may not write; a
write of its own that was already under way sorts below every file of its successor.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import safetensors
import safetensors.numpy

from pipeline.errors import DysraError
from pipeline.log import get_logger
from pipeline.shared_files import replace_file

_NAME = re.compile(r"(\d{10})-(\d{12})\.safetensors")
_META = "dysra"
_LEASE = "lease.json"
_LEASE_VERSION = 1


class NewerLease(DysraError):
    """A later version of DySRA has held this session; it is left alone."""


class StaleLease(DysraError):
    """Another process has taken this session over; nothing more may be written for it here."""


class CorruptSnapshot(ValueError):
    """A snapshot file that does not hold what it says."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session as bytes: its cache and its state."""

    cache: bytes
    state: bytes

    def to_bytes(self) -> bytes:
        """One safetensors file; the same bytes for the same session."""
        arrays = {"cache": np.frombuffer(self.cache, np.uint8), "state": np.frombuffer(self.state, np.uint8)}
        return safetensors.numpy.save(arrays, {_META: self.checksum})

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """The snapshot in `data`; CorruptSnapshot unless its checksum holds."""
        try:
            length = int.from_bytes(data[:8], "little")
            stated = orjson.loads(data[8 : 8 + length])["__metadata__"][_META]
            arrays = safetensors.numpy.load(data)
            snapshot = cls(arrays["cache"].tobytes(), arrays["state"].tobytes())
        except (
            safetensors.SafetensorError,
            orjson.JSONDecodeError,
            KeyError,
            ValueError,
            TypeError,
        ) as error:
            raise CorruptSnapshot(f"not a session snapshot: {error}") from None
        if snapshot.checksum != stated:
            raise CorruptSnapshot(f"checksum is {snapshot.checksum[:12]}…, the file says {str(stated)[:12]}…")
        return snapshot

    @property
    def checksum(self) -> str:
        """SHA-256 over cache and state."""
        return hashlib.sha256(hashlib.sha256(self.cache).digest() + self.state).hexdigest()


class SnapshotFolder:
    """One session's folder, held by one owner. `acquire` before anything else."""

    def __init__(self, folder: Path, owner: str, keep: int = 3) -> None:
        self.folder = folder
        self.owner = owner
        self.epoch = 0
        self._keep = keep
        self._number = 0
        self._log = get_logger(session_folder=folder.name)

    def acquire(self) -> int:
        """Take the session over: a new epoch, higher than any before. Returns it.

        NewerLease, with nothing touched, where a later version of DySRA has held it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self._files()
        highest = max([self._lease_epoch(), *(epoch for epoch, _, _ in files)], default=0)
        self._number = max((number for _, number, _ in files), default=0)
        self.epoch = highest + 1
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        body = orjson.dumps({"version": _LEASE_VERSION, "epoch": self.epoch, "owner": self.owner})
        replace_file(self.folder / _LEASE, body)
        self.check()
        return self.epoch

    def check(self) -> None:
        """Raise StaleLease if another owner holds the session now."""
        try:
            lease = orjson.loads((self.folder / _LEASE).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            raise StaleLease(
                f"the lease of {self.folder.name} is gone; its folder was changed by hand"
            ) from None
        if (lease.get("epoch"), lease.get("owner")) != (self.epoch, self.owner):
            raise StaleLease(
                f"{self.folder.name} belongs to {lease.get('owner')} since epoch {lease.get('epoch')}; "
                f"this is {self.owner} with epoch {self.epoch}"
            )

    def write(self, snapshot: Snapshot) -> Path:
        """Save: temporary file, fsync, rename; older ones beyond `keep` go. StaleLease if replaced."""
        self.check()
        self._number += 1
        path = self.folder / f"{self.epoch:010d}-{self._number:012d}.safetensors"
        try:
            replace_file(path, snapshot.to_bytes())
        except FileNotFoundError:  # the successor swept the temporary file away
            self.check()
            raise
        self.check()
        for _, _, old in self._files()[: -self._keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Snapshot, list[str]] | tuple[None, list[str]]:
        """The newest snapshot that holds, and a sentence for each newer one that does not."""
        problems: list[str] = []
        for _, _, path in reversed(self._files()):
            try:
                return Snapshot.from_bytes(path.read_bytes()), problems
            except (CorruptSnapshot, OSError) as error:
                problems.append(f"{path.name}: {error}")
                self._log.warning("snapshot_skipped", file=path.name, error=str(error))
        return None, problems

    def _lease_epoch(self) -> int:
        try:
            lease = orjson.loads((self.folder / _LEASE).read_bytes())
            version, epoch = int(lease.get("version", _LEASE_VERSION)), int(lease["epoch"])
        except (FileNotFoundError, orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
            return 0
        if version > _LEASE_VERSION:
            raise NewerLease(
                f"{self.folder / _LEASE} has version {version}; this DySRA reads up to {_LEASE_VERSION}: upgrade "
                "DySRA, or move the session's folder away to begin anew"
            )
        return epoch

    def _files(self) -> list[tuple[int, int, Path]]:
        """(epoch, number, path), oldest first."""
        if not self.folder.is_dir():
            return []
        found = []
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)
