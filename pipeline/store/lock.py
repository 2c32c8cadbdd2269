"""One process at a time holds a shard."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pipeline.store.errors import StoreLocked


class FolderLock:
    """A lock on a folder that ends with the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock; raises StoreLocked that names the process which has it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise StoreLocked(
                f"{folder} is open in process {holder}; stop it first, or use another store folder"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; harmless if it was given back before."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
