"""The runs of `infra.training.cotrain_gpu`: what each of them trains, on how many updates, and its marks.

A *mark* is reader and policy after some of the updates. Every run has as many, evenly spaced, so that dev questions
can choose where each should have stopped (`infra.training.cotrain_judge`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.backbone_job import MODEL, BackboneJob, absolute, build, finish
from infra.training.backbone_loop import LoopConfig, Place, read_curve, run_loop
from infra.training.cotrain import CoTrainConfig, contexts, cotrain
from infra.training.learners.joint import POLICY, JointSpec
from infra.training.learners.reader import ReaderSpec
from infra.training.policy_train import PolicyTrainConfig
from infra.training.side_by_side import tell, tell_row
from models.data_parallel import Group
from models.hf.adapter import adapter_folder
from models.hf.config import HfConfig
from models.retriever.storage import load_policy, save_policy
from models.subq.losses import LossWeights
from pipeline.prepare.files import write_triples
from pipeline.tasks.material import Material
from rl.episodes import Readings
from rl.loops import LoopConfig as PolicyLoopConfig
from rl.loops import PolicyLoop
from rl.paying import EpisodeConfig
from rl.reward import RewardConfig

WARM = "warm"
MARKS = "marks"


@dataclass(frozen=True, slots=True)
class Mark:
    """Reader and policy after `step` updates; no `adapter`: the reader is as it was."""

    step: int
    policy: Path
    adapter: Path | None = None


class Curves:
    """Points of training curves, told and noted under the part that is trained now; a child run without MLflow."""

    run_id = ""

    def __init__(self, note: Callable[[dict[str, Any]], None]) -> None:
        self._note = note
        self.part = ""

    @contextmanager
    def child(self, name: str, params: dict[str, Any]) -> Iterator[Curves]:
        """In the place of a child run: what is trained until its end goes by this name."""
        tell(f"{name} {json.dumps(params, default=str)}")
        self.part = name
        yield self
        self.part = ""

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Note a point of a policy's curve."""
        self._keep(step, values)

    def row(self, row: dict[str, float]) -> None:
        """Note each fifth point of a backbone job's curve."""
        if int(row["step"]) % 5 == 0 or int(row["step"]) == 1:
            self._keep(int(row["step"]), row)

    def iteration(self, row: dict[str, float]) -> None:
        """Note a policy's iteration."""
        self._keep(int(row.get("iteration", 0)), row)

    def _keep(self, step: int, values: dict[str, float]) -> None:
        short = {name: float(f"{value:.5g}") for name, value in values.items() if value == value}
        self._note({"part": self.part, **short, "step": step})
        if step % 10 == 0:
            tell_row(short)


def trained(
    name: str, given: argparse.Namespace, backbone: HfConfig, out: Path, curves: Curves
) -> tuple[list[Mark], dict[str, Any]]:
    """What the run was before its first update and at every mark, and the figures of training."""
    material, warm = given.work / "material", given.work / WARM
    begun, wanted = Mark(0, warm), marks_of(given.updates, given.marks)
    if name == "start":
        return [begun], {}
    if name == "reader":
        figures = _reader_alone(given, backbone, out, curves, wanted)
        marks = [Mark(at, warm, folder) for at, folder in marked(out).items()]
        return [begun, *marks], figures
    reward = RewardConfig(gamma=given.gamma, gold_weight=given.gold)
    if name == "policy":
        learning = PolicyTrainConfig(
            data=(material,), out=out / POLICY, algorithm="plain_ppo", warm_start="none", begin_with=warm,
            reward=reward, backbone=backbone, steps=given.updates, minutes=given.training / 60,
            questions=given.questions, lr=given.ppo_lr, seed=given.seed,
        )  # fmt: skip
        figures = learn_by_reward(learning, given.device, curves.iteration, wanted, given.group, given.epochs)
        return [begun, *(Mark(at, folder) for at, folder in marked(out / POLICY).items())], figures
    config = _both(name, given, backbone, out, reward)
    figures = cotrain(
        config,
        lambda job: run_job(job, given.device, curves.row, wanted if name == "joint" else ()),
        curves.child,
        lambda job, note: learn_by_reward(
            replace(job, lr=given.ppo_lr), given.device, note, (), given.group, given.epochs
        ),
    )
    if name == "joint":
        return [begun, *(Mark(at, path / POLICY, path) for at, path in marked(out).items())], figures
    rounds = [
        Mark((at + 1) * config.reader_steps, path / POLICY, path / "reader" / MODEL)
        for at, path in enumerate(sorted(out.glob("round-*")))
    ]
    return [begun, *rounds], figures


def marks_of(updates: int, count: int) -> list[int]:
    """The updates after which a run is kept: `count` of them, evenly spaced, the last one included."""
    return sorted({max(1, round(updates * (at + 1) / count)) for at in range(count)})


def marked(out: Path) -> dict[int, Path]:
    """What a run kept at its marks, by updates."""
    return {int(path.name): path for path in sorted((out / MARKS).glob("*"))}


def _reader_alone(
    given: argparse.Namespace, backbone: HfConfig, out: Path, curves: Curves, wanted: Sequence[int]
) -> dict[str, Any]:
    triples = out / "triples"
    if not (triples / "manifest.json").exists():
        made = contexts(
            Material.load(given.work / "material"),
            given.work / WARM,
            given.budget,
            given.oracle,
            given.seed,
            given.device,
        )
        write_triples(made, triples, {"policy": WARM, "seed": given.seed})
    spec = ReaderSpec(
        data=triples, backbone=backbone, steps=given.updates, lr=given.lr, judged=0,
        tokens_per_batch=given.tokens_per_batch, begin_with=adapter_folder(backbone), seed=given.seed,
    )  # fmt: skip
    loop = LoopConfig(steps=given.updates, limit_s=given.training)
    return run_job(
        BackboneJob(kind="reader", out=out, spec=spec, loop=loop), given.device, curves.row, wanted
    )


def _both(
    name: str, given: argparse.Namespace, backbone: HfConfig, out: Path, reward: RewardConfig
) -> CoTrainConfig:
    """Alternating: a round a mark, so that the updates of each part are those of the other runs."""
    material, warm = given.work / "material", given.work / WARM
    joint = JointSpec(
        data=material, backbone=backbone, policy=warm, steps=given.updates, lr=given.lr, budget=given.budget,
        questions=given.questions, policy_lr=given.policy_lr, losses=LossWeights(tokens=given.gamma),
        labels=given.labels,
        seed=given.seed,
    )  # fmt: skip
    steps, minutes = max(1, given.updates // given.marks), given.training / 60
    return CoTrainConfig(
        data=material, out=out, mode=name, backbone=backbone, policy=warm, rounds=given.marks,
        reader_steps=steps, policy_steps=steps, tokens_per_batch=given.tokens_per_batch,
        policy_minutes=max(0.05, minutes / given.marks * 0.8),
        reader_minutes=minutes if name == "joint" else max(0.05, minutes / given.marks * 0.5),
        reader_lr=given.lr, questions=given.questions,
        reward=reward, budget=given.budget, oracle=given.oracle, joint=joint if name == "joint" else None,
        seed=given.seed,
    )  # fmt: skip


def learn_by_reward(
    job: PolicyTrainConfig,
    device: str,
    on_step: Callable[[dict[str, float]], None],
    marks: Sequence[int] = (),
    group: int = 8,
    epochs: int = 4,
) -> dict[str, Any]:
    """A policy's part with network and reader on the device: episodes as in `policy_gpu`, made to answer.

    `train_policy` has its network on the CPU and asks for losses that a terminal reward does not need: at 128
    questions' readings an update that was most of its time, and the run never came to be judged.
    """
    from models.hf import HfBackbone
    from pipeline.tasks.reading import MaterialReader, voice_of
    from rl.episodes import OutcomeReader

    if job.begin_with is None:
        raise ValueError("begin_with: given none; allowed: a saved policy, which learning by reward improves")
    if (job.out / "config.json").exists() and set(marks) <= set(marked(job.out)):
        return dict(json.loads((job.out / "learned.json").read_text()))
    whole = Material.load(job.data[0])
    material = whole.take(whole.rows("train", answerable=True))
    network, _ = load_policy(job.begin_with, device)
    torch.manual_seed(job.seed)
    voice = voice_of(HfBackbone.load(job.backbone), adapter_folder(job.backbone) is not None)
    readings = Readings(OutcomeReader(MaterialReader(material, voice, want_loss=False)))
    loop = PolicyLoop(
        network, material.tables, readings,
        PolicyLoopConfig(
            algorithm=job.algorithm, questions=job.questions, group=group, epochs=epochs, minibatch=1024,
            lr=job.lr, seed=job.seed, entropy_weight=0.003, anchor_weight=0.02,
            episode=EpisodeConfig(
                reward=job.reward, budget_low=32, budget_high=256, max_choices=8, give_up_margin=math.inf
            ),
        ),
        device,
    )  # fmt: skip
    about = {
        "algorithm": job.algorithm,
        "unit": job.unit,
        "seed": job.seed,
        "begun_with": job.begin_with.name,
    }

    def told(record: dict[str, float]) -> None:
        on_step(record)
        if loop.iteration in marks:
            save_policy(loop.network, job.out / MARKS / f"{loop.iteration:06d}", about)

    records, alarm = loop.run(job.steps, limit_s=60 * job.minutes, on_step=told)
    if marks and loop.iteration not in marks:  # the time was up
        save_policy(loop.network, job.out / MARKS / f"{loop.iteration:06d}", about)
    known = [record["episode_return"] for record in records if math.isfinite(record["episode_return"])]
    learning = {
        "iterations": loop.iteration, "alarm": alarm, "readings": readings.num_read,
        "asked": readings.num_asked,
        "return_first": round(float(np.mean(known[:5])), 4) if known else None,
        "return_last": round(float(np.mean(known[-5:])), 4) if known else None,
    }  # fmt: skip
    figures = {"algorithm": job.algorithm, "policy": str(job.out), "learning": learning}
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / "learned.json").write_text(json.dumps(figures))
    save_policy(loop.network, job.out, about)
    return figures


def run_job(
    job: BackboneJob,
    device: str,
    report: Callable[[dict[str, float]], None] = tell_row,
    marks: Sequence[int] = (),
) -> dict[str, Any]:
    """A backbone job in this process, its model kept at the marks too; the ends of its curve."""
    job = absolute(job)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    learner: Any = build(job, device)

    def told(row: dict[str, float]) -> None:
        report(row)
        if int(row["step"]) in marks:
            learner.write(job.out / MARKS / f"{int(row['step']):06d}", {})

    made_from: Mapping[str, Any] = {"kind": job.kind, "spec": str(job.spec), "steps": job.loop.steps}
    loop = replace(job.loop, report_every=1)
    run_loop(learner, loop, Place(folder=job.out, made_from=made_from, report=told), Group.current(device))
    finish(job, learner)
    # training rounds products; who loads a backbone afterwards compares it with itself more exactly
    torch.set_float32_matmul_precision("highest")
    curve = read_curve(job.out)
    if marks and len(curve) not in marks:  # the time was up
        learner.write(job.out / MARKS / f"{len(curve):06d}", {})
    tenth = max(1, len(curve) // 10)
    ends = {"first": curve[:tenth], "last": curve[-tenth:]}
    means = {
        f"{key}_{end}": round(float(np.mean([row[key] for row in rows])), 4)
        for key in ("loss", "gold_chosen", "stop_rate", "answers")
        if curve and key in curve[0]
        for end, rows in ends.items()
    }
    tokens = int(sum(row["num_tokens"] for row in curve))
    return {
        "kind": job.kind, "steps": len(curve), "seconds": curve[-1]["seconds"], "tokens": tokens, **means,
    }  # fmt: skip
