"""infra/training/policy_ranks_page.py: ranks and trainings that came home become a result and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.training.policy_ranks_page import main


def test_a_run_s_orders_are_kept_with_how_they_were_trained(tmp_path: Path) -> None:
    """Every order of both splits, the sum's weights, a row a training; what did not come home is left out."""
    figures = {"n": 10} | {f"{what}@{depth}": 50.0 + depth for what in ("hit", "all") for depth in (1, 2, 4)}
    ranks = {split: {"nq": {"dense": figures, "pair_mpnet": figures}} for split in ("dev", "test")}
    home = tmp_path / "home"
    about = {
        "steps": 7,
        "steps_planned": 9,
        "loss": 0.5,
        "right": 0.6,
        "seconds": 3.0,
        "around": True,
        "x": 1,
    }
    for place, body in (
        ("pairs_mpnet/fold0", {"about": about}),
        ("pairs_both/whole", {"parts": ["mpnet", "e5_dual"], "weights": [0.75, 1.25]}),
    ):
        (home / place).mkdir(parents=True)
        (home / place / "config.json").write_text(json.dumps(body))
    with pytest.raises(FileNotFoundError):
        main(["--home", str(home), "--out", str(tmp_path / "kept"), "--commit", "abc"])
    (home / "ranks.json").write_text(json.dumps(ranks))
    preface = tmp_path / "preface"
    preface.write_text("What is weak.\n")
    options = ["--home", str(home), "--out", str(tmp_path / "kept"), "--commit", "abc"]
    main([*options, "--preface", str(preface)])
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["ranks"] == ranks
    assert kept["weights"] == {"mpnet": 0.75, "e5_dual": 1.25}
    assert kept["trained"] == {"mpnet fold0": {name: about[name] for name in about if name != "x"}}
    page = (tmp_path / "kept.md").read_text()
    for told in ("What is weak.", "| nq (10) | 51.0 / 52.0 / 54.0 |", "mpnet 0.750, e5_dual 1.250",
                 "| mpnet fold0 | 7 | 9 | 0.5 | 0.6 | 3.0 |  |  | True |"):  # fmt: skip
        assert told in page
