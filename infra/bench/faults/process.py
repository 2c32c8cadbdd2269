"""A worker process that answers commands through a pipe, and may die at any moment."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_LIMIT_S = 300.0  # a crowded machine is no fault that was not held


class Died(Exception):
    """The process ended while it worked."""


class Failed(Exception):
    """The process refused a command; `name` is the type of its error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class Worker(ABC):
    """The owner's side of one process at a time; every wait has a limit."""

    limit_s = _LIMIT_S
    """Seconds that a reply may take; a run of faults sets it for all."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    @abstractmethod
    def target(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """What a new process runs: a function and its arguments; the pipe and the armed step are added."""

    @property
    def pid(self) -> int:
        """The process at hand."""
        assert self._process is not None
        return int(self._process.pid)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.is_alive()

    def open(self, armed: int = 0) -> list[Any]:
        """Start a process; what it says once it is open. Died or Failed where it does not get so far."""
        self._pipe, self._process = self.spawn(armed)
        try:
            kind, *facts = self.receive(self._pipe)
        except Died:
            self._reap()
            raise
        if kind == "refused":
            self._reap()
            raise Failed(*facts)
        return list(facts)

    def spawn(self, armed: int = 0) -> tuple[Connection, Any]:
        """A process beside the one at hand; its pipe, and itself."""
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        function, arguments = self.target()
        process = context.Process(target=function, args=(*arguments, theirs, armed), daemon=True)
        process.start()
        theirs.close()
        return ours, process

    def call(self, command: str, *arguments: Any, armed: int = 0) -> Any:
        """The reply to a command; Died where the process ends instead, Failed where it refuses."""
        self.send(command, *arguments, armed=armed)
        return self.reply()

    def send(self, command: str, *arguments: Any, armed: int = 0) -> None:
        """Give a command without waiting for its reply."""
        assert self._pipe is not None
        try:
            self._pipe.send((command, armed, arguments))
        except (BrokenPipeError, ConnectionResetError):
            self._reap()
            raise Died(command) from None

    def reply(self) -> Any:
        """The reply to the oldest command that has none yet."""
        assert self._pipe is not None
        try:
            kind, *facts = self.receive(self._pipe)
        except Died:
            self._reap()
            raise
        if kind == "failed":
            raise Failed(*facts)
        return facts[0]

    def receive(self, pipe: Connection) -> Any:
        """The next message of a pipe."""
        if not pipe.poll(self.limit_s):
            raise TimeoutError(f"a worker has not answered for {self.limit_s:.0f} s")
        try:
            return pipe.recv()
        except (EOFError, ConnectionResetError):
            raise Died("a worker") from None

    def detach(self) -> tuple[Connection, Any]:
        """Let the process at hand live on without us; its pipe, and itself."""
        assert self._pipe is not None
        held = self._pipe, self._process
        self._pipe = self._process = None
        return held

    def kill(self) -> None:
        """kill -9, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def close(self) -> None:
        """End the process, however it stands."""
        if self.alive:
            with contextlib.suppress(Died, Failed, TimeoutError):
                self.call("close")
        if self._process is not None:
            self.kill()

    def _reap(self) -> None:
        if self._process is not None:
            self._process.join(timeout=10.0)
        if self._pipe is not None:
            self._pipe.close()


def stop_process(pid: int) -> None:
    """SIGSTOP; returns once the kernel has stopped the process."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 5.0
    stat = Path(f"/proc/{pid}/stat")
    while stat.read_text().rsplit(")", 1)[1].split()[0] != "T" and time.monotonic() < deadline:
        time.sleep(0.002)
