"""rl/module.py and rl/ppo.py: RLlib sees the plain network's logits, and its PPO learns in miniature."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.retriever import Choosing, PolicyNetwork, TableBatch, save_policy
from models.retriever.network import as_tensors
from rl.env import observation_space
from rl.episodes import Readings
from rl.paying import EpisodeConfig
from rl.reward import RewardConfig
from tests.rl.toy import KnowingReader, material, network_config, tables

TABLES = tables(24, width=4)


@pytest.fixture(scope="module")
def ray_columns() -> object:
    """RLlib's column names; importing RLlib takes seconds."""
    from ray.rllib.core.columns import Columns

    return Columns


def test_the_rlmodule_gives_the_plain_networks_logits_and_values(tmp_path: Path, ray_columns: object) -> None:
    """Same weights, same observation: the same numbers, masked alike, with nothing taken from the batch."""
    import gymnasium as gym

    from rl.module import RetrieverModule

    torch.manual_seed(1)
    plain = PolicyNetwork(network_config()).eval()
    save_policy(plain, tmp_path, {"unit": "sentence"})
    from dataclasses import asdict

    module = RetrieverModule(
        observation_space=observation_space(TABLES),
        action_space=gym.spaces.Discrete(TABLES.num_candidates + 1),
        model_config={"network": asdict(network_config(dropout=0.3)), "policy": str(tmp_path)},
    )
    state = Choosing(TABLES, np.arange(8), 70)
    state.choose(np.zeros(8, np.int64))
    observed = as_tensors(state.observe())
    batch = {"obs": dict(observed)}
    logits, values = plain(observed)
    with torch.no_grad():
        given = module.forward_train(batch)["action_dist_inputs"]
        torch.testing.assert_close(given, logits)
        torch.testing.assert_close(module.compute_values(batch), values)
    assert set(batch["obs"]) == set(observed)
    assert (given[observed["legal"] < 0.5] < -1e8).all()


def test_rllibs_runner_and_learner_improve_the_policy_without_a_cluster(
    tmp_path: Path, ray_columns: object
) -> None:
    """Sampled by RLlib's env runner, learnt by its PPO learner: the toy's return rises by over 0.15 in 8 rounds."""
    from dataclasses import asdict

    from ray.rllib.core.learner.training_data import TrainingData
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    from rl.ppo import MODULE, PpoConfig, configured

    wide = recorded(tmp_path)
    config = PpoConfig(
        episode=EpisodeConfig(
            budget_low=60, budget_high=160, max_choices=4, reward=RewardConfig(gamma=0.001)
        ),
        num_env_runners=0, num_envs=16, train_batch=256, minibatch=128, lr=2e-3, entropy_weight=0.02,
    )  # fmt: skip
    episode = asdict(config.episode)
    env = {
        "material": str(tmp_path / "material"), "rows": str(tmp_path / "rows.npy"), "reward": episode.pop("reward"),
        "episode": episode, "readings": str(tmp_path / "readings.npz"), "seed": 0,
    }  # fmt: skip
    job = configured(wide, env, network_config(), config, None)
    runner = SingleAgentEnvRunner(config=job)
    spaces = (runner.env.single_observation_space, runner.env.single_action_space)
    learner = job.build_learner(env=None, spaces={"__env__": spaces, MODULE: spaces})
    returns = []
    for _ in range(8):
        episodes = runner.sample(num_episodes=96)
        returns.append(float(np.mean([each.get_return() for each in episodes])))
        learner.update(
            training_data=TrainingData(episodes=episodes), num_epochs=4, minibatch_size=128,
            shuffle_batch_per_epoch=True,
        )  # fmt: skip
        runner.set_state({"rl_module": learner.get_state(components="rl_module")["rl_module"]})
    assert np.mean(returns[-2:]) > np.mean(returns[:2]) + 0.15, returns
    told = runner.get_metrics()
    assert 0 <= float(told["choice_stop_rate"].peek()) <= 1
    assert 0 < float(told["choice_tokens"].peek()) <= 160


@pytest.mark.ray
@pytest.mark.slow
def test_rllib_ppo_learns_and_survives_the_killing_of_a_runner(local_ray: None, tmp_path: Path) -> None:
    """On the toy the mean return rises over 0.75; a runner killed with -9 is replaced, a checkpoint comes back."""
    import psutil

    from rl.ppo import PpoConfig, PpoJob

    wide = recorded(tmp_path)
    config = PpoConfig(
        episode=EpisodeConfig(
            budget_low=60, budget_high=160, max_choices=4, reward=RewardConfig(gamma=0.001)
        ),
        num_env_runners=1, num_envs=16, train_batch=384, minibatch=128, lr=1e-3, entropy_weight=0.02,
    )  # fmt: skip

    def a_job() -> PpoJob:
        rows, readings = tmp_path / "rows.npy", tmp_path / "readings.npz"
        return PpoJob(tmp_path / "material", rows, network_config(), config, readings=readings)

    job = a_job()
    try:
        first = job.step()
        assert first["episode_return"] < 0.5
        killed = _runner_pid(job)
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 300
        record = first
        while time.monotonic() < deadline:
            record = job.step()
            if math.isfinite(record["episode_return"]) and record["episode_return"] > 0.75:
                break
        assert record["episode_return"] > 0.75
        assert _runner_pid(job) != killed
        assert not psutil.pid_exists(killed)
        assert 0 <= record["stop_rate"] <= 1
        assert 0 < record["tokens"] <= 160
        job.save(tmp_path / "checkpoint")
        network = job.network()
        observed = as_tensors(Choosing(wide, np.arange(8), 100).observe())
        before, _ = network(observed)
    finally:
        job.close()
    other = a_job()
    try:
        other.restore(tmp_path / "checkpoint")
        after, _ = other.network()(observed)
        torch.testing.assert_close(after, before)
        assert math.isfinite(other.step()["loss"])
    finally:
        other.close()


def recorded(folder: Path) -> TableBatch:
    """The toy as material in a folder, with every reading of it recorded."""
    wide = tables(64)
    material(wide).save(folder / "material", {})
    np.save(folder / "rows.npy", np.arange(len(wide)))
    readings = Readings(KnowingReader(wide))
    for row in range(len(wide)):
        size = int(wide.present[row].sum())
        readings.read([(row, tuple(at for at in range(size) if mask >> at & 1)) for mask in range(1 << size)])
    readings.save(folder / "readings.npz")
    return wide


def _runner_pid(job: Any) -> int:
    """The process of the one env runner."""
    group = job.algorithm.env_runner_group
    (pid,) = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    return int(pid)
