"""infra/training/policy_against.py: who stands against the serving policy is chosen on dev questions alone."""

from __future__ import annotations

import numpy as np
import pytest

from infra.training.policy_against import ANYHOW, NO_MORE, Served, against, named, table
from infra.training.policy_evaluation import Curves

SHIPPED = Served("shipped-0", -12.0)


def curves() -> Curves:
    """Bias -12 is best on dev and reads most; bias -4 reads less; bias 0 is best on test questions alone."""
    made = Curves()
    for dataset, count in (("nq", 20), ("squad", 30)):
        for name, bias, dev, test, tokens in (
            ("shipped-0", -12.0, 0.50, 0.50, 100.0),
            ("reinforce-0", -12.0, 0.60, 0.40, 120.0),
            ("reinforce-0", -4.0, 0.55, 0.52, 90.0),
            ("reinforce-0", 0.0, 0.30, 0.90, 80.0),
            ("supervised-0", -4.0, 0.90, 0.90, 50.0),
        ):
            for split, f1 in (("dev", dev), ("test", test)):
                figures = {"name": name, "budget": 128, "stop_bias": bias, "tokens": tokens}
                each = np.full(count, f1)
                made.add(dataset, split, figures | {"forced_f1": round(100 * f1, 2)}, each)
    return made


def test_dev_questions_name_the_policy_whatever_the_test_questions_say() -> None:
    """Neither the best on test questions (bias 0) nor one that was not rewarded is named."""
    assert named(curves(), SHIPPED, 128) == {
        ANYHOW: Served("reinforce-0", -12.0),
        NO_MORE: Served("reinforce-0", -4.0),
    }


def test_differences_are_told_set_by_set_and_as_a_mean_of_the_sets() -> None:
    """Ten points less on each set and twenty tokens more; a difference that never varies has no width."""
    told = against(curves(), Served("reinforce-0", -12.0), SHIPPED, 128)
    assert told["sets"]["nq"] == {
        "f1": 40.0, "tokens": 120.0, "their_f1": 50.0, "their_tokens": 100.0,
        "gain": -10.0, "low": -10.0, "high": -10.0,
    }  # fmt: skip
    assert told["mean"] == {
        "tokens": 120.0,
        "their_tokens": 100.0,
        "gain": -10.0,
        "low": -10.0,
        "high": -10.0,
    }
    assert told["dev"] == (60.0, 120.0)
    assert told["dev_gain"] == {"gain": 10.0, "low": 10.0, "high": 10.0}
    assert told["ships"] is False, "it reads more"


def test_dev_questions_alone_say_whether_it_ships() -> None:
    """Better there at fewer tokens ships; worse beyond chance on one set does not; old runs do not say."""
    few = Served("reinforce-0", -4.0)
    assert against(curves(), few, SHIPPED, 128)["ships"] is True
    poor = curves()
    poor.scores["dev", "nq"]["reinforce-0", 128, -4.0, 1.0][:] = 0.45
    assert against(poor, few, SHIPPED, 128)["ships"] is False
    old = curves()
    old.scores = {place: scores for place, scores in old.scores.items() if place[0] == "test"}
    assert against(old, few, SHIPPED, 128)["ships"] is None


def test_the_table_has_the_serving_policy_first() -> None:
    """Its row, then one a rule."""
    found = {
        rule: against(curves(), ours, SHIPPED, 128) for rule, ours in named(curves(), SHIPPED, 128).items()
    }
    lines = table(found)
    assert len(lines) == 5
    assert lines[2].startswith("| serves | shipped-0, -12 | 50.0 (100) | 50.0 (100) |")
    assert "| 52.0 (90), +2.0 (2.0 to 2.0) |" in lines[4]


def test_a_point_that_the_run_lacks_is_refused_by_name() -> None:
    """The message names what was asked for and what there is."""
    with pytest.raises(ValueError, match=r"given reinforce-0 at a budget of 64.*the run has.*128"):
        against(curves(), Served("reinforce-0", 0.0), SHIPPED, 64)
