"""infra/training/policy_gpu.py: a needed stage that its share cuts short goes on once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.training import policy_gpu


class Host:
    """A clock and stages that take their seconds on it: `needs` seconds of work each, or an error at once."""

    def __init__(self, needs: dict[str, float], broken: tuple[str, ...] = ()) -> None:
        self.now = 0.0
        self.left = dict(needs)
        self.broken = broken
        self.ran: list[str] = []

    def run_stage(self, given: argparse.Namespace, stage: str, seconds: float) -> bool:
        self.ran.append(stage)
        if stage in self.broken:
            self.now += 1.0
            return False
        # a worker sees that its time is over when a piece of work is done, a little late
        spent = min(self.left[stage], seconds + 2.0)
        self.now += spent
        self.left[stage] -= spent
        return self.left[stage] <= 0


def start(monkeypatch: pytest.MonkeyPatch, host: Host, folder: Path, seconds: int, *stages: str) -> None:
    """The script's own main over that host."""
    monkeypatch.setattr(policy_gpu, "run_stage", host.run_stage)
    monkeypatch.setattr(policy_gpu, "time", SimpleNamespace(monotonic=lambda: host.now))
    own = ["policy_gpu", "--out", str(folder), "--seconds", str(seconds), "--stage", *stages]
    monkeypatch.setattr(sys, "argv", own)
    policy_gpu.main()


def test_a_needed_stage_that_is_cut_goes_on_once_and_the_next_ones_follow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The readings need more than their share of 100 s, less than two of them; what follows runs."""
    host = Host({"readings": 55.0, "trust": 10.0, "reward": 10.0})
    start(monkeypatch, host, tmp_path, 100, "readings", "reward")
    assert host.ran == ["readings", "readings", "trust", "reward"]


def test_it_goes_on_no_more_than_once_and_not_without_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cut twice: the run ends there, with an exit code. With less than half a minute left it does not go on."""
    host = Host({"readings": 1000.0, "trust": 1.0})
    with pytest.raises(SystemExit):
        start(monkeypatch, host, tmp_path, 200, "readings")
    assert host.ran == ["readings", "readings"]
    host = Host({"readings": 1000.0, "trust": 1.0})
    with pytest.raises(SystemExit):
        start(monkeypatch, host, tmp_path, 60, "readings")
    assert host.ran == ["readings"]


def test_a_stage_that_fails_before_its_share_is_over_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An error would come again; a stage that the next ones can do without, and is cut, is not repeated either."""
    host = Host({"readings": 1.0, "trust": 1.0}, broken=("readings",))
    with pytest.raises(SystemExit):
        start(monkeypatch, host, tmp_path, 200, "readings")
    assert host.ran == ["readings"]
    host = Host({"choose": 1000.0, "read": 1.0, "report": 1.0})
    with pytest.raises(SystemExit):
        start(monkeypatch, host, tmp_path, 600, "judge")
    assert host.ran == ["choose", "read", "report"]


def test_a_stage_leaves_what_the_later_ones_were_promised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Reward takes all that is left but 200 s, whatever the stages before took; without the option, its share."""
    shares: dict[str, float] = {}

    class Asking(Host):
        def run_stage(self, given: argparse.Namespace, stage: str, seconds: float) -> bool:
            shares[stage] = seconds
            return super().run_stage(given, stage, seconds)

    host = Asking({"teach": 130.0, "reward": 1e4, "choose": 10.0, "read": 1.0})
    with pytest.raises(SystemExit):
        start(
            monkeypatch,
            host,
            tmp_path,
            600,
            "teach",
            "reward",
            "choose",
            "read",
            "--leave",
            "teach=400",
            "reward=200",
        )
    assert host.ran == ["teach", "reward", "choose", "read"]
    assert shares["teach"] == 200.0 and shares["reward"] == 600.0 - 130.0 - 200.0
    with pytest.raises(SystemExit):
        start(monkeypatch, host, tmp_path, 600, "reward", "--leave", "rewards=1")
