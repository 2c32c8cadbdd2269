"""infra/training/policy_evaluation.py: points are chosen on dev questions, at no more tokens, told on test ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from infra.training.policy_evaluation import at_equal_f1, at_no_more_tokens, key_of, summarise
from infra.training.policy_report import as_json, page, result_of
from infra.training.policy_tables import health_of

SIMPLE = ("random", "bm25", "dense", "hybrid")


def point(name: str, budget: int, f1: float, tokens: float, bias: float = 0.0) -> dict[str, Any]:
    """A point of a curve."""
    return {"name": name, "budget": budget, "stop_bias": bias, "forced_f1": f1, "tokens": tokens}


def curves() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Dev and test: hybrid at 128 is the best simple method; the policy is best elsewhere on dev than on test."""
    dev = [point(name, 128, 30.0, 120.0) for name in SIMPLE[:3]] + [
        point("hybrid", 128, 50.0, 120.0), point("oracle", 256, 80.0, 30.0),
        point("plain_ppo-0", 64, 51.0, 60.0), point("plain_ppo-0", 128, 60.0, 115.0, -4.0),
        point("plain_ppo-0", 128, 58.0, 110.0), point("plain_ppo-0", 256, 70.0, 200.0),
        point("supervised-0", 64, 48.0, 60.0), point("supervised-0", 128, 55.0, 110.0),
    ]  # fmt: skip
    test = [point(name, 128, 30.0, 120.0) for name in SIMPLE[:3]] + [
        point("hybrid", 128, 48.0, 118.0), point("oracle", 256, 78.0, 30.0),
        point("plain_ppo-0", 64, 49.0, 59.0), point("plain_ppo-0", 128, 57.0, 114.0, -4.0),
        point("plain_ppo-0", 128, 63.0, 109.0), point("plain_ppo-0", 256, 75.0, 190.0),
        point("supervised-0", 64, 47.0, 60.0), point("supervised-0", 128, 54.0, 110.0),
    ]  # fmt: skip
    return dev, test


def test_a_point_is_chosen_by_dev_f1_among_those_that_read_no_more() -> None:
    """Not the best on test, not the one that reads more; none where all read more."""
    dev, test = curves()
    simple = next(p for p in test if p["name"] == "hybrid")
    found = at_no_more_tokens("plain_ppo-0", dev, test, simple)
    assert found is not None
    assert (found["budget"], found["stop_bias"], found["forced_f1"]) == (128, -4.0, 57.0)
    assert at_no_more_tokens("plain_ppo-0", dev, test, {**simple, "tokens": 50.0}) is None
    cheap = at_equal_f1("plain_ppo-0", dev, test, simple)
    assert cheap is not None
    assert cheap["tokens"] == 59.0
    assert at_equal_f1("supervised-0", dev[:-1], test, simple) is None


def test_the_named_figures_and_the_page_follow_from_these_points() -> None:
    """Gap closed, ratio of tokens, reward over supervised with an interval; the page names each bar."""
    dev, test = curves()
    chance = np.random.default_rng(0)
    each = {key_of(p): p["forced_f1"] / 100 + 0.01 * chance.standard_normal(50) for p in test}
    found = summarise("nq", dev, test, each)
    assert found["best_simple_nq"] == "hybrid at 128"
    assert found["policy_nq"] == "plain_ppo"
    assert found["gap_closed_nq"] == round((57 - 48) / (78 - 48), 4)
    assert found["tokens_ratio_at_equal_f1_nq"] == 2.0
    told = found["rl_over_supervised_nq"]
    assert told["low"] < told["gain"] < told["high"]
    assert abs(told["gain"] - 3) < 1
    assert summarise("nq", [], test, each) == {}
    text = page(
        {
            "summary": found, "sets": {"nq": {"dev": dev, "test": test}}, "records": {},
            "questions": {"test": {"nq": 50}},
        },
        "CPU", "abc",
    )  # fmt: skip
    assert "| nq | plain_ppo | 57.0 |" in text
    assert "22.7M-weight" in text
    assert "How early" not in text
    assert "misses 0.33" in text


def test_a_page_over_both_pair_readers_tells_their_cost_orders_and_the_readers_slopes() -> None:
    """The decoder's pairs are named as what they cost; a row a set of the orders, three of the readers."""
    hit = {"n": 9} | {f"{kind}@{depth}": 50.0 for kind in ("hit", "all") for depth in (1, 2, 4)}
    found = {
        "summary": {}, "sets": {}, "records": {}, "questions": {}, "ways": {"nq": {}}, "pair_base": "both",
        "ranks": {"test": {"nq": {"hybrid": hit, "pair_decoder": hit | {"hit@1": 56.5}}}},
        "rewarded_by": "fold readers",
        "slopes": {"nq": {str(n): {"n": 9, "shipped": 76.0 - n, "fold0": 68.0, "fold1": 72.0} for n in (1, 10)}},
    }  # fmt: skip
    text = page(found, "CPU", "abc")
    assert "71 pairs" in text
    assert "22.7M-weight" not in text
    assert "| nq (9) | 50.0 / 50.0 / 50.0 | 56.5 / 50.0 / 50.0 |" in text
    assert "| nq (9) | shipped | 75.0 | 66.0 |" in text
    assert result_of(found, "CPU", "abc")["slopes"] == found["slopes"]


def test_by_its_own_stop_a_policy_stands_at_the_largest_budget_without_any_choice() -> None:
    """Neither the bias nor the budget that is best on test or dev questions counts; simple methods have no STOP."""
    dev, test = curves()
    chance = np.random.default_rng(0)
    each = {key_of(p): p["forced_f1"] / 100 + 0.01 * chance.standard_normal(50) for p in test}
    found = {name: told for name, told in summarise("nq", dev, test, each).items() if name.startswith("own_")}
    assert set(found) == {"own_stop_plain_ppo_nq", "own_stop_supervised_nq"}
    ours = found["own_stop_plain_ppo_nq"]
    assert (ours["f1"], ours["tokens"], ours["gap_closed"]) == (75.0, 190.0, pytest.approx(27 / 30))
    assert ours["tokens_ratio_to_simple"] == round(118 / 190, 2)
    assert ours["over_simple"]["low"] > 25
    assert ours["over_supervised"]["gain"] == pytest.approx(21, abs=1)
    assert found["own_stop_supervised_nq"]["over_supervised"] is None


def test_the_kept_json_is_whole_and_a_run_is_told_by_its_ends() -> None:
    """Curves stand a set a line; health is the mean of the first and of the last iterations."""
    result = {
        "bench": "policy",
        "ratios": {"a": [1, None]},
        "curves": {"columns": ["f1"], "nq": {"dev": [[1.5]]}},
    }
    text = as_json(result)
    assert json.loads(text) == result
    assert '"nq": {"dev": [[1.5]]}' in text
    told = health_of({"curve": [{"entropy": float(at)} for at in range(30)]}, last=10)
    assert told == {"first_iterations": {"entropy": 4.5}, "last_iterations": {"entropy": 24.5}}
    assert health_of({"loss": 1.0}) == {}
