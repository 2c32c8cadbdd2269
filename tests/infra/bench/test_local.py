"""What the benches of the running system start is gone afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

_BENCH = """
import time
from infra.bench.local import local

with local(with_ray=False) as here:
    print(here.folder, here.broker_pid, flush=True)
    time.sleep(120)
"""


@pytest.mark.broker
def test_sigterm_ends_a_bench_with_its_broker_and_its_folder() -> None:
    """A limit from outside (`timeout`, a job's end) leaves no broker that nobody looks for."""
    bench = subprocess.Popen([sys.executable, "-c", _BENCH], stdout=subprocess.PIPE, text=True)
    try:
        assert bench.stdout is not None
        folder, pid = bench.stdout.readline().split()
        assert Path(folder).is_dir() and psutil.pid_exists(int(pid))
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(60) != 0
        assert not Path(folder).exists()
        assert not psutil.pid_exists(int(pid))
    finally:
        bench.kill()
        bench.wait(10)
