"""infra/training/policy_halves_dev.py: dev questions by halves where a run's test points were never read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.training import policy_carry, policy_halves_dev, policy_material
from infra.training.policy_halves_dev import Read, by_halves, chosen_on, over, places_of, result_of
from infra.training.policy_halves_dev_page import page
from infra.training.policy_points import Point
from models.retriever.selecting import Chosen

COUNT = 12
PLACES = {("dev", "nq"): list(range(COUNT)), ("test", "nq"): list(range(COUNT, 2 * COUNT))}
F1 = {"bm25": 0.2, "random": 0.1, "dense": 0.1, "hybrid": 0.1, "supervised-0": 0.4, "supervised-1": 0.5,
      "plain_ppo-1": 0.7, "pair_both": 0.5, "pair_both_rewarded": 0.6}  # fmt: skip
PICK = {name: at for at, name in enumerate(F1)}


def points(lost: str = "") -> tuple[list[Point], dict[tuple[int, int], float]]:
    """Every method picks a candidate of its own, so that each is read apart; bm25 reads twice as much."""
    made, known = [], {}
    for split in ("dev", "test"):
        for name, f1 in F1.items():
            tokens = 100 if name in ("bm25", "random", "dense", "hybrid") else 50
            chosen = tuple(Chosen((PICK[name],), tokens) for _ in range(COUNT))
            made.append(Point(name, split, "nq", 64, -4.0 if "-" in name else 0.0, chosen))
            for row in PLACES[split, "nq"]:
                if not (split == "test" and (name == lost or "-" in name)):
                    known[row, 1 << PICK[name]] = f1
    return made, known


def test_points_that_were_not_read_whole_are_left_out() -> None:
    """Policies on test questions; and what a row does not hold is an error, not a guess."""
    made, known = points()
    dev, test = (Read(made, PLACES, known, split) for split in ("dev", "test"))
    assert set(dev.names) == set(F1)
    assert "plain_ppo-1" not in test.names and "pair_both" in test.names
    assert "pair_both" not in Read(*((points("pair_both")[0], PLACES, points("pair_both")[1])), "test").names
    with pytest.raises(ValueError, match="given 12 choices of 11"):
        Read(made, {("dev", "nq"): list(range(11))}, known, "dev")


def test_a_point_is_told_by_the_half_that_did_not_choose_it() -> None:
    """One that is good on one half alone is chosen there, and told on the other, where it is bad."""
    made, known = points()
    lucky = tuple(Chosen((20,), 50) for _ in range(COUNT))
    made.append(Point("supervised-0", "dev", "nq", 96, -4.0, lucky))
    half = np.arange(COUNT) < COUNT // 2
    for row in range(COUNT):
        known[row, 1 << 20] = 1.0 if half[row] else 0.0
    dev = Read(made, PLACES, known, "dev")
    assert chosen_on(dev, "supervised-0", "nq", half) == ("supervised-0", "nq", 96, -4.0)
    assert chosen_on(dev, "supervised-0", "nq", ~half) == ("supervised-0", "nq", 64, -4.0)
    found = by_halves(dev, draws=30)
    each, _ = found["supervised"]["nq"]["supervised-0"]
    assert 0.2 < float(each.mean()) < 0.45, "no better than what it has where it is honest"
    dear = [Point("plain_ppo-0", "dev", "nq", 256, -4.0, tuple(Chosen((3,), 500) for _ in range(COUNT)))]
    assert "plain_ppo-0" not in by_halves(Read([*made, *dear], PLACES, known, "dev"), 2)["plain_ppo"]["nq"]


def test_seeds_are_held_against_their_own_number() -> None:
    """Seed 1 of one kind against seed 1 of the other, though the other has a seed 0 too."""
    made, known = points()
    found = by_halves(Read(made, PLACES, known, "dev"), draws=3)
    told = over(found, "plain_ppo", "supervised")
    assert told is not None and told["gain"] == 20.0 and told["seeds"] == [20.0]
    assert over(found, "reinforce", "supervised") is None


def test_the_page_has_policies_on_dev_and_orders_on_test() -> None:
    """Orders with their gains at each budget and all together, and the named ratio."""
    made, known = points()
    told = result_of(*(Read(made, PLACES, known, split) for split in ("dev", "test")))
    assert told["orders_over"]["pair_both_rewarded over pair_both"]["all"]["gain"] == 10.0
    assert told["ratios"]["plain_ppo_over_supervised_f1_dev_halves"] == 20.0
    assert told["orders"]["pair_both"]["nq"]["64"] == [50.0, 50.0]
    (fixed,) = [each for each in told["at_fixed_points"] if each["kind"] == "plain_ppo"]
    assert (fixed["gain"], fixed["budget"], fixed["stop_bias"], fixed["tokens"]) == (
        20.0,
        64,
        -4.0,
        [50.0, 50.0],
    )
    text = page(
        {"device": "a CPU", "commit": "abc", "result": told, "arms": {}, "ranks": {}}, "What is weak."
    )
    assert "| plain_ppo over supervised | 20.0 (20.0 to 20.0) | 20.0 | 20.0 |" in text
    assert "What is weak." in text


def test_rows_that_are_not_those_of_the_run_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other data than the run's would give every reading to another question."""
    monkeypatch.setattr(policy_carry, "SETS", ())
    monkeypatch.setattr(policy_halves_dev, "read_passages", lambda path: {})
    monkeypatch.setattr(policy_halves_dev, "assign_splits", lambda every, texts: [])
    monkeypatch.setattr(policy_material, "picked", lambda every, config: [])
    assert places_of(tmp_path, {"dev": {"newswire": {"shipped": 2}}}) == {("dev", "newswire"): [0, 1]}
    with pytest.raises(ValueError, match="what is carried"):
        places_of(tmp_path, {"dev": {"newswire": {"shipped": 2}, "nq": {"fold0": 1}}})
