"""One shard in a process of its own, fed by the harness as ingest would feed it, through any number of deaths."""

from __future__ import annotations

import random
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.bench.faults import shard_worker
from infra.bench.faults.check import Differences, compare
from infra.bench.faults.news import Published, Timeline
from infra.bench.faults.process import Failed, Worker
from pipeline.store import StoreConfig

_CONFIG = StoreConfig(
    seal_rows=96,
    min_seal_rows=48,
    merge_segments=3,
    max_segment_rows=4_096,
    lexical_commit_ms=20.0,
    wal_bytes=40_000,
)


class ShardWorld(Worker):
    """A shard, its process, and the row of records that it is given."""

    def __init__(self, folder: Path, seed: int, **config: Any) -> None:
        super().__init__()
        self.folder = folder
        self.seed = seed
        self.root = folder / "store"
        self.shard_folder = self.root / "shard-0000"
        self.config = replace(_CONFIG, path=self.root, **config)
        self.timeline = Timeline(seed)
        self.topic: list[Published] = []
        self.snapshots: list[Path] = []
        self._sums: dict[Path, dict[Path, int]] = {}  # of a snapshot's segments, as they were made
        self.epoch = 1
        self.num_faults = 0
        self._known = 0
        folder.mkdir(parents=True, exist_ok=True)

    def target(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """A process that opens the shard's folder."""
        return shard_worker.serve, (str(self.root), self.config)

    def start(self, armed: int = 0) -> None:
        """Start the shard's process and take over under a new epoch; Died or Failed where it does not open."""
        self.open(armed)
        self.epoch += 1
        self.call("append", [], self.epoch, None)
        self._known = self.call("offsets")

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
        self._sums[target] = {path: zlib.crc32(path.read_bytes()) for path in target.rglob("seg-*/*")}
        return target

    def lost_in(self, snapshot: Path) -> list[str]:
        """Tables of its segments of which neither the truth nor the mapped copy is what it was."""
        sums = self._sums[snapshot]
        changed = {path for path, made in sums.items() if zlib.crc32(path.read_bytes()) != made}
        truths = sorted(
            path for path in changed if path.suffix == ".parquet" and path.with_suffix(".arrow") in changed
        )
        return [f"{path.parent.name}/{path.stem}" for path in truths]

    def drop(self, snapshot: Path) -> None:
        """Remove a snapshot that is of no use any more."""
        self.snapshots.remove(snapshot)
        shutil.rmtree(snapshot)

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
