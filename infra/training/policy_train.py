"""Train a retriever's policy over material: warm start, then REINFORCE or PPO paid by the reader; judge; save.

    dysra train-retriever --data build/policy/nq_open --algorithm supervised --out build/policy-nq

Training uses the training questions of the material only, judging its test questions.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.evaluation.policy_judge import choose, judge
from infra.training.cards import policy_card
from infra.training.policy_data import PolicyDataConfig, cached_encode, make
from infra.training.policy_resume import LoopPlace
from models.hf.config import HfConfig
from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork
from models.retriever.storage import load_policy, save_policy
from models.retriever.supervised import SupervisedConfig, train_supervised
from models.retriever.table import names_for
from pipeline.errors import UsageError
from pipeline.tasks.material import Material
from rl.episodes import OutcomeReader, Readings, fingerprint
from rl.loops import LoopConfig, PolicyLoop
from rl.minimal_sets import mine
from rl.paying import EpisodeConfig
from rl.reward import RewardConfig

ALGORITHMS = ("supervised", "reinforce", "plain_ppo", "ppo")
WARM_STARTS = ("labels", "minimal", "none")
_SIMPLE = ("bm25", "dense", "hybrid", "oracle")
OnStep = Callable[[dict[str, float]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyTrainConfig:
    """One run of `dysra train-retriever`."""

    data: tuple[Path, ...] = field(metadata={"help": "folders of material, or files of questions"})
    out: Path = field(metadata={"help": "folder of the policy that is written"})
    algorithm: str = field(default="ppo", metadata={"help": ", ".join(ALGORITHMS)})
    warm_start: str = field(default="labels", metadata={"help": ", ".join(WARM_STARTS)})
    begin_with: Path | None = field(default=None, metadata={"help": "a saved policy to go on from"})
    reward: RewardConfig = field(default_factory=RewardConfig, metadata={"help": "see RewardConfig"})
    backbone: HfConfig = field(default_factory=HfConfig, metadata={"help": "the reader"})
    embedder: str = field(default="minilm", metadata={"help": "for files of questions"})
    unit: str = field(default="sentence", metadata={"help": "for files of questions"})
    train: int = field(default=600, metadata={"help": "training questions of a file, at most"})
    test: int = field(default=200, metadata={"help": "test questions of a file, at most"})
    steps: int = field(
        default=0, metadata={"help": "iterations of learning by reward (0: until the time is up)"}
    )
    minutes: float = field(default=30.0, metadata={"help": "time for learning, both parts together"})
    warm_steps: int = field(default=500, metadata={"help": "steps of the warm start"})
    width: int = field(default=96, metadata={"help": "width of the network"})
    layers: int = field(default=1, metadata={"help": "attention layers of the network"})
    lr: float = field(default=2e-4, metadata={"help": "learning rate of REINFORCE and PPO"})
    questions: int = field(default=32, metadata={"help": "questions of an iteration"})
    runners: int = field(default=1, metadata={"help": "env runners of RLlib"})
    readings: Path | None = field(
        default=None,
        metadata={"help": "recorded readings (npz); RLlib then needs no reader, the others ask less"},
    )
    judge: int = field(
        default=0, metadata={"help": "test questions that the reader answers at the end (0: none)"}
    )
    seed: int = field(default=0, metadata={"help": "of everything"})
    command: str = field(default="", metadata={"help": "shown on the policy's card"})

    def __post_init__(self) -> None:
        for name, allowed in (("algorithm", ALGORITHMS), ("warm_start", WARM_STARTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: given {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not self.data:
            raise ValueError(
                "data: given none; allowed: one or more folders of material or files of questions"
            )
        if self.algorithm == "supervised" and self.warm_start == "none":
            raise ValueError("warm_start: given none with algorithm supervised; allowed: labels, minimal")
        if not self.minutes > 0:
            raise ValueError(f"minutes: given {self.minutes}; allowed: above 0")
        for name in ("steps", "warm_steps", "judge", "runners"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 or more")


def open_material(config: PolicyTrainConfig) -> Material:
    """The material of all given folders and files, joined."""
    parts = []
    for path in config.data:
        if not path.exists():
            raise UsageError(
                f"--data {path} does not exist; give a folder of material or a file of questions"
            )
        if path.is_dir():
            parts.append(Material.load(path))
            continue
        from infra.evaluation.qa_sources import open_source
        from infra.training.reader_data import gemma_counter

        made_as = PolicyDataConfig(
            train=config.train, test=config.test, unit=config.unit, embedder=config.embedder, seed=config.seed
        )
        made, _ = make(open_source(path), made_as, cached_encode(made_as), gemma_counter())
        if made is None:
            raise UsageError(f"--data {path}: no question of it can be used")
        parts.append(made)
    return Material.join(parts)


def train(
    config: PolicyTrainConfig, on_step: OnStep | None = None, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Train, judge and save; the figures of the run. Raises UsageError where the material cannot be trained on."""
    tell = say or (lambda text: None)
    material = open_material(config)
    rows = material.rows("train")
    if not len(rows):
        raise UsageError(f"{', '.join(map(str, config.data))}: no training question among {len(material)}")
    torch.manual_seed(config.seed)
    network, began = _network(config, material), time.monotonic()
    limit_s = 60 * config.minutes
    tell(f"{len(rows):,} training questions, {sum(p.numel() for p in network.parameters()):,} weights")
    reader = None
    if config.readings is not None and not config.readings.is_file():
        raise UsageError(
            f"--readings {config.readings} is no file; `infra.training.policy_gpu` records readings"
        )
    if config.algorithm != "supervised" or config.warm_start == "minimal" or config.judge:
        reader = _Reader(config, material)
    figures: dict[str, Any] = {}
    warm, learned = _Kept(on_step), _Kept(on_step)
    place = _place(config, material)
    begun = place.begun() if place is not None else None
    if begun is not None:
        warm.rows, learned.rows = begun["warm"], begun["learned"]
        tell(f"goes on after {len(learned.rows)} iterations of an unfinished run")
    elif config.warm_start != "none":
        figures["warm_start"] = _warm(config, network, material, rows, reader, limit_s, warm)
        tell(f"warm start: {figures['warm_start']}")
    if config.algorithm != "supervised":
        left_s = max(10.0, limit_s - (time.monotonic() - began))
        network, figures["learning"] = _learn(
            config, network, material, rows, reader, left_s, learned, place, warm.rows
        )
        tell(f"learning: {figures['learning']}")
    about = {
        "algorithm": config.algorithm, "unit": config.unit, "embedder": config.embedder, "seed": config.seed,
        "candidates": material.tables.num_candidates, "reward": asdict(config.reward),
        "data": [path.name for path in config.data], "training_questions": len(rows),
    }  # fmt: skip
    about |= {"warm_start": config.warm_start}
    if config.begin_with is not None:
        about |= {"begun_with": config.begin_with.name}
    weights = sum(parameter.numel() for parameter in network.parameters())
    card = policy_card({**about, "weights": weights}, warm.rows, learned.rows, config.command)
    save_policy(network, config.out, about, card)
    if place is not None:
        place.done()
    figures["judged"] = judge_all(material, network, reader, config.judge, config.seed)
    return {
        "algorithm": config.algorithm,
        "policy": str(config.out),
        "questions": len(rows),
        "seconds": round(time.monotonic() - began, 1),
        "seed": config.seed,
        **figures,
    }


def judge_all(
    material: Material, network: PolicyNetwork, reader: _Reader | None, most: int, seed: int
) -> dict[str, Any]:
    """Recall at 64 and 128 tokens on the test questions, by data set; with a reader also F1 on the first `most`."""
    found: dict[str, Any] = {}
    for dataset in sorted({question.dataset for question in material.questions}):
        rows = material.rows("test", dataset, answerable=True)
        if not len(rows):
            continue
        part = rows[:most] if reader is not None and most else rows
        picked = material.take(part)
        for budget in (64, 128):
            for method in (*_SIMPLE, "policy", "filled"):
                chosen = choose(picked, method, budget, network=network, seed=seed)
                if reader is not None and most:
                    figures, _ = judge(picked, part, chosen, reader.readings)
                else:
                    from infra.evaluation.choice_recall import recall

                    figures = recall(picked.tables, chosen)
                found.setdefault(dataset, {}).setdefault(method, {})[str(budget)] = figures
    return found


class _Kept:
    """Hands every record of a part on, and keeps it for the card."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step = on_step
        self.rows: list[dict[str, float]] = []

    def __call__(self, record: dict[str, float]) -> None:
        self.rows.append(record)
        if self._on_step is not None:
            self._on_step(record)


class _Reader:
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


def _network(config: PolicyTrainConfig, material: Material) -> PolicyNetwork:
    if config.begin_with is not None:
        try:
            network, _ = load_policy(config.begin_with)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if network.config.dim != material.tables.dim:
            raise UsageError(
                f"{config.begin_with} knows vectors of {network.config.dim}, the material has {material.tables.dim}"
            )
        return network
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


def _warm(
    config: PolicyTrainConfig, network: PolicyNetwork, material: Material, rows: Any,
    reader: _Reader | None, limit_s: float, on_step: OnStep | None,
) -> dict[str, Any]:  # fmt: skip
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


def _learn(
    config: PolicyTrainConfig, network: PolicyNetwork, material: Material, rows: Any,
    reader: _Reader | None, limit_s: float, learned: _Kept, place: LoopPlace | None, warm: list[dict[str, float]],
) -> tuple[PolicyNetwork, dict[str, Any]]:  # fmt: skip
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


def _place(config: PolicyTrainConfig, material: Material) -> LoopPlace | None:
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
