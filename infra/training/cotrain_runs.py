"""The runs of `infra.training.cotrain_gpu`: what each of them trains, and on how many updates."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.backbone_job import MODEL, BackboneJob, absolute, run_here
from infra.training.backbone_loop import LoopConfig, read_curve
from infra.training.cotrain import CoTrainConfig, contexts, cotrain
from infra.training.learners.joint import POLICY, JointSpec
from infra.training.learners.reader import ReaderSpec
from infra.training.policy_train import PolicyTrainConfig
from infra.training.policy_train import train as train_policy
from infra.training.side_by_side import tell, tell_row
from models.hf.adapter import adapter_folder
from models.hf.config import HfConfig
from models.subq.losses import LossWeights
from pipeline.prepare.files import write_triples
from pipeline.tasks.material import Material
from rl.reward import RewardConfig

WARM = "warm"


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
        """Note and tell a point of a backbone job's curve."""
        tell_row(row)
        self._keep(int(row["step"]), row)

    def iteration(self, row: dict[str, float]) -> None:
        """Note a policy's iteration, and tell each fifth."""
        number = int(row.get("iteration", 0))
        if number % 5 == 0:
            tell_row(row)
        self._keep(number, row)

    def _keep(self, step: int, values: dict[str, float]) -> None:
        short = {name: float(f"{value:.5g}") for name, value in values.items() if value == value}
        self._note({"part": self.part, **short, "step": step})


def trained(
    name: str, given: argparse.Namespace, backbone: HfConfig, out: Path, curves: Curves
) -> tuple[Path, Path | None, dict[str, Any]]:
    """The policy's folder, the adapter's (None: as it was), and the figures of training."""
    material, warm = given.work / "material", given.work / WARM
    minutes = max(0.2, given.training / 60)
    if name == "start":
        return warm, None, {}
    if name == "reader":
        triples = contexts(Material.load(material), warm, given.budget, 0.3, given.seed)
        if not (out / "triples" / "manifest.json").exists():
            write_triples(triples, out / "triples", {"policy": WARM, "seed": given.seed})
        spec = ReaderSpec(
            data=out / "triples", backbone=backbone, steps=given.updates, lr=given.lr, tokens_per_batch=8192,
            begin_with=adapter_folder(backbone), seed=given.seed,
        )  # fmt: skip
        loop = LoopConfig(steps=given.updates, limit_s=given.training)
        job = BackboneJob(kind="reader", out=out, spec=spec, loop=loop)
        return warm, out / MODEL, run_job(job, given.device, curves.row)
    reward = RewardConfig(gamma=given.gamma)
    if name == "policy":
        learning = PolicyTrainConfig(
            data=(material,), out=out / POLICY, algorithm="plain_ppo", warm_start="none", begin_with=warm,
            reward=reward, backbone=backbone, steps=given.updates, minutes=minutes, questions=given.questions,
            seed=given.seed,
        )  # fmt: skip
        return out / POLICY, None, train_policy(learning, on_step=curves.iteration)
    joint = JointSpec(
        data=material, backbone=backbone, policy=warm, steps=given.updates, lr=given.lr, budget=given.budget,
        questions=given.questions, policy_lr=given.policy_lr, losses=LossWeights(tokens=given.gamma),
        seed=given.seed,
    )  # fmt: skip
    config = CoTrainConfig(
        data=material, out=out, mode=name, backbone=backbone, policy=warm, rounds=given.rounds,
        reader_steps=max(1, given.updates // given.rounds), policy_steps=max(1, given.updates // given.rounds),
        policy_minutes=max(0.1, minutes / given.rounds * 0.7),
        reader_minutes=minutes if name == "joint" else max(0.1, minutes / given.rounds * 0.3),
        reader_lr=given.lr, questions=given.questions,
        reward=reward, budget=given.budget, joint=joint if name == "joint" else None, seed=given.seed,
    )  # fmt: skip
    figures = cotrain(config, lambda job: run_job(job, given.device, curves.row), curves.child)
    return Path(figures["policy"]), Path(figures["reader"]), figures


def run_job(
    job: BackboneJob, device: str, report: Callable[[dict[str, float]], None] = tell_row
) -> dict[str, Any]:
    """A backbone job in this process; the ends of its curve."""
    run_here(absolute(job), device, report)
    # training rounds products; who loads a backbone afterwards compares it with itself more exactly
    torch.set_float32_matmul_precision("highest")
    curve = read_curve(job.out)
    tenth = max(1, len(curve) // 10)
    ends = {"first": curve[:tenth], "last": curve[-tenth:]}
    means = {
        f"{key}_{end}": round(float(np.mean([row[key] for row in rows])), 4)
        for key in ("loss", "gold_chosen", "stop_rate", "answers")
        if curve and key in curve[0]
        for end, rows in ends.items()
    }
    return {"kind": job.kind, "steps": len(curve), "seconds": curve[-1]["seconds"], **means}
