"""What stands while a fault is not settled is written down, and a fault that never settles is not held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.bench.faults import cluster_run, standstill
from infra.bench.faults.check import Differences
from infra.bench.faults.cluster_world import ClusterWorld
from infra.bench.faults.kinds import Kind


def test_a_process_of_the_cluster_tells_where_it_stands(tmp_path: Path) -> None:
    """Any Python process with these variables writes its stacks on a signal, and lives on."""
    told = standstill.traced(tmp_path)
    code = "import time\ndef here_it_stands():\n    time.sleep(30)\nhere_it_stands()"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **told})
    file = tmp_path / "stacks" / str(process.pid)
    try:
        deadline = time.monotonic() + 20.0
        while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
            if file.exists():
                os.kill(process.pid, signal.SIGUSR1)
            time.sleep(0.1)
        assert "here_it_stands" in file.read_text() and process.poll() is None
    finally:
        process.kill()
        process.wait(timeout=10)


class _World:
    """Settles after `takes_s`, or by its limit not at all."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.due = 0.0
        self.feed = SimpleNamespace(start=lambda: None)

    def due_in(self, seconds: float) -> None:
        self.due = time.monotonic() + min(seconds, 3_600.0)

    def settle(self) -> None:
        begun = time.monotonic()
        while time.monotonic() < begun + self.takes_s:
            if time.monotonic() > self.due:
                raise TimeoutError("ingest did not reach the end of the topic")
            time.sleep(0.01)

    def check(self) -> Differences:
        return Differences()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("takes_s", "held", "told"), [(0.0, True, False), (0.7, True, True), (60.0, False, True)]
)
def test_a_fault_that_is_not_made_good_in_time_is_not_held(
    takes_s: float, held: bool, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes longer than half of its limit has what stands told as well."""
    monkeypatch.setattr(cluster_run, "_BEFORE_S", -1.0)
    monkeypatch.setattr(cluster_run, "_AFTER_S", 0.0)
    monkeypatch.setattr(cluster_run.time, "sleep", _slept(time.sleep))
    seen: list[Path] = []
    monkeypatch.setattr(standstill, "tell", lambda world, target: seen.append(target))
    run = cluster_run.ClusterRun(tmp_path, 1, None, lambda line: None, settle_s=1.0)
    run._world = _World(takes_s)  # type: ignore[assignment]
    kind = Kind("pause-broker", "cluster", "", lambda world, draw: "")
    result = run.inject(3, kind)
    assert result.held is held and bool(seen) is told
    assert all(path.name == "standstill-00003-pause-broker" for path in seen)


def _slept(real: Callable[[float], None]) -> Callable[[float], None]:
    return lambda seconds: real(max(0.0, seconds))


def test_no_wait_of_a_cluster_outlasts_its_fault() -> None:
    """A wait whose own limit is longer ends with the fault's, and says how long it took."""
    world: Any = object.__new__(ClusterWorld)
    world._served, world.client = None, SimpleNamespace(forget_handles=lambda: None)
    ClusterWorld.due_in(world, 0.2)
    with pytest.raises(TimeoutError, match="a shard: not within 0 s"):
        ClusterWorld.wait(world, lambda: None, "a shard", limit_s=60.0)
