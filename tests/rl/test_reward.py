"""Rewards: both forms of the proposals, their ranges and their errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.reward import RewardConfig, final_reward, step_reward


@given(st.floats(0, 1), st.integers(0, 10_000))
def test_terminal_form_is_quality_minus_the_price_of_all_tokens(quality: float, tokens: int) -> None:
    """Tokens are paid for once, at the end."""
    config = RewardConfig(form="terminal", gamma=0.01)
    assert step_reward(config, tokens) == 0.0
    assert final_reward(config, tokens=tokens, quality=quality) == quality - 0.01 * tokens


@given(st.floats(1e-9, 100), st.integers(0, 10_000))
def test_stepwise_form_is_bounded_and_charges_each_step(loss: float, tokens: int) -> None:
    """A perfect answer earns alpha / min_loss at most; steps cost beta a token."""
    config = RewardConfig(form="stepwise", alpha=0.5, beta=0.02, min_loss=0.1)
    assert step_reward(config, tokens) == -0.02 * tokens
    assert 0 < final_reward(config, tokens=tokens, task_loss=loss) <= 5.0


def test_gold_term_pays_only_for_the_gold_span() -> None:
    """Switched on, holding the gold span is worth its weight in either form."""
    for form, given_ in (("terminal", {"quality": 0.5}), ("stepwise", {"task_loss": 1.0})):
        config = RewardConfig(form=form, gold_weight=0.3)  # type: ignore[arg-type]
        held = final_reward(config, tokens=3, holds_gold=True, **given_)  # type: ignore[arg-type]
        assert held - final_reward(config, tokens=3, **given_) == pytest.approx(0.3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"min_loss": 0.0}, "min_loss"),
        ({"form": "both"}, "form is 'both'"),
    ],
)
def test_wrong_prices_are_named(fields: dict, message: str) -> None:
    """A reward that could not be meant is refused with its field."""
    with pytest.raises(ValueError, match=message):
        RewardConfig(**fields)


def test_missing_task_loss_and_quality_out_of_range_are_errors() -> None:
    """The form's own input is needed, in its range."""
    with pytest.raises(ValueError, match="task_loss"):
        final_reward(RewardConfig(form="stepwise"), tokens=1)
    with pytest.raises(ValueError, match=r"quality is 1\.5"):
        final_reward(RewardConfig(), tokens=1, quality=1.5)
