"""Whether learning is well: figures of each iteration, and an alarm when the policy collapses."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """One iteration.

    `entropy` in nats a step; `stop_rate`: share of episodes ended by STOP rather than by the budget; `empty_rate`:
    share that chose nothing; `budget_use`: tokens read over budget; `value_error`: root mean squared error of the
    value; `explained`: share of the returns' variance that the value explains (at most 1).
    """

    episode_return: float
    entropy: float
    stop_rate: float
    empty_rate: float
    budget_use: float
    tokens: float
    choices: float
    value_error: float
    explained: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmConfig:
    """When a policy counts as collapsed."""

    patience: int = field(default=5, metadata={"help": "iterations in a row before an alarm"})
    min_entropy: float = field(default=0.01, metadata={"help": "entropy below this is a collapse"})
    max_empty: float = field(default=0.9, metadata={"help": "a share of empty choices above this is one"})
    max_drop: float = field(
        default=0.3,
        metadata={"help": "so is a return this much below the best mean of `patience` iterations"},
    )

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience: given {self.patience}; allowed: 1 or more")


class CollapseAlarm:
    """`check` returns the reasons for alarm, none while all is well."""

    def __init__(self, config: AlarmConfig | None = None) -> None:
        self._config = config or AlarmConfig()
        self._recent: deque[Health] = deque(maxlen=self._config.patience)
        self._best = -math.inf

    def check(self, health: Health) -> list[str]:
        """Take note of an iteration; reasons as sentences."""
        config = self._config
        self._recent.append(health)
        reasons = []
        if not math.isfinite(health.episode_return) or not math.isfinite(health.entropy):
            reasons.append("the return or the entropy is no number")
        if len(self._recent) < config.patience:
            return reasons
        mean = float(np.mean([each.episode_return for each in self._recent]))
        if all(each.entropy < config.min_entropy for each in self._recent):
            reasons.append(f"entropy stayed below {config.min_entropy} nats for {config.patience} iterations")
        if all(each.empty_rate > config.max_empty for each in self._recent):
            reasons.append(
                f"over {config.max_empty:.0%} of the choices stayed empty for {config.patience} iterations"
            )
        if mean < self._best - config.max_drop:
            reasons.append(f"the return fell to {mean:.3f}, from {self._best:.3f}")
        self._best = max(self._best, mean)
        return reasons


def value_fit(values: npt.NDArray[np.float64], returns: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Root mean squared error of the values, and the share of the returns' variance that they explain."""
    errors = returns - values
    spread = float(returns.var())
    explained = 1.0 - float(errors.var()) / spread if spread > 1e-12 else 0.0
    return float(np.sqrt(np.mean(errors**2))), explained


def run_watched(
    step: Callable[[], dict[str, float]],
    iterations: int,
    *,
    limit_s: float = math.inf,
    alarm: AlarmConfig | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> tuple[list[dict[str, float]], list[str]]:
    """Call `step` until the number, the time or an alarm ends it; the records, and the alarm's reasons.

    A record whose `episode_return` is not finite ended no episode: the alarm does not look at it.
    """
    watch, records = CollapseAlarm(alarm), []
    began = time.monotonic()
    for _ in range(iterations):
        if time.monotonic() - began > limit_s:
            break
        record = step()
        records.append(record)
        if on_step is not None:
            on_step(record)
        if (health := health_in(record)) is not None and (reasons := watch.check(health)):
            return records, reasons
    return records, []


def health_in(record: Mapping[str, float]) -> Health | None:
    """The health that a loop's record tells; None where it ended no episode."""
    known = {name: record.get(name, 0.0) for name in Health.__dataclass_fields__}
    return Health(**known) if math.isfinite(known["episode_return"]) else None
