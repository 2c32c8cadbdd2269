"""Ends this process by kill -9 between two steps of its work on files: writes, flushes, renames, removals."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

_AUDITED = frozenset(
    {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
)
_real = {name: getattr(os, name) for name in ("write", "fsync", "fdatasync")}


class Steps:
    """Counts steps; once armed, the step that is reached by `left` is not taken any more."""

    def __init__(self) -> None:
        self._left = 0
        self.taken = 0

    def install(self) -> None:
        """Watch this process from now on; cannot be undone."""
        sys.addaudithook(self._audit)
        os.write = self._write
        os.fsync = self._flush("fsync")
        os.fdatasync = self._flush("fdatasync")

    def arm(self, left: int) -> None:
        """End the process at the step `left` from now; 0 disarms."""
        self._left = left

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDITED:
            self._step()

    def _write(self, descriptor: int, data: Any) -> int:
        if self._left == 1:  # a torn write: half of it is there
            _real["write"](descriptor, memoryview(data)[: len(data) // 2])
        self._step()
        return int(_real["write"](descriptor, data))

    def _flush(self, name: str) -> Any:
        def flush(descriptor: Any) -> None:
            self._step()
            _real[name](descriptor)

        return flush

    def _step(self) -> None:
        self.taken += 1
        if self._left:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
