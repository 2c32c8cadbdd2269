"""Tests share two cores and a process: they spin in no threads, and leave nothing to the test behind them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from infra.training.side_by_side import run_side_by_side


@pytest.mark.parametrize("left_by_the_test_before", [3, 2])
def test_torch_has_the_threads_that_the_environment_says(left_by_the_test_before: int) -> None:
    """One, where the caller said nothing; what a test sets (an embedder takes every core) ends with it."""
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(left_by_the_test_before)


@pytest.mark.parametrize("turn", ["first", "then"])
def test_nothing_that_a_test_sets_for_the_process_is_left(turn: str, tmp_path: Path) -> None:
    """Folder, handlers, import path, kind and rounding of numbers, gradients."""
    mine = lambda number, frame: None  # noqa: E731
    assert not Path.cwd().is_relative_to(tmp_path.parent)
    assert getattr(signal.getsignal(signal.SIGTERM), "__module__", "") != __name__
    assert not any(each.startswith(str(tmp_path.parent)) for each in sys.path)
    assert torch.get_default_dtype() == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    assert torch.is_grad_enabled()
    os.chdir(tmp_path)
    signal.signal(signal.SIGTERM, mine)
    sys.path.insert(0, str(tmp_path / "site"))
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    torch.set_grad_enabled(False)


def test_runs_side_by_side_have_no_more(tmp_path: Path) -> None:
    """On a GPU host each would have two."""
    wanted = os.environ["OMP_NUM_THREADS"]
    told = f"import os; assert os.environ['OMP_NUM_THREADS'] == {wanted!r}"
    assert run_side_by_side({"one": ["-c", told]}, tmp_path, 60.0) == {"one": 0}
