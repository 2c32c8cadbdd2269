"""The two parts of a policy's training: the warm start, then REINFORCE or PPO paid by the reader."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.training.policy_resume import LoopPlace
from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork
from models.retriever.storage import load_policy_for, save_policy
from models.retriever.supervised import SupervisedConfig, train_supervised
from models.retriever.table import names_for
from pipeline.errors import UsageError
from pipeline.tasks.material import Material
from rl.episodes import OutcomeReader, Readings, fingerprint
from rl.loops import LoopConfig, PolicyLoop
from rl.minimal_sets import mine
from rl.paying import EpisodeConfig

if TYPE_CHECKING:
    from infra.training.policy_train import PolicyTrainConfig

OnStep = Callable[[dict[str, float]], None]


class Kept:
    """Hands every record of a part on, and keeps it for the card."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step = on_step
        self.rows: list[dict[str, float]] = []

    def __call__(self, record: dict[str, float]) -> None:
        self.rows.append(record)
        if self._on_step is not None:
            self._on_step(record)


class RunReader:
    """The reader in this process, loaded when it is first needed, with everything that it has read."""

    def __init__(self, config: PolicyTrainConfig, material: Material) -> None:
        self._config, self._material = config, material
        self.memory = config.out / "readings.npz"
        self.readings = Readings(self, fingerprint(material))
        self._inner: OutcomeReader | None = None
        for known in (config.readings, self.memory):
            if known is not None and known.exists():
                self.readings.load(known)

    def read(self, requests: Any) -> Any:
        """The outcomes, in order."""
        if self._inner is None:
            from models.hf import HfBackbone
            from models.hf.adapter import adapter_folder
            from pipeline.tasks.reading import MaterialReader, voice_of

            backbone = HfBackbone.load(self._config.backbone)
            adapted = adapter_folder(self._config.backbone) is not None
            self._inner = OutcomeReader(MaterialReader(self._material, voice_of(backbone, adapted)))
        return self._inner.read(requests)

    def keep(self) -> None:
        """Write down what was read."""
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        self.readings.save(self.memory)


class _Part:
    """Rows of the training questions, asked of readings of the whole material."""

    def __init__(self, readings: Readings, rows: Any) -> None:
        self._readings, self._rows = readings, rows

    def read(self, requests: Sequence[Any]) -> Any:
        """The outcomes, in order."""
        return self._readings.read([(int(self._rows[row]), picks) for row, picks in requests])


def network_of(config: PolicyTrainConfig, material: Material) -> PolicyNetwork:
    """The policy to begin with: the one that the run names, or a new one; UsageError where it does not fit."""
    if config.begin_with is not None:
        try:
            return load_policy_for(config.begin_with, material.tables)[0]
        except ValueError as error:
            raise UsageError(str(error)) from None
    return PolicyNetwork(
        RetrieverConfig(
            dim=material.tables.dim,
            num_features=material.tables.num_features,
            feature_names=names_for(material.tables.num_features),
            width=config.width,
            layers=config.layers,
            dropout=0.2,
        )
    )


def warm_start(
    config: PolicyTrainConfig, network: PolicyNetwork, material: Material, rows: Any,
    reader: RunReader | None, limit_s: float, on_step: OnStep | None,
) -> dict[str, Any]:  # fmt: skip
    """Learn from labels, or from minimal sets that the reader finds, in place; steps, loss and share right."""
    tables = material.tables.take(rows)
    wanted, mined = None, {}
    if config.warm_start == "minimal":
        assert reader is not None
        starts = [
            np.flatnonzero(tables.labels[row] > 0)[:3].tolist()
            + [int(at) for at in np.argsort(-tables.features[row, :, 5])[:3] if tables.present[row, at]]
            for row in range(len(tables))
        ]
        sets = mine(tables, Readings(_Part(reader.readings, rows)), starts, keep_gold=True)
        reader.keep()
        wanted = sets.or_labels(tables)
        tables = replace(tables, needs_all=tables.needs_all | (sets.wanted.sum(1) > 1))
        mined = {"sets_found": round(100 * sets.found, 2), "rounds": sets.rounds}
    share = 1.0 if config.algorithm == "supervised" else 0.3
    records = train_supervised(
        network, tables,
        SupervisedConfig(steps=max(1, config.warm_steps), seed=config.seed, limit_s=share * limit_s),
        wanted=wanted, on_step=on_step,
    )  # fmt: skip
    last = records[-20:]
    return mined | {
        "steps": len(records),
        "loss": round(float(np.mean([record["loss"] for record in last])), 4),
        "right": round(float(np.mean([record["right"] for record in last])), 4),
    }


def learn(
    config: PolicyTrainConfig, network: PolicyNetwork, material: Material, rows: Any,
    reader: RunReader | None, limit_s: float, learned: Kept, place: LoopPlace | None, warm: list[dict[str, float]],
) -> tuple[PolicyNetwork, dict[str, Any]]:  # fmt: skip
    """Learn by reward for at most `limit_s`; the policy and its returns. A plain loop goes on from `place`."""
    episode = EpisodeConfig(reward=config.reward)
    iterations = config.steps or 1_000_000
    if config.algorithm == "ppo":
        return _learn_by_rllib(config, network, material, rows, iterations, limit_s, learned)
    assert reader is not None and place is not None
    readings = Readings(_Part(reader.readings, rows))
    loop = PolicyLoop(
        network, material.tables.take(rows), readings,
        LoopConfig(
            algorithm=config.algorithm, episode=episode, questions=config.questions, lr=config.lr,
            seed=config.seed, anchor_weight=0.02,
        ),
    )  # fmt: skip
    if learned.rows:
        place.restore(loop)
        del learned.rows[loop.iteration :]

    def on_step(record: dict[str, float]) -> None:
        learned(record)
        if place.keep(loop, warm, learned.rows):
            reader.keep()

    left = iterations - loop.iteration
    _, alarm = loop.run(left, limit_s=limit_s, on_step=on_step) if left > 0 else ([], [])
    reader.keep()
    return loop.network, _learned(learned.rows, alarm) | {"readings": reader.readings.num_read}


def place_of(config: PolicyTrainConfig, material: Material) -> LoopPlace | None:
    """Where a plain loop is kept; RLlib keeps checkpoints of its own, labels alone are quickly learned again."""
    if config.algorithm not in ("reinforce", "plain_ppo"):
        return None
    names = (
        "algorithm",
        "warm_start",
        "warm_steps",
        "width",
        "layers",
        "lr",
        "questions",
        "seed",
        "begin_with",
    )
    made_from = {name: getattr(config, name) for name in names} | {"reward": asdict(config.reward)}
    return LoopPlace(config.out / "work", made_from | {"material": fingerprint(material)})


def _learn_by_rllib(
    config: PolicyTrainConfig, network: PolicyNetwork, material: Material, rows: Any,
    iterations: int, limit_s: float, on_step: OnStep | None,
) -> tuple[PolicyNetwork, dict[str, Any]]:  # fmt: skip
    from actors.reader_actor import close_reader, open_reader
    from infra.cluster import connect_ray
    from rl.ppo import PpoConfig, PpoJob

    work = config.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    material.save(work / "material", {})
    np.save(work / "rows.npy", rows)
    save_policy(network, work / "begin", {"unit": config.unit})
    connect_ray()
    reader = None
    # a name of the run's own: the next round of co-training has another reader
    name = f"reader-{hashlib.sha256(str(config.out.absolute()).encode()).hexdigest()[:12]}"
    if config.readings is None:
        memory = work / "readings.npz"
        reader = open_reader(name, work / "material", config.backbone, memory=memory)
    batch = max(64, config.questions * 8)
    job = PpoJob(
        work / "material", work / "rows.npy", network.config,
        PpoConfig(
            episode=EpisodeConfig(reward=config.reward), num_env_runners=config.runners, lr=config.lr,
            num_envs=config.questions, train_batch=batch, minibatch=min(256, batch), seed=config.seed,
        ),
        reader=reader, readings=config.readings, begin_with=work / "begin",
    )  # fmt: skip
    checkpoint = work / "checkpoint"
    try:
        if (checkpoint / "rllib_checkpoint.json").exists():
            job.restore(checkpoint)
        records, alarm = job.run(iterations, limit_s=limit_s, on_step=on_step, checkpoint=checkpoint)
        return job.network(), _learned(records, alarm)
    finally:
        job.close()
        close_reader(name)


def _learned(records: list[dict[str, float]], alarm: list[str]) -> dict[str, Any]:
    known = [record["episode_return"] for record in records if math.isfinite(record["episode_return"])]
    return {
        "iterations": len(records),
        "return_first": round(float(np.mean(known[:5])), 4) if known else None,
        "return_last": round(float(np.mean(known[-5:])), 4) if known else None,
        "alarm": alarm,
    }
