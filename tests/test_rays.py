"""What the fixtures of Ray start is gone as soon as no test needs it: idle it keeps a core from the other tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from tests import cluster, rays


def test_ray_ends_behind_the_last_file_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before a test that needs it, nor before the fixtures of the last one's file have ended."""
    ended: list[str] = []
    config = SimpleNamespace(stash=pytest.Stash())

    def item(name: str, *fixtures: str) -> Any:
        return SimpleNamespace(config=config, name=name, fixturenames=fixtures, path=name.split(":")[0])

    every = [item("a:1", "local_ray"), item("b:1"), item("c:1", "local_ray"), item("c:2"), item("d:1")]
    rays.pytest_collection_finish(SimpleNamespace(config=config, items=every))  # type: ignore[arg-type]
    for at, each in enumerate(every):
        monkeypatch.setattr(ray, "shutdown", lambda each=each: ended.append(each.name))
        rays.pytest_runtest_teardown(each, every[at + 1] if at + 1 < len(every) else None)
    assert ended == ["c:2"]


def test_what_a_cluster_started_is_ended_whatever_it_calls_itself(tmp_path: Path) -> None:
    """Agents overwrite their title and their environment; nothing tells then which cluster they are of."""
    agent = [sys.executable, "-c", "import time; time.sleep(60)"]
    raylet = f"import subprocess, sys, time; print(subprocess.Popen({agent}).pid, flush=True); time.sleep(60)"
    before = {process.pid for process in psutil.process_iter()}
    ours = [sys.executable, "-c", raylet, str(tmp_path)]
    with subprocess.Popen(ours, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            found = psutil.Process(int(started.stdout.readline()))
            assert str(tmp_path) not in " ".join(found.cmdline())
            cluster._end(tmp_path, before)
            assert not psutil.pid_exists(started.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                assert found.status() == psutil.STATUS_ZOMBIE
        finally:
            started.kill()
