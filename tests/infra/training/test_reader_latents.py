"""The reader that reads its compressed cache, in miniature: no test title in its data, and a loss that falls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from infra.training import reader_latents
from infra.training.backbone_job import MODEL, BackboneJob, build, run_here
from infra.training.backbone_loop import LoopConfig
from infra.training.learners.latents import LatentsLearner, LatentsSpec
from infra.training.reader_latents_data import Group, groups, load_groups, save
from models.reader_latents import Squeeze
from pipeline.errors import BadData
from tests.infra.training.learning_case import reader
from tests.infra.training.test_landmark import world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of training and of test questions."""
    folder = tmp_path_factory.mktemp("latents")
    passages, questions = world(24)
    for split, most in (("train", 4), ("test", 1)):
        save(list(groups(passages, questions, split, most, 5)), folder / f"{split}.json.xz")
    return folder


def test_training_groups_hold_their_golds_and_no_test_title(data: Path) -> None:
    """Golds come first, every context holds the answers, distractors fill up, test pages stay away."""
    train = load_groups(data / "train.json.xz")
    assert [len(group.asked) for group in train] == [4, 4, 4, 4]
    held_back = {f"Page {at}:" for at in range(0, 24, 4)}
    for group in train:
        assert group.num_golds == 4 and len(group.lines) == 5
        assert not any(line.startswith(title) for line in group.lines for title in held_back)
        context = group.context(5, "seed")
        assert context.count("\n") == 5
        assert all(answer[0] in context for answer in group.answers)
        assert group.context(1, "seed").count("\n") == 4  # never without a gold
        assert group.context(5, "seed") == context != group.context(5, "other")
    assert [group.num_golds for group in load_groups(data / "test.json.xz")] == [4]


def test_damaged_groups_are_refused(tmp_path: Path) -> None:
    """A file that is none is named with what makes one."""
    (tmp_path / "train.json.xz").write_bytes(b"no")
    with pytest.raises(BadData, match="reader_latents_data"):
        load_groups(tmp_path / "train.json.xz")


def test_contexts_are_held_as_drawn_and_the_same_part_is_the_same(data: Path, tmp_path: Path) -> None:
    """Forms and shares are those of the settings, some are full, a part follows from its number alone."""
    spec = LatentsSpec(
        data=data,
        backbone=reader(tmp_path),
        forms=("latents",),
        keeps=(0.2, 0.5),
        passages=(4,),
        full_share=0.3,
    )
    learner = build(BackboneJob(kind="latents", out=tmp_path, spec=spec, loop=LoopConfig()), "cpu")
    assert isinstance(learner, LatentsLearner)
    parts = list(learner.parts(range(30)))
    drawn = {part.squeeze for part in parts}
    held = {
        Squeeze(form="latents", keep=0.2),
        Squeeze(form="latents", keep=0.5),
        Squeeze(form="full", keep=1.0),
    }
    assert drawn == held
    again = next(learner.parts([17]))
    assert again.squeeze == parts[17].squeeze
    assert again.context.equal(parts[17].context)
    assert again.questions.ids.equal(parts[17].questions.ids)


def test_loss_falls_and_the_adapter_is_written(data: Path, tmp_path: Path) -> None:
    """Answers over contexts of which 80% of the bytes are gone cost a third less after 20 updates."""
    train = [Group("toy", group.lines[:1], 1, group.asked[:1], group.answers[:1]) for group in _first(data)]
    save(train, tmp_path / "train.json.xz")
    save(train[:1], tmp_path / "test.json.xz")
    spec = LatentsSpec(
        data=tmp_path, backbone=reader(tmp_path), forms=("latents",), keeps=(0.2,), passages=(1,), full_share=0.0,
        steps=20, accumulate=1, lr=2e-2, rank=8,
    )  # fmt: skip
    job = BackboneJob(kind="latents", out=tmp_path / "run", spec=spec, loop=LoopConfig(steps=20))
    curve = run_here(job)
    assert sum(row["answers"] for row in curve[-4:]) < 0.67 * sum(row["answers"] for row in curve[:4])
    assert (tmp_path / "run" / MODEL / "adapter_model.safetensors").exists()
    figures = json.loads((tmp_path / "run" / MODEL / "figures.json").read_text())["judged"]
    assert set(figures) == {"full", "golds", "latents_0.2"}
    assert set(figures["latents_0.2"]) == {"nats_all", "right_all", "nats_toy", "right_toy"}
    # a second call with other seconds left goes on, and what was done is told, not what was planned
    assert run_here(replace(job, loop=LoopConfig(steps=20, limit_s=60.0))) == curve
    short = replace(
        job, out=tmp_path / "short", loop=LoopConfig(steps=20, limit_s=1e-9), spec=replace(spec, judged=1)
    )
    assert len(run_here(short)) == 1
    about = json.loads((tmp_path / "short" / MODEL / "figures.json").read_text())["about"]
    assert (about["steps"], about["planned_steps"]) == (1, 20)


def test_gpu_script_judges_the_start_and_gathers(data: Path, tmp_path: Path) -> None:
    """The start is judged without a step; what is gathered names its runs and cells."""
    told = [
        "--data", str(data), "--reader", str(reader(tmp_path).model), "--work", str(tmp_path / "work"),
        "--out", str(tmp_path / "out"), "--device", "cpu", "--forms", "latents", "--keeps", "0.2",
        "--passages", "4", "--runs", "start", "--judged", "1",
    ]  # fmt: skip
    assert reader_latents.main([*told, "--run", "start"]) == 0
    assert reader_latents.gather(reader_latents._parser().parse_args(told), {}) == 0
    found = json.loads((tmp_path / "out" / "latents.json").read_text())
    assert set(found) == {"start"}
    assert set(found["start"]["judged"]) == {"full", "golds", "latents_0.2"}


def test_missing_data_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    """What to make and what is allowed is named."""
    with pytest.raises(ValueError, match="reader_latents_data"):
        spec = LatentsSpec(data=tmp_path, backbone=reader(tmp_path))
        build(BackboneJob(kind="latents", out=tmp_path, spec=spec, loop=LoopConfig()), "cpu")
    with pytest.raises(ValueError, match="allowed"):
        LatentsSpec(data=tmp_path, keeps=(0.0,))
    with pytest.raises(ValueError, match="full_share"):
        LatentsSpec(data=tmp_path, full_share=2.0)


def _first(data: Path) -> list[Group]:
    return load_groups(data / "train.json.xz")
