"""`dysra co-train`: reader and retriever trained in turn, or together.

Alternating: in each round the reader is adapted on what the policy chooses (Ray Train, as `train-backbone`), then
the policy is trained paid by that reader (as `train-retriever`). Joint: one loop, `infra.training.learners.joint`.
A round that is done is noted in its folder, and a run that was ended goes on with the next.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from infra.out_folder import same_run
from infra.training.backbone_job import MODEL, BackboneJob, absolute
from infra.training.backbone_loop import LoopConfig
from infra.training.learners.joint import POLICY, JointSpec
from infra.training.learners.reader import ReaderSpec
from infra.training.policy_train import PolicyTrainConfig
from infra.training.policy_train import train as train_policy
from models.hf.adapter import adapter_folder
from models.hf.config import HfConfig
from models.hf.loading import pick_device
from models.retriever.selecting import select
from models.retriever.storage import load_policy, load_policy_for
from models.retriever.table import GOLD
from pipeline.prepare.files import write_triples
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import target_text
from pipeline.tasks.contexts import text_of
from pipeline.tasks.material import Material
from pipeline.tasks.scores import holds_answer
from rl.episodes import fingerprint
from rl.reward import RewardConfig

MODES = ("alternating", "joint")
DONE, RUN = "done.json", "run.json"
RunJob = Callable[[BackboneJob], dict[str, Any]]
Child = Callable[[str, dict[str, Any]], AbstractContextManager[Any]]
Learn = Callable[[PolicyTrainConfig, Callable[[dict[str, float]], None]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CoTrainConfig:
    """One run of both."""

    data: Path = field(metadata={"help": "folder of material"})
    out: Path = field(metadata={"help": "folder of the run; started again it goes on"})
    mode: str = field(default="alternating", metadata={"help": ", ".join(MODES)})
    backbone: HfConfig = field(default_factory=HfConfig, metadata={"help": "the reader to begin with"})
    method: str = field(default="lora", metadata={"help": "how the reader is adapted: lora or full"})
    policy: Path | None = field(default=None, metadata={"help": "a policy to begin with; None: from labels"})
    rounds: int = field(default=3, metadata={"help": "rounds of both (alternating)"})
    reader_steps: int = field(
        default=200, metadata={"help": "updates of the reader in a round, or of a joint run"}
    )
    reader_lr: float = field(default=2e-4, metadata={"help": "peak learning rate of the reader"})
    reader_minutes: float = field(
        default=0.0,
        metadata={"help": "minutes of a reader's round, or of a joint run, at most (0: no limit)"},
    )
    accumulate: int = field(
        default=1,
        metadata={"help": "parts of an update of the reader, over all workers: a multiple of their number"},
    )
    checkpointing: bool = field(
        default=False,
        metadata={"help": "the reader's layers are computed again for the gradient: less memory, more time"},
    )
    tokens_per_batch: int = field(default=8192, metadata={"help": "tokens of a reader's part"})
    algorithm: str = field(
        default="plain_ppo", metadata={"help": "of a retriever's round: plain_ppo, reinforce, ppo"}
    )
    policy_steps: int = field(default=20, metadata={"help": "iterations of a retriever's round"})
    policy_minutes: float = field(default=10.0, metadata={"help": "minutes of a retriever's round, at most"})
    warm_steps: int = field(
        default=300, metadata={"help": "steps of the first policy's warm start from labels"}
    )
    questions: int = field(
        default=32, metadata={"help": "questions of a policy's iteration, or of a joint part"}
    )
    reward: RewardConfig = field(default_factory=RewardConfig, metadata={"help": "what the policy is paid"})
    budget: int = field(default=128, metadata={"help": "tokens of the contexts that the policy chooses"})
    oracle: float = field(
        default=0.3, metadata={"help": "share of a round's contexts that are the labelled sentence"}
    )
    joint: JointSpec | None = field(
        default=None, metadata={"help": "settings of a joint run; None: from these"}
    )
    runners: int = field(default=1, metadata={"help": "env runners of RLlib (ppo)"})
    judge: int = field(default=0, metadata={"help": "test questions that the reader answers after a round"})
    seed: int = field(default=0, metadata={"help": "of everything"})

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: given {self.mode!r}; allowed: {', '.join(MODES)}")
        if self.algorithm not in ("plain_ppo", "reinforce", "ppo"):
            raise ValueError(f"algorithm: given {self.algorithm!r}; allowed: plain_ppo, reinforce, ppo")
        for name in ("rounds", "reader_steps", "policy_steps", "questions", "budget", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if not self.reader_minutes >= 0:
            raise ValueError(f"reader_minutes: given {self.reader_minutes}; allowed: 0 (no limit) or more")
        for name in ("policy_minutes", "reader_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")
        if self.judge < 0:
            raise ValueError(f"judge: given {self.judge}; allowed: 0 (none) or more")
        if not 0 <= self.oracle <= 1:
            raise ValueError(f"oracle: given {self.oracle}; allowed: 0 to 1")


def cotrain(
    config: CoTrainConfig, run_job: RunJob, child: Child, learn: Learn = train_policy
) -> dict[str, Any]:
    """Train both; the figures of every round. `run_job` trains a backbone job, `child` opens a tracked run.

    `learn` trains a policy; another than `train_policy` may do so on another device.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    if config.mode == "joint":
        return _joint(config, run_job, child)
    material = Material.load(config.data)
    if config.policy is not None:
        load_policy_for(config.policy, material.tables)  # refused before the reader has learned anything
    same_run(config.out / RUN, _made_from(config, material))
    policy, backbone = config.policy, config.backbone
    adapter = adapter_folder(config.backbone) if config.method == "lora" else None
    rounds = []
    if policy is None:
        policy = config.out / "warm"
        _once(
            policy,
            lambda: _policy_round(config, backbone, config.out / "warm", None, None, child, "warm", learn),
        )
    for number in range(config.rounds):
        folder = config.out / f"round-{number:02d}"
        begin, reader_before, from_adapter = policy, backbone, adapter

        def read(folder: Path = folder, begin: Path = begin, before: HfConfig = reader_before,
                 adapted: Path | None = from_adapter, number: int = number) -> dict[str, Any]:  # fmt: skip
            return _reader_round(config, material, folder, begin, before, adapted, number, run_job, child)

        figures = {"round": number, "reader": _once(folder / "reader", read)}
        backbone, adapter = _reader_of(config, folder / "reader" / MODEL)
        reader = backbone

        def choose(folder: Path = folder, begin: Path = begin, reader: HfConfig = reader,
                   number: int = number) -> dict[str, Any]:  # fmt: skip
            name = f"round-{number:02d}-retriever"
            return _policy_round(config, reader, folder / POLICY, begin, number, child, name, learn)

        figures["retriever"] = _once(folder / POLICY, choose)
        policy = folder / POLICY
        rounds.append(figures)
    return {
        "mode": config.mode, "rounds": rounds, "policy": str(policy), "reader": str(adapter or backbone.model),
    }  # fmt: skip


def contexts(
    material: Material, policy: Path, budget: int, oracle: float, seed: int, device: str = "cpu"
) -> Iterator[Triple]:
    """What the reader of a round reads: the policy's own (sampled) choices, and some labelled sentences."""
    network, _ = load_policy(policy, device)
    rows = [int(row) for row in (*material.rows("train"), *material.rows("dev"))]
    chosen = select(network, material.tables.take(rows), budget, temperature=1.0, seed=seed, device=device)
    chance = random.Random(f"{seed}:contexts")
    for row, choice in zip(rows, chosen, strict=True):
        question = material.questions[row]
        gold = tuple(int(at) for at in np.flatnonzero(material.tables.labels[row] == GOLD))
        picks, kind = (gold, "oracle") if gold and chance.random() < oracle else (choice.picks, "chosen")
        sentences = question.chosen(picks)
        told = next((a for a in question.answers if holds_answer(text_of(sentences), [a])), None)
        yield Triple(
            question_id=question.question_id, dataset=question.dataset, split=question.split, kind=kind,
            question=question.text, sentences=sentences, answers=question.answers, tells=told is not None,
            target=target_text(told),
        )  # fmt: skip


def _reader_round(
    config: CoTrainConfig, material: Material, folder: Path, policy: Path, backbone: HfConfig, adapter: Path | None,
    number: int, run_job: RunJob, child: Child,
) -> dict[str, Any]:  # fmt: skip
    """The reader, adapted on what the policy chooses now."""
    made_from = {"policy": policy.name, "round": number, "seed": config.seed}
    seed, device = config.seed * 1000 + number, str(pick_device(config.backbone.device))
    triples = contexts(material, policy, config.budget, config.oracle, seed, device)
    write_triples(triples, folder / "triples", made_from)
    spec = ReaderSpec(
        data=folder / "triples", backbone=backbone, method=config.method, steps=config.reader_steps,
        lr=config.reader_lr, tokens_per_batch=config.tokens_per_batch, begin_with=adapter,
        accumulate=config.accumulate, checkpointing=config.checkpointing, seed=config.seed,
    )  # fmt: skip
    name = f"round-{number:02d}-reader"
    with child(name, {"steps": config.reader_steps, "method": config.method}) as tracker:
        job = BackboneJob(
            kind="reader", out=folder / "reader", spec=spec,
            loop=LoopConfig(
                steps=config.reader_steps, accumulate=config.accumulate, limit_s=60 * config.reader_minutes
            ),
            **_tracked(tracker),
        )  # fmt: skip
        return run_job(absolute(job))


def _policy_round(
    config: CoTrainConfig, backbone: HfConfig, out: Path, begin: Path | None, number: int | None,
    child: Child, name: str, learn: Learn,
) -> dict[str, Any]:  # fmt: skip
    """The policy, paid by the reader as it is now; without a beginning: from labels alone."""
    first = begin is None
    job = PolicyTrainConfig(
        data=(config.data,), out=out, algorithm="supervised" if first else config.algorithm,
        warm_start="labels" if first else "none", begin_with=begin, reward=config.reward, backbone=backbone,
        steps=config.policy_steps, minutes=config.policy_minutes, warm_steps=config.warm_steps,
        questions=config.questions, runners=config.runners, judge=0 if first else config.judge,
        seed=config.seed * 1000 + (number or 0),
    )  # fmt: skip
    with child(name, {"algorithm": job.algorithm}) as tracker:
        count = 0

        def note(record: dict[str, float]) -> None:
            nonlocal count
            count += 1
            tracker.metrics({n: v for n, v in record.items() if v == v}, step=count)

        return learn(job, note)


def _reader_of(config: CoTrainConfig, model: Path) -> tuple[HfConfig, Path | None]:
    """How the next part loads the reader of a round, and its adapter."""
    if config.method == "lora":
        return replace(config.backbone, adapter=str(model.absolute())), model.absolute()
    return replace(config.backbone, model=str(model.absolute()), adapter="none"), None


def _joint(config: CoTrainConfig, run_job: RunJob, child: Child) -> dict[str, Any]:
    spec = config.joint or JointSpec(
        data=config.data, backbone=config.backbone, policy=config.policy, method=config.method,
        steps=config.reader_steps, lr=config.reader_lr, questions=config.questions, budget=config.budget,
        accumulate=config.accumulate, checkpointing=config.checkpointing, seed=config.seed,
    )  # fmt: skip
    with child("joint", {"steps": spec.steps, "method": spec.method}) as tracker:
        loop = LoopConfig(steps=spec.steps, accumulate=spec.accumulate, limit_s=60 * config.reader_minutes)
        job = BackboneJob(kind="joint", out=config.out, spec=spec, loop=loop, **_tracked(tracker))
        figures = run_job(absolute(job))
    return {
        "mode": config.mode, "rounds": [figures], "reader": str(config.out / MODEL),
        "policy": str(config.out / MODEL / POLICY),
    }  # fmt: skip


def _tracked(tracker: Any) -> dict[str, Any]:
    """Where rank 0 of a job writes its curves."""
    return {"run_id": tracker.run_id} | getattr(tracker, "where", {})


def _once(folder: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, or what it gave when it was done before."""
    note = folder / DONE
    if note.exists():
        known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        return known
    figures = make()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = note.with_suffix(".partial")
    temporary.write_text(json.dumps(figures, default=str), encoding="utf-8")
    os.replace(temporary, note)
    return figures


def _made_from(config: CoTrainConfig, material: Material) -> dict[str, Any]:
    """What makes rounds those of one run; how many there are, and how long each may take, is free."""
    names = (
        "method", "reader_steps", "reader_lr", "accumulate", "tokens_per_batch", "algorithm", "policy_steps",
        "warm_steps", "questions", "reward", "budget", "oracle", "seed",
    )  # fmt: skip
    settings = asdict(config)
    return {name: settings[name] for name in names} | {
        "model": config.backbone.model,
        "adapter": config.backbone.adapter,
        "policy": None if config.policy is None else config.policy.name,
        "data": fingerprint(material),
    }


def about(config: CoTrainConfig) -> dict[str, Any]:
    """The settings as MLflow shows them."""
    return {name: value for name, value in asdict(config).items() if isinstance(value, int | float | str)}
