"""Tests share two cores: neither they nor what they start spins in threads that wait for each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from infra.training.side_by_side import run_side_by_side


@pytest.mark.parametrize("left_by_the_test_before", [3, 2])
def test_torch_has_the_threads_that_the_environment_says(left_by_the_test_before: int) -> None:
    """One, where the caller said nothing; what a test sets (an embedder takes every core) ends with it."""
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(left_by_the_test_before)


def test_runs_side_by_side_have_no_more(tmp_path: Path) -> None:
    """On a GPU host each would have two."""
    wanted = os.environ["OMP_NUM_THREADS"]
    told = f"import os; assert os.environ['OMP_NUM_THREADS'] == {wanted!r}"
    assert run_side_by_side({"one": ["-c", told]}, tmp_path, 60.0) == {"one": 0}
