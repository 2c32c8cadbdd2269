"""PPO by RLlib's new API stack: vector environments in env runners, one learner, checkpoints, named readings.

Everything that a worker needs is named by path or by actor name in the configuration, so a worker that dies is made
again from nothing. Each runner keeps the readings that it has seen; the reader's actor keeps all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork
from models.retriever.table import TableBatch
from pipeline.tasks.material import Material
from rl.actor_client import ActorReader
from rl.env import ChoosingEnv, observation_space
from rl.episodes import Readings
from rl.health import AlarmConfig, run_watched
from rl.paying import EpisodeConfig
from rl.reward import RewardConfig

MODULE = "default_policy"
ENVIRONMENT = "dysra-choosing"
REVIVE_S = 300.0
"""How long an iteration waits for runners that died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoConfig:
    """The RLlib job."""

    episode: EpisodeConfig = field(default_factory=EpisodeConfig, metadata={"help": "see EpisodeConfig"})
    num_env_runners: int = field(
        default=1, metadata={"help": "processes that collect episodes; 0: the driver does"}
    )
    num_envs: int = field(default=32, metadata={"help": "episodes that a runner has at once"})
    train_batch: int = field(default=1024, metadata={"help": "steps of an iteration"})
    minibatch: int = field(default=256, metadata={"help": "steps of one update"})
    epochs: int = field(default=4, metadata={"help": "passes over an iteration"})
    lr: float = field(default=2e-4, metadata={"help": "learning rate"})
    clip: float = field(default=0.2, metadata={"help": "PPO's clip"})
    trace: float = field(default=0.95, metadata={"help": "lambda of the advantage estimation"})
    entropy_weight: float = field(default=0.01, metadata={"help": "weight of the entropy bonus"})
    num_gpus: float = field(default=0.0, metadata={"help": "GPUs of the learner"})
    seed: int = field(default=0, metadata={"help": "of the environments and the learner"})

    def __post_init__(self) -> None:
        for name in ("num_envs", "train_batch", "minibatch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if self.num_env_runners < 0:
            raise ValueError(f"num_env_runners: given {self.num_env_runners}; allowed: 0 or more")
        if self.minibatch > self.train_batch:
            raise ValueError(
                f"minibatch: given {self.minibatch}; allowed: at most train_batch, {self.train_batch}"
            )


def make_env(config: Mapping[str, Any]) -> ChoosingEnv:
    """A runner's environment, from plain values: `material` (folder), `rows` (file, npy), `episode`, `reward`,
    `reader` {name, namespace, timeout_s} or `readings` (npz), `seed`, `num_envs`.
    """
    material = Material.load(Path(config["material"]))
    rows = np.load(config["rows"])
    named = config.get("reader")
    readings = Readings(_RowReader(ActorReader(**named), rows) if named else None)
    if config.get("readings"):
        whole = Readings(None)
        whole.load(Path(config["readings"]))
        readings = Readings(_RowReader(whole, rows))
    episode = EpisodeConfig(**{**config["episode"], "reward": RewardConfig(**config["reward"])})
    # RLlib's creator knows no worker's number: the process and the time tell runners apart, the seed repeats one.
    import os

    seed = int(config.get("seed", 0)) * 1_000_003 + os.getpid()
    return ChoosingEnv(material.tables.take(rows), readings, episode, int(config["num_envs"]), seed)


class _RowReader:
    """Rows of a part of the material, asked of a reader that knows the whole."""

    def __init__(self, reader: Any, rows: Any) -> None:
        self._reader, self._rows = reader, rows

    def read(self, requests: Any) -> Any:
        """The outcomes, in order."""
        return self._reader.read([(int(self._rows[row]), picks) for row, picks in requests])


class PpoJob:
    """RLlib's algorithm over one material, with health and checkpoints; Ray must run already."""

    def __init__(
        self,
        material: Path,
        rows: Path,
        network: RetrieverConfig,
        config: PpoConfig,
        *,
        reader: Mapping[str, Any] | None = None,
        readings: Path | None = None,
        begin_with: Path | None = None,
    ) -> None:
        if (reader is None) == (readings is None):
            raise ValueError("reader and readings: given both or none; allowed: one of them")
        tables = Material.load(material).tables
        self.config, self.network_config = config, network
        plain = asdict(config.episode)
        reward = plain.pop("reward")
        self._env = {
            "material": str(material.absolute()),
            "rows": str(rows.absolute()),
            "episode": plain,
            "reward": reward,
            "reader": dict(reader) if reader else None,
            "readings": str(readings.absolute()) if readings else None,
            "seed": config.seed,
        }
        self.algorithm = build(tables, self._env, network, config, begin_with)
        self._sampled = 0.0

    def step(self) -> dict[str, float]:
        """One iteration; its health and losses.

        While killed runners are made again, RLlib's iterations end at once with nothing sampled: such a one is done
        again, for at most REVIVE_S seconds.
        """
        deadline = time.monotonic() + REVIVE_S
        while True:
            found = figures(self.algorithm.train())
            before, self._sampled = self._sampled, found["steps"]
            if found["steps"] != before or time.monotonic() > deadline:
                return found
            time.sleep(0.5)

    def run(
        self,
        iterations: int,
        *,
        limit_s: float = math.inf,
        alarm: AlarmConfig | None = None,
        on_step: Callable[[dict[str, float]], None] | None = None,
        checkpoint: Path | None = None,
    ) -> tuple[list[dict[str, float]], list[str]]:
        """Iterations until the number, the time or an alarm ends it; a checkpoint after each, where wanted."""

        def step() -> dict[str, float]:
            record = self.step()
            if checkpoint is not None:
                self.save(checkpoint)
            return record

        return run_watched(step, iterations, limit_s=limit_s, alarm=alarm, on_step=on_step)

    def save(self, folder: Path) -> None:
        """Write RLlib's checkpoint."""
        self.algorithm.save_to_path(str(folder.absolute()))

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint of RLlib."""
        self.algorithm.restore_from_path(str(folder.absolute()))

    def network(self) -> PolicyNetwork:
        """The learner's policy, as a plain network."""
        weights = self.algorithm.learner_group.get_weights(module_ids=[MODULE])[MODULE]
        import torch

        plain = PolicyNetwork(self.network_config)
        state = {
            name.removeprefix("network."): torch.as_tensor(array)
            for name, array in weights.items()
            if name.startswith("network.")
        }
        plain.load_state_dict(state)
        return plain.eval()

    def close(self) -> None:
        """End the runners and the learner."""
        self.algorithm.stop()


def build(
    tables: TableBatch,
    env: Mapping[str, Any],
    network: RetrieverConfig,
    config: PpoConfig,
    begin_with: Path | None,
) -> Any:
    """RLlib's algorithm, built."""
    return configured(tables, env, network, config, begin_with).build_algo()


def configured(
    tables: TableBatch,
    env: Mapping[str, Any],
    network: RetrieverConfig,
    config: PpoConfig,
    begin_with: Path | None,
) -> Any:
    """RLlib's configuration of the job."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from rl.module import RetrieverModule

    register_env(ENVIRONMENT, make_env)  # by name: the algorithm takes no function, and runners look it up
    model = {"network": asdict(network), "policy": str(begin_with.absolute()) if begin_with else ""}
    return (
        PPOConfig()  # type: ignore[no-untyped-call]
        .environment(
            ENVIRONMENT,
            env_config=dict(env),
            observation_space=observation_space(tables),
            action_space=gym.spaces.Discrete(tables.num_candidates + 1),
            disable_env_checking=True,
        )
        .env_runners(
            num_env_runners=config.num_env_runners,
            num_envs_per_env_runner=config.num_envs,
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
            batch_mode="complete_episodes",
            rollout_fragment_length="auto",
            sample_timeout_s=600.0,  # late samples would be thrown away, and a reading on a CPU takes long
            num_cpus_per_env_runner=1,
        )
        .fault_tolerance(restart_failed_env_runners=True, max_num_env_runner_restarts=1000)
        .learners(num_learners=0, num_gpus_per_learner=config.num_gpus)
        .training(
            gamma=1.0,
            lr=config.lr,
            train_batch_size_per_learner=config.train_batch,
            minibatch_size=config.minibatch,
            num_epochs=config.epochs,
            lambda_=config.trace,
            clip_param=config.clip,
            vf_clip_param=1e6,
            vf_loss_coeff=0.5,
            entropy_coeff=config.entropy_weight,
            use_kl_loss=False,
            grad_clip=1.0,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(module_class=RetrieverModule, model_config=model),
        )
        .callbacks(_health_callback())
        .debugging(seed=config.seed, log_level="ERROR")
    )


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """RLlib's result as our figures; NaN where an iteration ended no episode."""
    runners, learner = result.get("env_runners", {}), result.get("learners", {}).get(MODULE, {})
    known = {
        "iteration": float(result.get("training_iteration", 0)),
        "episode_return": float(runners.get("episode_return_mean", math.nan)),
        "steps": float(runners.get("num_env_steps_sampled_lifetime", math.nan)),
        "entropy": float(learner.get("entropy", math.nan)),
        "loss": float(learner.get("total_loss", math.nan)),
        "value_error": float(learner.get("vf_loss", math.nan)) ** 0.5,
        "explained": float(learner.get("vf_explained_var", math.nan)),
        "restarts": float(result.get("fault_tolerance", {}).get("num_remote_worker_restarts", 0)),
    }
    own = ("stop_rate", "empty_rate", "budget_use", "tokens", "choices")
    return known | {name: float(runners.get(f"choice_{name}", math.nan)) for name in own}


def _health_callback() -> Any:
    """A callback class that logs what each episode chose, read off its last observation and actions."""
    from ray.rllib.callbacks.callbacks import RLlibCallback

    class ChoiceCallback(RLlibCallback):  # type: ignore[misc]
        """Health of episodes."""

        def on_episode_end(  # type: ignore[override]
            self, *, episode: Any, metrics_logger: Any, **kwargs: Any
        ) -> None:
            """Note what was chosen."""
            last, actions = episode.get_observations(-1), np.asarray(episode.get_actions())
            chosen = float(last["choice"][:, 0].sum())
            read, left = float(last["state"][1]), float(last["state"][0])
            stop = len(last["legal"]) - 1
            for name, value in (
                ("stop_rate", float(len(actions) > 0 and int(actions[-1]) == stop)),
                ("empty_rate", float(chosen == 0)),
                ("budget_use", read / max(read + left, 1e-9)),
                ("tokens", 128.0 * read),
                ("choices", chosen),
            ):
                metrics_logger.log_value(f"choice_{name}", value, reduce="mean", window=200)

    return ChoiceCallback
