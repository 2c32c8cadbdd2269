"""Fixtures for all tests: a cache of its own, seeds, the broker, a local Ray, the real data."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of torch spin for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 keeps actors waiting for the other worker's tests
if not Path("/dev/nvidiactl").exists():  # before anything imports Triton: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

with contextlib.suppress(ImportError):  # absent on a lent GPU host
    from hypothesis import settings

    settings.register_profile("dysra", deadline=None)  # of 200 ms: a busy machine is no fault of the code
    settings.load_profile("dysra")

pytest_plugins = [
    "tests.rays",
    "tests.cluster",
    "tests.mlflow_tables",
    "tests.interpreted",
    "tests.compiled",
] + (["tests.broker"] if (Path(__file__).parent / "broker.py").exists() else [])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`: a file's tests stay together, and all that share the local Ray are one file."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope = str(super()._split_scope(nodeid))
            return "local_ray" if _starts_ray(scope) else scope

    return OneRay(config, log)


@cache
def _starts_ray(scope: str) -> bool:
    return "local_ray" in (Path(__file__).parents[1] / scope).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random numbers."""
    random.seed(0)
    import numpy as np

    np.random.seed(0)
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread_a_process() -> None:
    """Whatever the test before set (an embedder takes every core): torch and what a test starts have these."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if (module := sys.modules.get("infra.training.side_by_side")) is not None:
        module.ENVIRONMENT["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """What a test sets for the whole process ends with it: which test comes next is the scheduler's choice."""
    import torch

    path, folder = set(sys.path), os.getcwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    yield
    os.chdir(folder)
    made = tempfile.gettempdir()  # packages that are imported late add folders of their own, and need them
    sys.path[:] = [each for each in sys.path if each in path or not each.startswith(made)]
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    """The folder of real news and questions; tests that need it are skipped where it is absent."""
    folder = os.environ.get("DYSRA_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DYSRA_DATA names no folder of real data")
    yield Path(folder)
