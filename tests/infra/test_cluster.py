"""infra/cluster.py: an embedded Ray is started again where a busy machine was too slow for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from infra import cluster
from pipeline.errors import DependencyUnreachable

SLOW = "The current node timed out during startup. This could happen because …"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each start of Ray does in turn: an error to raise, a function to call first, or None; none is real."""
    planned: list[Any] = []

    def init(**options: Any) -> None:
        step = planned.pop(0)
        if callable(step):
            step = step()
        if step is not None:
            raise step

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "running_cluster", lambda: "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return planned


def test_a_start_that_was_too_slow_is_made_again(starts: list[Any]) -> None:
    """Up to three times, then it is told."""
    starts += [Exception(SLOW), Exception(SLOW), None]
    assert cluster.connect_ray() == "embedded" and starts == []
    starts += [Exception(SLOW)] * 3 + [None]
    with pytest.raises(DependencyUnreachable, match="timed out during startup"):
        cluster.connect_ray()
    assert starts == [None]


def test_another_error_is_told_at_once(starts: list[Any]) -> None:
    """What a second start cannot mend is not tried again."""
    starts += [ValueError("num_cpus is wrong"), None]
    with pytest.raises(DependencyUnreachable, match="num_cpus is wrong"):
        cluster.connect_ray()
    assert starts == [None]


def test_what_the_failed_start_left_is_ended_and_nothing_else(starts: list[Any]) -> None:
    """Ray's own processes end; one that another thread started meanwhile (the demo's broker) lives on."""
    made: list[subprocess.Popen[bytes]] = []

    def leave() -> Exception:
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        made.append(subprocess.Popen([*sleep, f"{Path(ray.__file__).parent}/raylet"]))
        made.append(subprocess.Popen(sleep))
        deadline = time.monotonic() + 30
        while any(len(psutil.Process(one.pid).cmdline()) < 3 for one in made) and time.monotonic() < deadline:
            time.sleep(0.05)  # between fork and exec a child shows our own command line
        return Exception(SLOW)

    starts += [leave, None]
    try:
        cluster.connect_ray()
        made[0].wait(timeout=10)  # it would sleep for a minute
        assert made[1].poll() is None
    finally:
        for one in made:
            one.kill()
            one.wait(timeout=10)
