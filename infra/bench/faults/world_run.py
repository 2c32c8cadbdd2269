"""Injects faults into shards and sessions, one after another, and says of each what became of them."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from infra.bench.faults.check import Differences
from infra.bench.faults.kinds import Kind
from infra.bench.faults.report import FaultResult
from infra.bench.faults.session_world import SessionWorld
from infra.bench.faults.shard_world import ShardWorld

FAULTS_PER_WORLD = 25
"""After so many a new store is begun, so that each stays small enough to be checked as a whole every time."""


class WorldRun:
    """Worlds under `folder`, one of a kind at a time. `tmpfs`: a small disk to fill; `model`: for sessions."""

    def __init__(self, folder: Path, seed: int, tmpfs: Path | None, model: Path | None) -> None:
        self._folder, self._tmpfs, self._model = folder, tmpfs, model
        self._seed = seed
        self._worlds: dict[str, ShardWorld | SessionWorld] = {}
        self._made = 0

    def inject(self, number: int, kind: Kind) -> FaultResult:
        """One fault, its recovery and the check of everything published so far."""
        draw = random.Random(f"{self._seed}/{number}/{kind.name}")
        world = self._world(kind.place)
        problems: list[str] = []
        note, found = "", Differences()
        began = time.perf_counter()
        try:
            if not world.alive:
                world.recover()
            world.work(draw)
            note = kind.inject(world, draw)
            began = time.perf_counter()
            world.recover()
            recover_s = time.perf_counter() - began
            found = world.check()
            world.num_faults += 1
        except Exception as error:  # whatever it is, it is this fault's result, and the run goes on
            problems.append(f"{type(error).__name__}: {error}")
            recover_s = time.perf_counter() - began
        problems += found.notes
        if problems:
            self._put_aside(world, number, kind)
        return FaultResult.of(number, kind, note, recover_s, found, problems)

    def close(self) -> None:
        """End every process and remove the stores."""
        for place in list(self._worlds):
            self._end(place)

    def _world(self, place: str) -> ShardWorld | SessionWorld:
        world = self._worlds.get(place)
        if world is not None and world.num_faults >= FAULTS_PER_WORLD:
            self._end(place)
            world = None
        if world is None:
            self._made += 1
            seed = self._seed * 1_000 + self._made
            folder = self._folder / "worlds"
            if place.endswith("tmpfs"):
                assert self._tmpfs is not None
                folder = self._tmpfs
            folder /= f"{place}-{self._made:04d}"
            if place.startswith("session"):
                assert self._model is not None
                world = SessionWorld(folder, seed, self._model)
                folder.mkdir(parents=True)
            else:
                world = ShardWorld(folder, seed)
            self._worlds[place] = world
        return world

    def _end(self, place: str) -> None:
        world = self._worlds.pop(place)
        world.close()
        shutil.rmtree(world.folder, ignore_errors=True)

    def _put_aside(self, world: ShardWorld | SessionWorld, number: int, kind: Kind) -> None:
        """A store that differs is kept for a look, and a new one begun."""
        self._worlds.pop(kind.place)
        world.close()
        target = self._folder / "differing" / f"{number:05d}-{kind.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(world.folder, target)
