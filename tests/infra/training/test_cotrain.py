"""Reader and retriever trained together in miniature: what tells is learned from the reader's loss alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.commands.backbone import run_job
from infra.tracking import TrackingConfig, track, track_child
from infra.training.backbone_job import MODEL, BackboneJob, build, run_here
from infra.training.backbone_loop import LoopConfig
from infra.training.cotrain import CoTrainConfig, contexts, cotrain
from infra.training.learners.joint import POLICY, JointLearner, JointSpec
from infra.training.learners.reader import ReaderSpec
from models.hf import HfBackbone, HfConfig
from models.retriever import load_policy
from models.retriever.selecting import select
from models.subq.losses import LossWeights
from pipeline.errors import UsageError
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader, voice_of
from tests.infra.training.learning_case import material, reader, triples


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[HfConfig, Path]:
    """A reader that has learned to read a little, and questions with their candidates."""
    folder = tmp_path_factory.mktemp("toy")
    spec = ReaderSpec(
        data=triples(folder / "triples"), backbone=reader(folder, layers=4), method="full", steps=40, lr=3e-3,
        tokens_per_batch=1024,
    )  # fmt: skip
    run_here(BackboneJob(kind="reader", out=folder / "run", spec=spec, loop=LoopConfig(steps=40)))
    adapted = HfConfig(model=str(folder / "run" / MODEL), adapter="none", device="cpu")
    return adapted, material(folder / "material")


def spec_of(toy: tuple[HfConfig, Path], **changes: Any) -> JointSpec:
    """A joint run over it."""
    fields: dict[str, Any] = {
        "data": toy[1], "backbone": toy[0], "method": "full", "steps": 45, "lr": 1e-3, "policy_lr": 3e-3,
        "questions": 12, "width": 32, "budget": 400,
    }  # fmt: skip
    return JointSpec(**(fields | changes))


def test_joint_training_learns_what_to_read_without_labels(
    toy: tuple[HfConfig, Path], tmp_path: Path
) -> None:
    """Chance chooses the telling sentence once in four or five; after 45 steps it is chosen nearly always."""
    job = BackboneJob(kind="joint", out=tmp_path, spec=spec_of(toy), loop=LoopConfig(steps=45))
    curve = run_here(job)
    assert np.mean([row["gold_chosen"] for row in curve[:8]]) < 0.5
    assert np.mean([row["gold_chosen"] for row in curve[-5:]]) > 0.8
    assert curve[-1]["answers"] < 0.7
    network, about = load_policy(tmp_path / MODEL / POLICY)
    assert about["algorithm"] == "joint"
    assert network.config.width == 32


def test_choice_is_hard_forward_and_soft_backward(toy: tuple[HfConfig, Path], tmp_path: Path) -> None:
    """Weights are one-hot on the first arm, their gradient is the softmax's; the same part draws the same arms."""
    learner = build(BackboneJob(kind="joint", out=tmp_path, spec=spec_of(toy)), "cpu")
    assert isinstance(learner, JointLearner)
    logits = torch.randn(5, 6, requires_grad=True)
    arms, weights = learner.choose(logits, 3, 0.0)
    assert torch.allclose(weights.detach(), torch.eye(4)[:1].expand(5, 4))
    again, _ = learner.choose(logits, 3, 0.0)
    assert torch.equal(arms, again)
    other, _ = learner.choose(logits, 4, 0.0)
    assert not torch.equal(arms, other)
    (weights * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert logits.grad is not None and float(logits.grad.abs().sum()) > 0
    assert float(logits.grad.sum(1).abs().max()) < 1e-5  # a softmax only moves weight


def test_terms_of_the_choice_can_be_switched_on(toy: tuple[HfConfig, Path], tmp_path: Path) -> None:
    """Each weight adds its term times it to the loss, and nothing else."""
    totals = {}
    for name in ("none", "tokens", "frobenius", "operations"):
        weights = LossWeights() if name == "none" else LossWeights(**{name: 0.5})
        learner = build(BackboneJob(kind="joint", out=tmp_path, spec=spec_of(toy, losses=weights)), "cpu")
        part = next(learner.parts([0]))
        loss, terms, _ = learner.loss(part, 0, 0.0)
        totals[name] = (float(loss.detach()), {key: float(value.detach()) for key, value in terms.items()})
    plain, terms = totals["none"]
    for name in ("tokens", "frobenius", "operations"):
        assert totals[name][0] - plain == pytest.approx(0.5 * terms[name], rel=1e-3)


@pytest.mark.model
def test_rounds_alternate_under_one_tracked_run_and_none_is_repeated(
    toy: tuple[HfConfig, Path], tmp_path: Path
) -> None:
    """Reader, retriever, with child runs of one parent; a second start trains nothing again, one of another seed is
    refused."""
    config = CoTrainConfig(
        data=toy[1], out=tmp_path / "run", backbone=toy[0], method="full", rounds=1, reader_steps=6, reader_lr=1e-3,
        policy_steps=2, warm_steps=10, questions=12, tokens_per_batch=1024,
    )  # fmt: skip
    tracking = TrackingConfig()
    with track(tracking, "co-train", tmp_path) as parent:

        def child(name: str, params: dict[str, Any]) -> Any:
            return track_child(tracking, parent, name, tmp_path, params)

        figures = cotrain(config, lambda job: run_job(job, 0, False), child)
        again = cotrain(config, refuse, child)
        with pytest.raises(UsageError, match="seed was 0, is 5"):
            cotrain(replace(config, seed=5), refuse, child)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_run(parent.run_id).info.experiment_id
    runs = client.search_runs([experiment])
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in runs}
    names = {"warm", "round-00-reader", "round-00-retriever"}
    assert parents == dict.fromkeys(names, parent.run_id) | {"co-train": None}
    assert figures["rounds"][0]["retriever"]["learning"]["iterations"] == 2
    assert [each["round"] for each in again["rounds"]] == [0]
    assert Path(figures["policy"]).joinpath("policy.safetensors").exists()


@pytest.mark.slow
@pytest.mark.model
def test_alternating_rounds_end_with_a_reader_that_answers_what_the_policy_chooses(tmp_path: Path) -> None:
    """New questions are answered over half by what the two rounds leave; a chance choice tells in one of four, and
    the reader that they began with answers nothing over the same choices."""
    begun = reader(tmp_path, gives_up=True)
    config = CoTrainConfig(
        data=material(tmp_path / "material", 96), out=tmp_path / "run", backbone=begun,
        method="full", rounds=2, reader_steps=40, reader_lr=3e-3, policy_steps=3, warm_steps=90, questions=32,
        tokens_per_batch=1024, budget=40, algorithm="plain_ppo",
    )  # fmt: skip
    with track(TrackingConfig(enabled=False), "co-train", tmp_path) as parent:

        def child(name: str, params: dict[str, Any]) -> Any:
            return track_child(TrackingConfig(enabled=False), parent, name, tmp_path, params)

        done = cotrain(config, lambda job: run_job(job, 0, False), child)
    made = Material.load(config.data)
    rows = [int(row) for row in made.rows("test")]
    chosen = select(load_policy(Path(done["policy"]))[0], made.tables.take(rows), 40)
    asked = [(row, choice.picks) for row, choice in zip(rows, chosen, strict=True)]

    def answered(backbone: HfConfig) -> float:
        read = MaterialReader(made, voice_of(HfBackbone.load(backbone), True), want_loss=False)
        return float(np.mean([f1 for f1, _, _ in read.outcomes(asked)]))

    assert answered(begun) < 0.1
    assert answered(replace(begun, model=done["reader"])) > 0.5
    first, last = (each["reader"] for each in done["rounds"])
    assert last["loss_last"] < first["loss_last"] < first["loss_first"]


def test_reader_of_a_round_reads_what_the_policy_chooses(toy: tuple[HfConfig, Path], tmp_path: Path) -> None:
    """Contexts are of training questions, within the budget, honest about what they tell; the seed decides."""
    made = Material.load(toy[1])
    run_here(BackboneJob(kind="joint", out=tmp_path, spec=spec_of(toy, steps=1), loop=LoopConfig(steps=1)))
    policy = tmp_path / MODEL / POLICY
    found = list(contexts(made, policy, 60, 0.5, 0))
    assert found == list(contexts(made, policy, 60, 0.5, 0))
    assert {each.question_id for each in found} == {
        q.question_id for q in made.questions if q.split == "train"
    }
    assert {each.kind for each in found} == {"oracle", "chosen"}
    for each in found:
        told = any(each.answers[0] in text for _, _, text in each.sentences)
        assert each.tells == told
        assert each.target == (f" {each.answers[0]}" if told else " unknown")


def refuse(job: BackboneJob) -> dict[str, Any]:
    """No job may be run."""
    raise AssertionError(f"{job.out} is trained again")
