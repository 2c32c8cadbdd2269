"""The sweep's pick: what was timed whole and is fastest goes into the table."""

from __future__ import annotations

from typing import Any

from infra.bench.gpu_tune import fastest_step, fastest_tiles


def row(tiles: list[Any], chosen: int, ms: float) -> dict[str, Any]:
    """One timed choice of tiles."""
    return {"tiles": tiles, "chosen": chosen, "ms": ms}


def test_least_total_over_all_k_wins() -> None:
    """A choice that is best at one k alone does not win, nor one whose sweep ended early or that was wrong."""
    steady, lopsided, cut = [64, 1, 4, 2, True, False], [128, 1, 4, 2, True, False], [64, 1, 4, 3, True, True]
    rows = {
        "tune-forward_128": [
            row(steady, 8, 0.16), row(steady, 32, 0.48), row(lopsided, 8, 0.12), row(lopsided, 32, 0.90),
            row(cut, 8, 0.08), {"tiles": [64, 1, 8, 2, True, True], "error": "differs by 0.3"},
        ],
        "tune-step_131072_1": [{"picking": True, "step_ms": 0.01}],
        "tune-dq_64": [{"tiles": steady, "error": "out of resources"}],
    }  # fmt: skip
    assert fastest_tiles(rows) == {("forward", 128): steady}


def step(tokens: int, picking: bool, early: bool, single: bool, ms: float) -> dict[str, Any]:
    """One timed way of a step of one row."""
    return {
        "tokens": tokens, "batch": 1, "scans": None, "block_n": None, "num_warps": 4, "picking": picking,
        "early": early, "single": single, "step_ms": ms,
    }  # fmt: skip


def test_picking_is_for_the_lengths_where_it_won() -> None:
    """Apart wins at 128k tokens, picking at 1M; waiting for the search costs where candidates are picked."""
    rows = {
        "tune-step_131072_1": [
            step(131_072, False, False, False, 0.020), step(131_072, False, False, True, 0.015),
            step(131_072, True, False, True, 0.018), step(131_072, True, True, True, 0.016),
        ],
        "tune-step_1048576_1": [
            step(1_048_576, False, False, False, 0.031), step(1_048_576, False, False, True, 0.029),
            step(1_048_576, True, False, True, 0.022), step(1_048_576, True, True, True, 0.019),
        ],
    }  # fmt: skip
    assert fastest_step(rows) == {"EARLY": True, "SINGLE": True, "PICKED_LANDMARKS": 2_048}
    assert fastest_step({"tune-dq_64": []}) == {}
