"""infra/training/policy_told.py: what was chosen holds the oracle's choice, counted from points alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.training.policy_points import Point, save_points
from infra.training.policy_told import main, told_shares
from models.retriever.selecting import Chosen


def point(name: str, budget: int, *picks: tuple[int, ...], bias: float = 0.0, split: str = "test") -> Point:
    return Point(name, split, "toy", budget, bias, tuple(Chosen(each, 10 * len(each)) for each in picks))


POINTS = [
    point("oracle", 256, (3,), (), (1, 2)),
    point("router-0", 128, (3, 1), (0,), (0, 4)),
    point("router-1", 128, (1, 3), (0,), (2,)),
    point("supervised-0", 128, (3,), (0,), (2,), bias=-12.0),
    point("supervised-0", 128, (), (), ()),
    point("hybrid", 128, (0,), (0,), (0,), split="dev"),
]


def test_questions_without_an_oracle_s_choice_are_left_out(tmp_path: Path) -> None:
    """Two of three count; each seed stands alone, the mean has its name; the largest bias against STOP is shown."""
    save_points(POINTS[:3], tmp_path / "a.points.json")
    save_points(POINTS[3:], tmp_path / "b.points.json")
    main(
        [
            "--found",
            str(tmp_path),
            "--bench",
            str(tmp_path / "page"),
            "--names",
            "router",
            "supervised",
            "hybrid",
        ]
    )
    kept = json.loads((tmp_path / "page.json").read_text())
    cells = {name: each["128"] for name, each in kept["sets"]["toy"].items()}
    assert {name: (cell["n"], cell["told"], cell["first"]) for name, cell in cells.items()} == {
        "router-0": (2, 50.0, 50.0), "router-1": (2, 100.0, 50.0), "supervised-0": (2, 100.0, 100.0),
    }  # fmt: skip
    assert kept["ratios"] == {
        "told_router_toy": 75.0, "told_router_seeds_toy": [50.0, 100.0], "told_supervised_toy": 100.0,
    }  # fmt: skip
    assert "| router-1 | 50.0 | 100.0 (13) |" in (tmp_path / "page.md").read_text()


def test_a_folder_without_the_oracle_is_refused() -> None:
    """Nothing else says what tells."""
    with pytest.raises(ValueError, match="toy: no points of oracle"):
        told_shares(POINTS[1:], ["router"])
