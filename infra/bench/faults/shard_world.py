"""One shard in a process of its own, fed by the harness as ingest would feed it, through any number of deaths."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from infra.bench.faults import shard_worker
from infra.bench.faults.check import Differences, compare
from infra.bench.faults.news import Published, Timeline
from pipeline.store import StoreConfig

_LIMIT_S = 60.0
_CONFIG = StoreConfig(
    seal_rows=96,
    min_seal_rows=48,
    merge_segments=3,
    max_segment_rows=4_096,
    lexical_commit_ms=20.0,
    wal_bytes=40_000,
)


class Died(Exception):
    """The shard's process ended while it worked."""


class Failed(Exception):
    """The shard refused a command; `name` is the type of its error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class ShardWorld:
    """A shard, its process, and the row of records that it is given."""

    def __init__(self, folder: Path, seed: int, **config: Any) -> None:
        self.folder = folder
        self.seed = seed
        self.root = folder / "store"
        self.shard_folder = self.root / "shard-0000"
        self.config = replace(_CONFIG, path=self.root, **config)
        self.timeline = Timeline(seed)
        self.topic: list[Published] = []
        self.snapshots: list[Path] = []
        self.epoch = 1
        self.num_faults = 0
        self._known = 0
        self._process: Any = None
        self._pipe: Connection | None = None
        folder.mkdir(parents=True, exist_ok=True)

    # -- the process

    @property
    def pid(self) -> int:
        """The shard's process."""
        assert self._process is not None
        return int(self._process.pid)

    @property
    def alive(self) -> bool:
        """Whether the shard's process runs."""
        return self._process is not None and self._process.is_alive()

    def start(self, armed: int = 0) -> None:
        """Start the shard's process and take over under a new epoch; Died or Failed where it does not open."""
        self._pipe, self._process = self.spawn(armed)
        try:
            kind, *facts = self._receive(self._pipe)
        except Died:
            self._reap()
            raise
        if kind == "refused":
            self._reap()
            raise Failed(*facts)
        self.epoch += 1
        self.call("append", [], self.epoch, None)
        self._known = self.call("offsets")

    def spawn(self, armed: int = 0) -> tuple[Connection, Any]:
        """A process that opens the shard's folder; its pipe, and itself."""
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=shard_worker.serve, args=(str(self.root), self.config, theirs, armed), daemon=True
        )
        process.start()
        theirs.close()
        return ours, process

    def call(self, command: str, *arguments: Any, armed: int = 0) -> Any:
        """The reply to a command; Died where the process ends instead, Failed where the shard refuses."""
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
            kind, *facts = self._receive(self._pipe)
        except Died:
            self._reap()
            raise
        if kind == "failed":
            raise Failed(*facts)
        return facts[0]

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
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
            self.kill()

    def _receive(self, pipe: Connection) -> Any:
        if not pipe.poll(_LIMIT_S):
            raise TimeoutError(f"the shard's process {self.pid} has not answered for {_LIMIT_S:.0f} s")
        try:
            return pipe.recv()
        except (EOFError, ConnectionResetError):
            raise Died(f"process {self.pid}") from None

    def _reap(self) -> None:
        if self._process is not None:
            self._process.join(timeout=10.0)
        if self._pipe is not None:
            self._pipe.close()

    # -- what ingest does

    def publish(self, count: int) -> None:
        """Put records on the topic."""
        self.topic += self.timeline.draw(count)

    def append_next(self, count: int, armed: int = 0) -> bool:
        """Append the next records that the shard lacks; False if there are none."""
        batch = self.topic[self._known : self._known + count]
        if not batch:
            return False
        self.call("append", batch, self.epoch, self._known, armed=armed)
        self._known = batch[-1].number + 1
        return True

    @property
    def known(self) -> int:
        """The offset up to which the shard has acknowledged."""
        return self._known

    def resume(self) -> None:
        """Ask the living shard how far it is, as an ingester does that takes over."""
        self._known = self.call("offsets")

    def send_next(self, count: int) -> None:
        """As `append_next`, without waiting: whether it was done is seen after the next start."""
        self.send("append", self.topic[self._known : self._known + count], self.epoch, self._known)

    def work(self, draw: random.Random) -> None:
        """A stretch of ordinary life: records, and now and then what maintenance does."""
        if draw.random() < 0.08:
            self.timeline.move_clock()
        self.publish(draw.randrange(4, 24))
        while self.append_next(draw.randrange(1, 9)):
            if draw.random() < 0.12:
                self.call(draw.choice(("seal", "seal", "compact")))
        if draw.random() < 0.05:
            self.snapshot()

    def snapshot(self) -> Path:
        """Take a snapshot beside the store; the last two are kept."""
        target = self.folder / f"snapshot-{self.num_faults:06d}-{len(self.topic)}"
        self.call("snapshot", str(target))
        self.snapshots = [*self.snapshots, target][-2:]
        return target

    def recover(self) -> None:
        """What a supervisor and ingest do: start the process if it is gone, and go on from the shard's offset."""
        if not self.alive:
            self.start()
        try:
            while self.append_next(16):
                pass
        except Failed as error:
            if error.name not in ("OffsetGap", "StoreFailed"):
                raise
            self.kill()
            self.start()
            while self.append_next(16):
                pass
        self.call("maintain", int(time.time() * 1_000))

    def check(self) -> Differences:
        """The differences between the store and the topic."""
        dump = self.call("dump", list(self.timeline.expected.articles))
        return compare(self.timeline.expected, dump)

    def wait_stopped(self) -> None:
        """Return once the kernel has stopped the process."""
        deadline = time.monotonic() + 5.0
        stat = Path(f"/proc/{self.pid}/stat")
        while stat.read_text().rsplit(")", 1)[1].split()[0] != "T" and time.monotonic() < deadline:
            time.sleep(0.002)
