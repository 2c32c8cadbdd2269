"""rl/loops.py: both loops learn what chance does not reach, go on exactly from a checkpoint, raise the alarm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.formats import NewerFormat
from models.retriever import PolicyNetwork, select
from rl.episodes import Readings
from rl.health import AlarmConfig, CollapseAlarm, Health, value_fit
from rl.loops import LoopConfig, PolicyLoop
from rl.paying import EpisodeConfig
from rl.reward import RewardConfig
from rl.rollout import Static, collect
from tests.rl.toy import KnowingReader, network_config, tables

TABLES = tables(64)
EPISODE = EpisodeConfig(
    budget_low=60, budget_high=160, max_choices=4, reward=RewardConfig(form="terminal", gamma=0.001)
)
WELL = Health(
    episode_return=0.5, entropy=1.0, stop_rate=0.5, empty_rate=0.0, budget_use=0.5, tokens=60.0, choices=2.0,
    value_error=0.1, explained=0.5,
)  # fmt: skip


def loop(algorithm: str, **changes: object) -> PolicyLoop:
    """A loop over the toy."""
    torch.manual_seed(0)
    fields: dict[str, object] = {"algorithm": algorithm, "episode": EPISODE, "questions": 32, "lr": 1e-3}
    config = LoopConfig(**(fields | {"minibatch": 256, "entropy_weight": 0.02} | changes))  # type: ignore[arg-type]
    return PolicyLoop(PolicyNetwork(network_config()), TABLES, Readings(KnowingReader(TABLES)), config)


def quality(network: PolicyNetwork, seed: int = 9) -> float:
    """Mean quality of greedy choices on questions never trained on, at 100 tokens."""
    fresh = tables(64, seed=seed)
    asked = [(row, chosen.picks) for row, chosen in enumerate(select(network, fresh, 100))]
    return float(np.mean([outcome.f1 for outcome in KnowingReader(fresh).read(asked)]))


@pytest.mark.parametrize(("algorithm", "iterations"), [("reinforce", 45), ("plain_ppo", 9)])
def test_the_loop_learns_to_choose_and_to_stop(algorithm: str, iterations: int) -> None:
    """On new questions the policy is worth over 0.7 of 1; untrained it is under 0.45."""
    trained = loop(algorithm)
    before = quality(trained.network)
    records, reasons = trained.run(iterations)
    assert reasons == []
    assert before < 0.45
    assert quality(trained.network) > 0.7
    assert records[-1]["episode_return"] > records[0]["episode_return"] + 0.2


@pytest.mark.parametrize("algorithm", ["reinforce", "plain_ppo"])
def test_a_restored_loop_goes_on_exactly(tmp_path: Path, algorithm: str) -> None:
    """Two iterations after a checkpoint are the same whether the process lived on or not, weight by weight."""
    first = loop(algorithm, anchor_weight=0.1)
    first.step()
    first.save(tmp_path / "loop.pt")
    on = [first.step() for _ in range(2)]
    second = loop(algorithm, anchor_weight=0.1, seed=5)
    second.restore(tmp_path / "loop.pt")
    assert [second.step() for _ in range(2)] == on
    for name, tensor in first.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_a_later_or_damaged_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name; one that states no form is of the first."""
    trained, path = loop("reinforce"), tmp_path / "loop.pt"
    monkeypatch.setattr("rl.loops.FORMAT", 2)
    trained.save(path)
    with pytest.raises(NewerFormat, match=r"loop\.pt has format 2; this DySRA reads up to 1"):
        trained.restore(path)
    monkeypatch.setattr("rl.loops.KEY", "nothing")
    trained.save(path)
    monkeypatch.undo()
    trained.restore(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"loop\.pt cannot be read"):
        trained.restore(path)


def test_an_iteration_is_read_in_one_call() -> None:
    """All episodes of an iteration are read together, and none a second time."""
    trained = loop("plain_ppo")
    reader = trained.readings._reader
    trained.step()
    assert reader.calls == 1  # type: ignore[union-attr]
    assert trained.readings.num_read < trained.readings.num_asked


def test_a_rollout_adds_up() -> None:
    """Steps stand episode by episode; the totals are the sums of their rewards; health is in its bounds."""
    network = PolicyNetwork(network_config()).eval()
    chance, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    config = replace(EPISODE, reward=RewardConfig(form="stepwise"))
    rollout = collect(
        network, Static(TABLES, "cpu"), Readings(KnowingReader(TABLES)), config, 16, 4, chance, generator
    )
    assert int(rollout.ends.sum()) == 64 == len(rollout.totals)
    assert (rollout.episode.diff() >= 0).all()
    sums = torch.stack([rollout.rewards[rollout.episode == at].sum() for at in range(64)])
    torch.testing.assert_close(rollout.totals, sums)
    logits, values = network(rollout.observed(Static(TABLES, "cpu"), torch.arange(len(rollout.rows))))
    torch.testing.assert_close(values, rollout.values, atol=1e-5, rtol=1e-4)
    again = logits.log_softmax(-1).gather(1, rollout.actions[:, None])[:, 0]
    torch.testing.assert_close(again, rollout.log_probs, atol=1e-4, rtol=1e-4)
    assert 0 <= rollout.health.stop_rate <= 1
    assert 0 < rollout.health.budget_use <= 1


@pytest.mark.parametrize(
    ("ill", "reason"),
    [
        ({"entropy": 0.001}, "entropy stayed below"),
        ({"empty_rate": 0.99}, "stayed empty"),
        ({"episode_return": 0.1}, "the return fell to"),
        ({"entropy": float("nan")}, "no number"),
    ],
)
def test_the_alarm_fires_on_collapse_and_not_before(ill: dict[str, float], reason: str) -> None:
    """A sound policy raises no alarm; each kind of collapse raises its own once it lasts."""
    alarm = CollapseAlarm(AlarmConfig(patience=3))
    assert [alarm.check(WELL) for _ in range(6)] == [[]] * 6
    found = [alarm.check(replace(WELL, **ill)) for _ in range(3)]
    assert any(reason in each for each in found[-1])


def test_a_collapsed_run_ends_by_itself() -> None:
    """A run whose policy has no entropy left is stopped with the reason."""
    broken = loop("plain_ppo", lr=1e-9)
    with torch.no_grad():
        broken.network.stop[-1].bias.fill_(60.0)
    records, reasons = broken.run(30, alarm=AlarmConfig(patience=3))
    assert len(records) == 3
    assert any("entropy" in reason for reason in reasons)


def test_value_fit_is_that_of_the_definition() -> None:
    """Perfect values explain everything, their mean nothing."""
    returns = np.array([0.0, 1.0, 2.0])
    assert value_fit(returns, returns) == (0.0, 1.0)
    assert value_fit(np.ones(3), returns)[1] == pytest.approx(0.0)
