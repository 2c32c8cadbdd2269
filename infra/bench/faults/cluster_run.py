"""Injects the faults of a cluster, one after another, into one running ingest."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path

from infra.bench.faults.check import Differences
from infra.bench.faults.cluster_world import ClusterWorld
from infra.bench.faults.kinds import Kind
from infra.bench.faults.report import FaultResult
from infra.bench.faults.standstill import watched
from models.embed import EmbedderConfig, load_embedder
from pipeline.errors import DependencyUnreachable

_BEFORE_S, _AFTER_S = 0.6, 0.8
_TOLD_S = 90.0
"""A fault that is not settled by then, or after half of its limit, has what stands told."""
_STARTS = 3
"""A cluster that does not come up is started again so often: on a crowded machine Ray often does not."""


class ClusterRun:
    """One world for all faults; begun anew after a fault that was not held."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        disk: Path | None,
        say: Callable[[str], None],
        settle_s: float = 300.0,
    ) -> None:
        """`settle_s`: a fault that is not made good after so long counts as not held."""
        self._folder, self._seed, self._disk, self._say = folder, seed, disk, say
        self._settle_s = settle_s
        self._world: ClusterWorld | None = None
        self._made = 0

    def inject(self, number: int, kind: Kind) -> FaultResult:
        """One fault in flowing news, the way back, and the check of everything published so far."""
        draw = random.Random(f"{self._seed}/{number}/{kind.name}")
        problems: list[str] = []
        note, found = "", Differences()
        began = time.perf_counter()
        try:
            world = self._open()
            began = time.perf_counter()
            if kind.name in ("kill-replica", "kill-proxy", "pause-replica"):
                world.served.publish(1)  # deployed at the first such fault, which takes half a minute
            told = self._folder / f"standstill-{number:05d}-{kind.name}"
            world.feed.start()
            time.sleep(_BEFORE_S + draw.random())
            began = time.perf_counter()
            world.due_in(self._settle_s)
            with watched(world, told, min(_TOLD_S, self._settle_s / 2), self._say):
                note = kind.inject(world, draw)
                time.sleep(_AFTER_S)
                world.settle()
                recover_s = time.perf_counter() - began
                found = world.check()
            world.due_in(math.inf)
        except Exception as error:  # whatever it is, it is this fault's result, and the run goes on
            problems.append(f"{type(error).__name__}: {error}")
            recover_s = time.perf_counter() - began
        problems += found.notes
        if problems:
            self.close()
        return FaultResult.of(number, kind, note, recover_s, found, problems)

    def close(self) -> None:
        """End the world."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def _open(self) -> ClusterWorld:
        """The running world, or a new one; what kept it from starting is raised after the last try."""
        if self._world is None:
            # Made once a machine, which can take longer than a cluster has to start.
            load_embedder(EmbedderConfig(model="static"))
        for number in range(1, _STARTS + 1):
            if self._world is not None:
                break
            self._made += 1
            seed = int(time.time()) % 1_000_000 * 100 + self._made
            try:
                self._world = ClusterWorld(self._folder / f"cluster-{seed}", seed, self._disk, self._say)
            except Exception as error:  # of Ray, the broker or the job: each may fail on a crowded machine
                if number == _STARTS:
                    raise DependencyUnreachable(
                        f"no fault was injected: the cluster did not start {number} times, at last {error}"
                    ) from error
                self._say(f"  the cluster did not start, again: {str(error)[:300]}")
        assert self._world is not None
        return self._world
