"""infra/training/cotrain_between.py: ways of co-training against each other on the same questions."""

from __future__ import annotations

import numpy as np

from infra.training.cotrain_between import MEAN, between, table


def judged(run: str, seed: int, scores: dict[str, list[float]]) -> list[dict[str, object]]:
    """The rows of a run that was judged on sets, as OUT/cotrain.jsonl has them."""
    return [
        {"run": run, "seed": seed, "set": name, "point": point, "scores": some}
        for name, some in scores.items() for point in ("policy_128", "hybrid_128")
    ]  # fmt: skip


def test_a_small_gain_on_every_question_is_told_though_questions_differ_widely() -> None:
    """Paired: joint is .1 above the policy on each of 40 questions, whose F1 are 0 or .9."""
    hard = np.tile([0.0, 0.9], 20)
    rows = [
        *judged("policy", 0, {"a": list(hard), "b": list(hard)}),
        *judged("joint", 0, {"a": list(hard + 0.1), "b": list(hard + 0.1)}),
    ]
    found = between(rows)
    assert list(found) == ["joint_over_policy"], "what was not judged has no line"
    for name in ("a", "b", MEAN):
        cell = found["joint_over_policy"][name]
        assert (cell["gain"], cell["low"], cell["high"]) == (10.0, 10.0, 10.0)


def test_seeds_are_set_against_their_own_and_the_mean_weighs_sets_alike() -> None:
    """Set b has four times the questions of a; seed 1 of the policy is compared with seed 1 in turn."""
    rows = [
        *judged("policy", 0, {"a": [0.0] * 10, "b": [0.0] * 40}),
        *judged("policy", 1, {"a": [0.5] * 10, "b": [0.5] * 40}),
        *judged("alternating", 0, {"a": [0.2] * 10, "b": [0.0] * 40}),
        *judged("alternating", 1, {"a": [0.9] * 10, "b": [0.5] * 40}),
    ]
    cells = between(rows)["alternating_over_policy"]
    assert cells["a"] == {"gain": 30.0, "low": 30.0, "high": 30.0, "least": 20.0, "most": 40.0, "seeds": 2}
    assert cells[MEAN] == {"gain": 15.0, "low": 15.0, "high": 15.0, "least": 10.0, "most": 20.0, "seeds": 2}


def test_a_way_that_was_cut_off_has_the_sets_that_it_reached_and_no_mean() -> None:
    """A mean over other sets than the rest of the column would mislead."""
    rows = [
        *judged("policy", 0, {"a": [0.0] * 10, "b": [0.0] * 40}),
        *judged("joint", 0, {"a": [0.2] * 10}),
        *judged("alternating", 0, {"a": [0.1] * 10, "b": [0.1] * 40}),
    ]
    found = between(rows)
    assert set(found["joint_over_policy"]) == {"a"}
    lines = table(found, {"alternating": "in turn", "policy": "policy alone"})
    assert "| in turn over policy alone | +10.0 (+10.0 to +10.0; +10.0 to +10.0) |" in "\n".join(lines)
    assert table({}, {}) == []
