"""Train a retriever's policy over material: warm start, then REINFORCE or PPO paid by the reader; judge; save.

    dysra train-retriever --data build/policy/nq_open --algorithm supervised --out build/policy-nq

Training uses the training questions of the material only, judging its test questions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from infra.evaluation.policy_judge import choose, judge
from infra.out_folder import read_note, refuse_other
from infra.training.cards import policy_card
from infra.training.policy_data import PolicyDataConfig, cached_encode, make
from infra.training.policy_learning import Kept, OnStep, RunReader, learn, network_of, place_of, warm_start
from models.hf.config import HfConfig
from models.retriever.network import PolicyNetwork
from models.retriever.pair_reader import BESIDE
from models.retriever.storage import CONFIG, save_policy
from models.retriever.trust_files import TRUST, VERIFIER
from pipeline.errors import UsageError
from pipeline.tasks.material import Material
from rl.reward import RewardConfig

ALGORITHMS = ("supervised", "reinforce", "plain_ppo", "ppo")
WARM_STARTS = ("labels", "minimal", "none")
_SIMPLE = ("bm25", "dense", "hybrid", "oracle")
_STRANGE = ("arrays.npz", "curve.jsonl", "manifest.json", "states", BESIDE, TRUST, VERIFIER)
"""What other verbs write, and parts that a session would read with a policy that they were not made with."""


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
        if self.questions < 1:
            raise ValueError(f"questions: given {self.questions}; allowed: 1 or more")
        for name in ("train", "test", "steps", "warm_steps", "judge", "runners"):
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
    about = {
        "algorithm": config.algorithm, "unit": config.unit, "embedder": config.embedder, "seed": config.seed,
        "candidates": material.tables.num_candidates, "reward": asdict(config.reward),
        "data": [path.name for path in config.data], "training_questions": len(rows),
        "warm_start": config.warm_start,
    }  # fmt: skip
    if config.begin_with is not None:
        about |= {"begun_with": config.begin_with.name}
    _refuse_what_is_there(config.out, about)
    torch.manual_seed(config.seed)
    network, began = network_of(config, material), time.monotonic()
    limit_s = 60 * config.minutes
    tell(f"{len(rows):,} training questions, {sum(p.numel() for p in network.parameters()):,} weights")
    reader = None
    if config.readings is not None and not config.readings.is_file():
        raise UsageError(
            f"--readings {config.readings} is no file; `infra.training.policy_gpu` records readings"
        )
    if config.algorithm != "supervised" or config.warm_start == "minimal" or config.judge:
        reader = RunReader(config, material)
    figures: dict[str, Any] = {}
    warm, learned = Kept(on_step), Kept(on_step)
    place = place_of(config, material)
    begun = place.begun() if place is not None else None
    if begun is not None:
        warm.rows, learned.rows = begun["warm"], begun["learned"]
        tell(f"goes on after {len(learned.rows)} iterations of an unfinished run")
    elif config.warm_start != "none":
        figures["warm_start"] = warm_start(config, network, material, rows, reader, limit_s, warm)
        tell(f"warm start: {figures['warm_start']}")
    if config.algorithm != "supervised":
        left_s = max(10.0, limit_s - (time.monotonic() - began))
        network, figures["learning"] = learn(
            config, network, material, rows, reader, left_s, learned, place, warm.rows
        )
        tell(f"learning: {figures['learning']}")
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


def _refuse_what_is_there(out: Path, about: dict[str, Any]) -> None:
    """UsageError where `out` holds a policy of other settings, another model, or what would be read with it."""
    out.mkdir(parents=True, exist_ok=True)  # a place that cannot be is told before the training, not after it
    if strange := [name for name in _STRANGE if (out / name).exists()]:
        raise UsageError(
            f"{out} holds {', '.join(strange)}, no policy of this verb alone; give another --out"
        )
    if not (out / CONFIG).exists():
        return
    kept = read_note(out / CONFIG).get("about")
    if not isinstance(kept, dict):
        raise UsageError(f"{out} holds a model that is no policy ({CONFIG}); give another --out")
    refuse_other(out, kept, json.loads(json.dumps(about, default=str)))


def judge_all(
    material: Material, network: PolicyNetwork, reader: RunReader | None, most: int, seed: int
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
