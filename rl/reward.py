"""What a policy is paid for choosing what the reader reads: the two forms of the proposals, pure functions.

`terminal`: task quality minus gamma for each token read, paid at the end (DSRAM).
`stepwise`: alpha / task loss when the episode ends, minus beta for the tokens of each step (DySRA-SubQ).
A gold-span term can be added to either, because the reader's score alone rewards luck: a reader sometimes
answers rightly without having read the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """The form of the reward and its prices."""

    form: Literal["terminal", "stepwise"] = field(
        default="terminal",
        metadata={"help": "terminal (quality - gamma * tokens) or stepwise (alpha / loss)"},
    )
    gamma: float = field(default=0.001, metadata={"help": "price of one token read, terminal form"})
    alpha: float = field(default=0.1, metadata={"help": "scale of 1 / task loss, stepwise form"})
    beta: float = field(default=0.001, metadata={"help": "price of one token read, stepwise form"})
    gold_weight: float = field(
        default=0.0, metadata={"help": "added when the chosen text holds the gold span; 0 switches it off"}
    )
    min_loss: float = field(
        default=0.05,
        metadata={"help": "task losses below this count as this, so that 1 / loss stays bounded"},
    )

    def __post_init__(self) -> None:
        if self.form not in ("terminal", "stepwise"):
            raise ValueError(f"form is {self.form!r}; allowed: terminal, stepwise")
        for name in ("gamma", "alpha", "beta", "gold_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not self.min_loss > 0:
            raise ValueError(f"min_loss is {self.min_loss}; it must be above 0")


def step_reward(config: RewardConfig, tokens: int) -> float:
    """Paid when a candidate of `tokens` tokens is chosen: 0 in the terminal form, else -beta * tokens <= 0."""
    return -config.beta * tokens if config.form == "stepwise" else 0.0


def final_reward(
    config: RewardConfig,
    *,
    tokens: int,
    quality: float = 0.0,
    task_loss: float | None = None,
    holds_gold: bool = False,
) -> float:
    """Paid when the episode ends, after `tokens` tokens in all.

    Terminal form: quality (0 to 1) - gamma * tokens, in [-gamma * tokens, 1]. Stepwise form: alpha / max(task
    loss, min_loss), in (0, alpha / min_loss]; the tokens were paid for step by step. Both plus gold_weight if the
    chosen text holds the gold span.
    """
    bonus = config.gold_weight if holds_gold else 0.0
    if config.form == "terminal":
        if not 0.0 <= quality <= 1.0:
            raise ValueError(f"quality is {quality}; allowed is 0 to 1")
        return quality - config.gamma * tokens + bonus
    if task_loss is None:
        raise ValueError(
            "the stepwise form needs task_loss, the reader's mean loss on the gold answer in nats"
        )
    return config.alpha / max(task_loss, config.min_loss) + bonus
