"""`dysra ingest` as an operator's supervisor keeps it: started again whenever it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from pipeline.errors import DependencyUnreachable

_AGAIN_S = 0.5


class Supervised:
    """A command that is started again after each end until `close`; its output goes to a file."""

    def __init__(self, arguments: list[str], env: dict[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", "infra.cli", *arguments]
        self._env, self._log = env, log
        self._closing = threading.Event()
        self.starts = 0
        self.ends: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="supervisor", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process that runs now."""
        if self._process is None:
            raise DependencyUnreachable("the command has not been started yet")
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop it for good: SIGTERM, then kill -9."""
        self._closing.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=20.0)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(timeout=10.0)

    def _keep(self) -> None:
        while not self._closing.is_set():
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self.starts += 1
            self.ends.append(self._process.wait())
            self._closing.wait(_AGAIN_S)
