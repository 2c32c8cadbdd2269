"""The sweep's pick: what was timed whole and is fastest goes into the table."""

from __future__ import annotations

from typing import Any

from infra.bench.gpu_tune import fastest_tiles


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
