"""Fixtures for all tests: a cache of its own, seeds, the broker, a local Ray, the real data."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
if not Path("/dev/nvidiactl").exists():  # before anything imports Triton: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

pytest_plugins = ["tests.rays", "tests.cluster"] + (
    ["tests.broker"] if (Path(__file__).parent / "broker.py").exists() else []
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random numbers."""
    random.seed(0)
    import numpy as np

    np.random.seed(0)
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    """The folder of real news and questions; tests that need it are skipped where it is absent."""
    folder = os.environ.get("DYSRA_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DYSRA_DATA names no folder of real data")
    yield Path(folder)
