"""What an episode is, and what it pays: shared by RLlib's environment and the plain loops."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rl.episodes import Outcome
from rl.reward import RewardConfig, final_reward


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeConfig:
    """What an episode is, and what it pays."""

    reward: RewardConfig = field(default_factory=RewardConfig, metadata={"help": "see RewardConfig"})
    budget_low: int = field(default=64, metadata={"help": "least budget of an episode, in tokens"})
    budget_high: int = field(default=256, metadata={"help": "largest budget of an episode, in tokens"})
    max_choices: int = field(default=6, metadata={"help": "candidates that an episode may choose"})
    give_up_margin: float = field(
        default=1.5,
        metadata={
            "help": "an answer counts 0 where the reader would rather give up by more than this (nats)"
        },
    )

    def __post_init__(self) -> None:
        if self.budget_low < 1 or self.budget_high < self.budget_low:
            raise ValueError(
                f"budget_high: given {self.budget_high} with budget_low {self.budget_low}; "
                "allowed: 1 <= budget_low <= budget_high"
            )
        if self.max_choices < 1:
            raise ValueError(f"max_choices: given {self.max_choices}; allowed: 1 or more")


def pay(config: EpisodeConfig, outcome: Outcome, tokens: int, holds_gold: bool) -> float:
    """What an episode that ended is paid for its reading."""
    return final_reward(
        config.reward,
        tokens=tokens,
        quality=min(1.0, max(0.0, outcome.quality(config.give_up_margin))),
        task_loss=outcome.loss,
        holds_gold=holds_gold,
    )


def draw_budgets(config: EpisodeConfig, chance: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Budgets between the two bounds, as many small as large ones by ratio."""
    low, high = np.log(config.budget_low), np.log(config.budget_high + 1)
    return np.exp(chance.uniform(low, high, count)).astype(np.int64)
