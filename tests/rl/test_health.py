"""A run that is watched: it ends by its number, its time or an alarm, and keeps every record."""

from __future__ import annotations

import math
from collections.abc import Callable

from rl.health import AlarmConfig, Health, run_watched

HEALTHY = dict.fromkeys(Health.__dataclass_fields__, 0.5)


def steps(**changed: float) -> Callable[[], dict[str, float]]:
    """A loop whose every iteration has the same figures."""
    return lambda: {**HEALTHY, **changed}


def test_run_ends_after_its_number_of_iterations() -> None:
    """And tells of each as it comes."""
    told: list[dict[str, float]] = []
    records, reasons = run_watched(steps(), 4, on_step=told.append)
    assert len(records) == 4 and told == records and reasons == []


def test_collapse_ends_the_run_with_its_reason() -> None:
    """After as many iterations in a row as the alarm is patient."""
    records, reasons = run_watched(steps(entropy=0.0), 20, alarm=AlarmConfig(patience=3))
    assert len(records) == 3 and "entropy" in " ".join(reasons)


def test_iterations_that_ended_no_episode_raise_no_alarm() -> None:
    """Their figures say nothing of the policy."""
    records, reasons = run_watched(
        steps(entropy=0.0, episode_return=math.nan), 6, alarm=AlarmConfig(patience=2)
    )
    assert len(records) == 6 and reasons == []


def test_time_ends_the_run() -> None:
    """No iteration begins after the limit."""
    assert run_watched(steps(), 10, limit_s=-1.0) == ([], [])
