"""A Ray cluster of its own for tests: `ray start --head` on free ports with token authentication."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    """A running head: where jobs are submitted, its folder and the environment that reaches it."""

    dashboard: str
    folder: Path
    env: dict[str, str]

    def run(self, *command: str, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the virtual environment as an operator of this cluster would."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=ROOT,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@pytest.fixture(scope="module")  # its processes are at work as long as it lives
def cluster() -> Iterator[Cluster]:
    """A head node with RAY_AUTH_MODE=token; every process it started is ended afterwards, by its id."""
    # Ray's sockets need a short path, which pytest's own folders do not have.
    folder = Path(tempfile.mkdtemp(prefix="dyr"))
    gcs, dashboard, client, agent = _free_ports(4)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "20",
        "PATH": f"{BIN}{os.pathsep}{env.get('PATH', '')}",
    }
    before = {process.pid for process in psutil.process_iter()}
    made = Cluster(f"http://127.0.0.1:{dashboard}", folder, env)
    started = made.run(
        *("ray", "start", "--head", "--node-ip-address", "127.0.0.1", "--port", str(gcs)),
        *("--dashboard-port", str(dashboard), "--include-dashboard", "true", "--num-cpus", "8"),
        *("--ray-client-server-port", str(client), "--object-store-memory", str(150 * 1024 * 1024)),
        # The agent's default port is taken wherever another Ray runs: then no job could ever be submitted.
        *("--dashboard-agent-listen-port", str(agent)),
        timeout=120,
    )
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        made.env["RAY_ADDRESS"] = made.dashboard
        _wait_for_agent(agent)
        yield made
    finally:
        _end(folder, before)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_agent(port: int) -> None:
    """The head answers before the agent that starts jobs does; once it listens, a submission waits for the rest."""
    deadline = time.monotonic() + 120
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/api/local_raylet_healthz", timeout=10)
            return  # whatever it says of the token
        except httpx.HTTPError as error:
            assert time.monotonic() < deadline, error
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def _end(folder: Path, before: set[int]) -> None:
    """End what the cluster started: processes of its session folder that did not run before."""
    own: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            named = str(folder) in " ".join(process.cmdline())
            if named or process.environ().get("RAY_TMPDIR") == str(folder):
                # Agents overwrite both with a title of their own: they are known by who started them.
                own |= {process, *process.children(recursive=True)}
    own = {process for process in own if process.pid not in before and process.pid != os.getpid()}
    # At once: nothing of theirs is kept, and what waits for the others to end would wait its whole time.
    for process in own:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(list(own), timeout=10)
