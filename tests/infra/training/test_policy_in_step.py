"""infra/training/policy_in_step.py: policies that learn in step learn what they would alone, for fewer calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.training.policy_in_step import learn_in_step, train_in_step
from infra.training.policy_stages import PolicyJob
from rl.episodes import Readings, Request
from rl.reward import RewardConfig
from tests.rl.test_loops import EPISODE, TABLES, loop
from tests.rl.toy import KnowingReader

PRICES = (0.0, 0.001, 0.01)


def priced(gamma: float, seed: int = 0, **changes: object) -> Any:
    """A loop over the toy whose tokens cost so much."""
    from dataclasses import replace

    episode = replace(EPISODE, reward=RewardConfig(form="terminal", gamma=gamma))
    return loop("reinforce", episode=episode, seed=seed, **changes)


class Counting:
    """The toy's reader, and how often it is asked for how much."""

    def __init__(self) -> None:
        self._reader, self.asked = KnowingReader(TABLES), []  # type: ignore[var-annotated]

    def read(self, requests: Sequence[Request]) -> Any:
        self.asked.append(len(requests))
        return self._reader.read(requests)


def test_each_learns_in_step_what_it_learns_alone_and_all_are_read_in_one_call() -> None:
    """Three prices, four iterations: the same weights to the last bit, four calls at most, no choice read twice."""
    alone = [priced(gamma) for gamma in PRICES]
    for each in alone:
        each.run(4)
    beside, reader = [priced(gamma) for gamma in PRICES], Counting()
    shared = Readings(reader)
    records, alarms = learn_in_step(beside, shared, 4, limit_s=60)
    assert [len(each) for each in records] == [4, 4, 4] and not any(alarms)
    for ours, theirs in zip(beside, alone, strict=True):
        for name, weight in theirs.network.state_dict().items():
            assert torch.equal(weight, ours.network.state_dict()[name]), name
    assert len(reader.asked) <= 4 and sum(reader.asked) == len(shared)
    assert sum(reader.asked) < sum(each.readings.num_read for each in alone)


def test_one_that_has_its_iterations_or_an_alarm_leaves_the_others_to_theirs() -> None:
    """A loop that is ahead, and one whose choices carry no chance any more: neither is asked again."""
    ahead, certain, last = priced(0.0), priced(0.001), priced(0.01)
    ahead.run(9)
    with torch.no_grad():  # STOP at once, always
        certain.network.stop[-1].bias.fill_(60.0)
    records, alarms = learn_in_step([ahead, certain, last], Readings(KnowingReader(TABLES)), 12, limit_s=120)
    assert [len(records[0]), len(records[2])] == [3, 12] and not alarms[0] and not alarms[2]
    assert len(records[1]) < 12 and any("entropy stayed" in reason for reason in alarms[1])


def test_the_time_ends_all_of_them_after_a_whole_iteration() -> None:
    """None begins another, and what was done is told."""
    records, alarms = learn_in_step([priced(0.0)], Readings(KnowingReader(TABLES)), 1_000_000, limit_s=0.2)
    assert 0 < len(records[0]) < 1_000 and not alarms[0]
    assert learn_in_step([priced(0.0)], Readings(None), 5, limit_s=0.0) == ([[]], [[]])


def test_what_cannot_learn_in_step_is_refused(tmp_path: Path) -> None:
    """Other rows than the others', and policies that are not paid over all rows and features."""
    from rl.loops import PolicyLoop

    first = priced(0.0)
    fewer = PolicyLoop(priced(0.0).network, TABLES.take([0, 1, 2]), first.readings, first.config)
    with pytest.raises(ValueError, match=r"given rows \[64, 3\]; allowed: the same of all"):
        learn_in_step([first, fewer], first.readings, 1, limit_s=1)
    blind = PolicyJob(kind="blind", algorithm="reinforce", seed=1, pair=False)
    taught = PolicyJob(kind="taught", algorithm="supervised", seed=0)
    with pytest.raises(ValueError, match="given blind-1, taught-0; allowed: reinforce or plain_ppo"):
        train_in_step(
            None, None, None, [blind, taught], out=tmp_path, seconds=1, iterations=1, device="cpu", say=print,  # type: ignore[arg-type]
        )  # fmt: skip
