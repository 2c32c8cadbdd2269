"""infra/training/policy_evaluation.py: points are chosen on dev questions, at no more tokens, told on test ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from infra.training.policy_evaluation import at_equal_f1, at_no_more_tokens, summarise
from infra.training.policy_report import page

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
    each = {
        (p["name"], p["budget"], p["stop_bias"]): p["forced_f1"] / 100 + 0.01 * chance.standard_normal(50)
        for p in test
    }
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
    assert "misses 0.33" in text
