"""infra/training/policy_orders.py: policies stand against the pair readers' orders too."""

from __future__ import annotations

import numpy as np

from infra.training.policy_evaluation import Curves
from infra.training.policy_orders import over_orders, table


def curves() -> Curves:
    """The decoder's order beats hybrid ranking; the policy's best point on dev reads more than that order."""
    made = Curves()
    for name, bias, dev, test, tokens in (
        ("hybrid", 0.0, 0.40, 0.40, 180.0),
        ("pair_decoder", 0.0, 0.55, 0.60, 120.0),
        ("oracle", 0.0, 0.90, 0.80, 40.0),
        ("reinforce-0", -12.0, 0.70, 0.75, 125.0),
        ("reinforce-0", -4.0, 0.60, 0.65, 100.0),
        ("reinforce-0", 0.0, 0.50, 0.70, 60.0),
        ("reinforce_without_pair-0", 0.0, 0.90, 0.90, 10.0),
    ):
        for split, f1 in (("dev", dev), ("test", test)):
            figures = {"name": name, "budget": 128, "stop_bias": bias, "tokens": tokens}
            made.add("nq", split, figures | {"forced_f1": round(100 * f1, 2)}, np.full(20, f1))
    return made


def test_the_pair_reader_s_order_is_the_one_to_beat_at_no_more_tokens() -> None:
    """Bias -12 reads more than the order does; of the rest dev names -4, and 0 is the policy's own STOP."""
    told = over_orders(curves(), "nq")
    assert told["best"] == {"order": "pair_decoder at 128", "f1": 60.0, "tokens": 120.0}
    assert told["dev"] == {
        "reinforce": {
            "f1": 65.0, "tokens": 100.0, "gap_closed": 0.25,
            "over_best": {"gain": 5.0, "low": 5.0, "high": 5.0},
        }
    }  # fmt: skip
    assert told["own_stop"]["reinforce"]["tokens"] == 60.0
    assert told["own_stop"]["reinforce"]["gap_closed"] == 0.5


def test_the_table_names_the_order_in_each_row() -> None:
    """One kind, one row; a set without points is none."""
    lines = table({"nq": over_orders(curves(), "nq")})
    assert lines[2] == (
        "| nq | pair_decoder at 128: 60.0 (120) | reinforce | 65.0 (100), gap 0.25, +5.0 (5.0 to 5.0) | "
        "70.0 (60), gap 0.50, +10.0 (10.0 to 10.0) |"
    )
    assert len(lines) == 3
    assert over_orders(Curves(), "nq") == {}
