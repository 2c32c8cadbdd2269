"""The bench of the sub-quadratic backbone: exact costs by length, and the fit over them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infra.bench import page, subq
from models.subq import SubqConfig


def test_bench_tells_linear_from_logarithmic_search() -> None:
    """A flat search costs the square of the length, the tree n log n; every row says recall and bytes."""
    small = replace(
        SubqConfig(), width=64, head_dim=16, feed_forward=64, window=32, vocabulary=300, encoder_heads=4
    )
    result = subq.run(
        tokens=(65_536, 262_144, 1_048_576), kinds=("flat", "tree"), device="cpu", dim=32, model=small
    )
    assert len(result["rows"]) == 6
    assert result["ratios"]["flat_exponent_of_scored"] > 1.9
    assert result["ratios"]["tree_exponent_of_scored"] < 1.35
    assert result["ratios"]["tree_misfit_n_log_n"] < result["ratios"]["tree_misfit_n_squared"]
    assert all(row["recall"] > 0.85 for row in result["rows"])
    for row in result["rows"]:
        assert row["floor_ms"] > 0 and 0 < row["search_low_ms"] <= row["search_ms"] <= row["search_high_ms"]
        assert row["torch_ms"] > 0
    last = {row["index"]: row for row in result["rows"]}["tree"]
    found = result["ratios"]["tree_search_over_floor"], result["ratios"]["tree_search_speedup_over_torch"]
    assert found == (
        pytest.approx(last["search_ms"] / last["floor_ms"], abs=1e-3),
        pytest.approx(last["torch_ms"] / last["search_ms"], abs=1e-3),
    )
    assert "tree_exponent_of_time" in page(result)


def test_misfit_is_zero_for_the_right_shape() -> None:
    """Costs that are exactly a·n·log n fit, those of n² do not."""
    lengths = np.array([1e4, 1e5, 1e6])
    assert subq.misfit(lengths * np.log2(lengths), 7 * lengths * np.log2(lengths)) == pytest.approx(0)
    assert subq.misfit(lengths**2, lengths * np.log2(lengths)) > 1
