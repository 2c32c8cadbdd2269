"""A Ray cluster of two nodes on this machine, with ports and a folder of its own, for faults that need one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from infra.bench.faults.standstill import traced
from pipeline.errors import DependencyUnreachable

_ROOT = str(Path(__file__).resolve().parents[3])
_OBJECT_STORE_BYTES = 100 * 1024 * 1024
_START_S = 120.0


class RayCluster:
    """A head and a second node. `close` ends every process that belongs to its folder, by its id."""

    def __init__(self) -> None:
        # Ray's sockets need a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="dyf"))
        self._port = free_port()
        told = traced(self.folder)
        self.address = f"127.0.0.1:{self._port}"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "110",  # 30 by default: too little beside much else
            # Actors spread over both nodes, so that the loss of the second one hits some of them.
            "RAY_scheduler_spread_threshold": "0.0",
            **told,
            # What was unpacked on a host without network is found by this variable alone.
            "PYTHONPATH": os.pathsep.join(
                filter(None, (told["PYTHONPATH"], _ROOT, os.environ.get("PYTHONPATH")))
            ),
        }
        self._node: psutil.Process | None = None
        try:
            self._ray_start("--head", "--port", str(self._port), "--node-ip-address", "127.0.0.1")
            self.start_node()
        except BaseException:
            self.close()
            raise

    def start_node(self) -> None:
        """Start the second node."""
        before = {process.pid for process in self.processes("raylet")}
        self._ray_start("--address", self.address, "--node-ip-address", "127.0.0.2")
        self._node = next(process for process in self.processes("raylet") if process.pid not in before)

    def keep_node(self) -> None:
        """Start the second node again if its raylet has ended, as it does that was long given up for dead."""
        assert self._node is not None
        if not self._node.is_running() or self._node.status() == psutil.STATUS_ZOMBIE:
            self.start_node()

    @property
    def node_pid(self) -> int:
        """The raylet of the second node."""
        assert self._node is not None
        return int(self._node.pid)

    def close(self) -> None:
        """End all processes of this cluster."""
        own = self.processes()
        for number, wait_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for process in own:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
                    process.send_signal(number)
            _, own = psutil.wait_procs(own, timeout=wait_s)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ray_start(self, *arguments: str) -> None:
        # As a module: where Ray was unpacked and not installed there is no program of its name.
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--num-cpus", "8"]
        command += ["--object-store-memory", str(_OBJECT_STORE_BYTES), "--include-dashboard", "false"]
        if "--head" not in arguments:
            command = command[:-2]
        with tempfile.TemporaryFile() as said:
            ran = subprocess.run(
                command, env=self.env, stdout=said, stderr=subprocess.STDOUT, timeout=_START_S, check=False
            )
            if ran.returncode:
                said.seek(0)
                raise DependencyUnreachable(f"Ray does not start: {said.read().decode()[-1_500:]}")

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The living processes of this cluster, those with `name` in theirs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = " ".join(process.cmdline())
                ours = str(self.folder) in words or process.environ().get("RAY_TMPDIR") == str(self.folder)
                if ours and process.pid != os.getpid() and (not name or name in process.name()):
                    found.append(process)
        return found


def free_port() -> int:
    """A port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pause(pid: int, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
