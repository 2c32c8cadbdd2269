"""One session in a process of its own, and its twin, which reads the same records and is never disturbed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.bench.faults.check import Differences
from infra.bench.faults.news import Published, Timeline
from infra.bench.faults.process import Worker


class SessionProcess(Worker):
    """A process that owns a session."""

    def __init__(self, folder: Path, model: Path, owner: str) -> None:
        super().__init__()
        self.folder, self._model, self._owner = folder, model, owner
        self._takeovers = 0
        self.offset = 0

    def target(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """A session's process; each is another owner."""
        from infra.bench.faults import session_worker

        self._takeovers += 1
        owner = f"{self._owner}-{self._takeovers}"
        return session_worker.serve, (str(self.folder), str(self._model), owner)

    def start(self, armed: int = 0) -> None:
        """Take the session over."""
        self.offset = self.open(armed)[0]

    def read(self, records: list[Published], *, save: bool, armed: int = 0) -> None:
        """Read what follows the session's offset."""
        self.offset = self.call("read", records, save, armed=armed)

    def files(self) -> list[Path]:
        """Its snapshots, oldest first."""
        return sorted(self.folder.glob("*.safetensors"))


class SessionWorld:
    """A session with its twin, and the records that both read."""

    def __init__(self, folder: Path, seed: int, model: Path) -> None:
        self.folder = folder
        self.session = SessionProcess(folder / "session", model, "owner")
        self._twin = SessionProcess(folder / "twin", model, "twin")
        self.timeline = Timeline(seed, num_streams=1, near=False)
        self.topic: list[Published] = []
        self.num_faults = 0

    @property
    def alive(self) -> bool:
        """Whether the session's process runs."""
        return self.session.alive

    def work(self, draw: random.Random) -> None:
        """Some records, read and now and then saved."""
        self.topic += self.timeline.draw(draw.randrange(3, 12))
        self.session.read(self.topic[self.session.offset :], save=True)

    def publish(self, count: int) -> list[Published]:
        """Records that the session has yet to read."""
        self.topic += self.timeline.draw(count)
        return self.topic[self.session.offset :]

    def recover(self) -> None:
        """Start the session's process where it is gone, and read to the end."""
        if not self.session.alive:
            self.session.start()
        self.session.read(self.topic[self.session.offset :], save=True)

    def check(self) -> Differences:
        """Whether the session has the bytes of its twin."""
        found = Differences()
        twin = self._twin
        if not twin.alive:
            twin.start()
        twin.read(self.topic[twin.offset :], save=False)
        ours, theirs = self.session.call("digest"), twin.call("digest")
        if ours != theirs:
            found.add("sessions_differing", f"digest, offset, tokens {ours}; of the twin {theirs}")
        return found

    def close(self) -> None:
        """End both processes."""
        self.session.close()
        self._twin.close()
