"""A pytest plugin: in a fresh clone the workers share out what has to be compiled, where each would compile it all.

Rewriting the asserts of 320 files and compiling 700 modules is a fifth of a worker's way to its first test. Both go
through them in one order and at one time: each would find nothing that the other has done.
"""

from __future__ import annotations

import compileall
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("actors", "infra", "models", "pipeline", "rl", "tests")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile this worker's share; in one process nothing is gained by it."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or sys.dont_write_bytecode:
        return
    number, count = int(worker["workerid"].removeprefix("gw")), int(worker["workercount"])
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    for path in files[number::count]:
        if path.name.startswith("test_"):
            rewrite(path, session.config)
        else:
            compileall.compile_file(path, quiet=2)


def rewrite(path: Path, config: pytest.Config) -> Path:
    """Write a test module's bytecode as pytest's own import hook does (pytest 9), where it is missing or old."""
    from _pytest.assertion import rewrite as hook

    folder = hook.get_cache_dir(path)
    compiled = folder / f"{path.stem}{hook.PYC_TAIL}"
    if hook._read_pyc(path, compiled) is None and hook.try_makedirs(folder):
        told, code = hook._rewrite_test(path, config)
        hook._write_pyc(config.stash[hook.assertstate_key], code, told, compiled)
    return compiled
