"""Layers computed again for the gradient: the same losses and gradients, and less held on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.training.backbone_job import BackboneJob, build
from infra.training.learners.joint import JointSpec
from infra.training.learners.landmark import LandmarkSpec
from infra.training.learners.latents import LatentsSpec
from infra.training.learners.subq import SubqLearner
from infra.training.reader_latents_data import groups, save
from infra.training.subq import SubqTrainConfig
from tests.infra.training.learning_case import material, reader, triples
from tests.infra.training.subq_case import MODEL, STREAM, small_data
from tests.infra.training.test_landmark import world

Found = tuple[float, list[Tensor | None], int]


def moved(learner: Any) -> Any:
    """The learner with weights of its own: an adapter's second half begins as nothing."""
    for at, parameter in enumerate(learner.parameters):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(at))
    return learner


def gradients(learner: Any, part: Any = None) -> Found:
    """The loss of a part (else the first), each parameter's gradient, and the bytes that forward kept for it."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in learner.parameters}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    part = next(learner.parts([0])) if part is None else part
    for parameter in learner.parameters:
        parameter.grad = None
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _, _ = learner.loss(part, 3, 0.1)
    torch.manual_seed(1)  # what is computed again must not draw from here
    loss.backward()
    return loss.item(), [each.grad for each in learner.parameters], sum(kept.values())


def same(plain: Found, again: Found) -> None:
    """Loss and gradients are equal, and fewer bytes were kept."""
    assert again[0] == plain[0]
    assert any(grad is not None for grad in plain[1])
    for one, other in zip(plain[1], again[1], strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.allclose(one, other, atol=1e-6, rtol=1e-6)
    assert again[2] < 0.7 * plain[2]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as-it-is"),
        pytest.param({"lookahead": 8, "lookbehind": 8}, id="around"),
        pytest.param({"lower_mixers": ("gated_linear", "state_space")}, id="other-mixers"),
        pytest.param({"retrieval": "token"}, id="token"),
    ],
)
def test_subq_blocks_computed_again_give_the_same_gradient(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Of every mixer and way of choosing; forcing and reading of others hang on the part's number as before."""
    shape = replace(MODEL, lower_blocks=2, upper_blocks=2, **changes)
    config = SubqTrainConfig(lr=3e-3, warmup=1, bank=256, muon=False, joined=True)
    found = []
    for again in (False, True):
        learner = SubqLearner(
            shape, small_data(), STREAM, config, tmp_path / str(again), "cpu", checkpointing=again
        )
        found.append(gradients(learner, next(learner.parts([3]))))
    same(*found)


@pytest.mark.parametrize("method", ["lora", "mixer"])
def test_landmark_layers_computed_again_give_the_same_gradient(tmp_path: Path, method: str) -> None:
    """Of an adapted decoder and of a mixer over a frozen one; dropout that a decoder may have stays off."""
    found = []
    for again in (False, True):
        spec = LandmarkSpec(
            data=triples(tmp_path / "triples", count=40), backbone=reader(tmp_path), method=method, dim=16,
            questions=12, inner=64, rank=4, dev_every=0, checkpointing=again,
        )  # fmt: skip
        found.append(gradients(moved(build(BackboneJob(kind="landmark", out=tmp_path, spec=spec), "cpu"))))
    same(*found)


@pytest.mark.parametrize("form", ["full", "latents"])
def test_reading_a_compressed_cache_computed_again_gives_the_same_gradient(tmp_path: Path, form: str) -> None:
    """The memory's layers take the same pairs again; what questions read of a context keeps its gradient."""
    passages, questions = world(24)
    for split, most in (("train", 4), ("test", 1)):
        save(list(groups(passages, questions, split, most, 5)), tmp_path / f"{split}.json.xz")
    found = []
    for again in (False, True):
        spec = LatentsSpec(
            data=tmp_path, backbone=reader(tmp_path), forms=(form,), keeps=(0.4,), full_share=0.0,
            passages=(4,), rank=4, checkpointing=again,
        )  # fmt: skip
        found.append(gradients(moved(build(BackboneJob(kind="latents", out=tmp_path, spec=spec), "cpu"))))
    same(*found)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_joint_training_computed_again_gives_the_same_gradient(tmp_path: Path, method: str) -> None:
    """Of the reader, adapted or tuned as a whole, and of the chooser; arms are drawn from the part's number."""
    data, found = material(tmp_path / "material"), []
    for again in (False, True):
        spec = JointSpec(
            data=data, backbone=reader(tmp_path), method=method, questions=8, rank=4, width=32,
            checkpointing=again,
        )  # fmt: skip
        learner: Any = build(BackboneJob(kind="joint", out=tmp_path, spec=spec), "cpu")
        found.append(gradients(moved(learner) if method == "lora" else learner))
    same(*found)


def test_a_frozen_decoder_has_nothing_to_compute_again(tmp_path: Path) -> None:
    """It is refused, and the error names the methods that have."""
    with pytest.raises(ValueError, match="allowed with lora and mixer"):
        LandmarkSpec(data=tmp_path, checkpointing=True)
