"""The loop of train-backbone: it learns, two workers do the steps of one, an ended run goes on as it was."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infra.training.backbone_job import MODEL, BackboneJob, build, run_here, work
from infra.training.backbone_loop import (
    CURVE,
    PEAK_FLOPS,
    LoopConfig,
    LossIsNoNumber,
    Place,
    _measured,
    read_curve,
    run_loop,
    states,
)
from infra.training.learners.landmark import LandmarkSpec
from infra.training.learners.reader import ReaderSpec
from infra.training.learners.subq import SubqSpec, stretched
from infra.training.subq import SubqTrainConfig
from infra.training.train_two_gpus import compare
from models.data_parallel import Group
from models.hf import HfBackbone, HfConfig
from tests.infra.training.learning_case import reader, triples
from tests.infra.training.loop_case import LOOP, STEPS, joined, second, subq_learner, subq_run
from tests.infra.training.token_files import token_files

ROOT = Path(__file__).parents[3]


def same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """The curves agree in every term."""
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        for term in ("loss", "language", "answers", "contrastive", "norm", "num_tokens"):
            assert row[term] == pytest.approx(wanted[term], rel=1e-4), (row["step"], term)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The undisturbed run of one worker."""
    return subq_run(tmp_path_factory.mktemp("whole"))


def test_two_workers_do_the_steps_of_one(whole: list[dict[str, float]], tmp_path: Path) -> None:
    """Gloo, two processes: losses, gradients and token counts agree at every step, and so do the saved states."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    other = multiprocessing.get_context("spawn").Process(target=second, args=(port, str(tmp_path)))
    other.start()
    try:
        joined(0, 2, port)
        same(subq_run(tmp_path), whole)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        other.join(60)
    assert other.exitcode == 0
    found = compare(read_curve(tmp_path), whole, 2, skip=1)
    assert found["loss_apart_most"] < 1e-4 and found["scaling_efficiency"] > 0


def test_run_that_was_ended_goes_on_with_the_same_curve(
    whole: list[dict[str, float]], tmp_path: Path
) -> None:
    """Ended after step 5, saved at step 4: step 5 is done again, and the rest is as if nothing had happened."""
    cut = subq_learner(tmp_path)
    ended = cut.update

    def update(step: int, progress: float, group: Group) -> dict[str, float]:
        if step == 5:
            raise KeyboardInterrupt
        return ended(step, progress, group)

    cut.update = update  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run_loop(cut, LOOP, Place(folder=tmp_path, made_from={"run": "test"}), Group())
    assert [path.name for path in states(tmp_path)] == ["step-00000002.pt", "step-00000004.pt"]
    states(tmp_path)[-1].with_name("step-00000005.pt").write_bytes(b"cut off by a full disk")
    same(subq_run(tmp_path), whole)
    with pytest.raises(ValueError, match="another run"):
        run_loop(subq_learner(tmp_path), LOOP, Place(folder=tmp_path, made_from={"run": "b"}), Group())
    curve = (tmp_path / CURVE).read_bytes()
    (tmp_path / CURVE).write_bytes(curve + b'{"step": 9, "lo')
    same(read_curve(tmp_path), whole)  # a line that a full disk cut off
    for path in states(tmp_path):
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"none of its \d saved states can be read"):
        subq_run(tmp_path)
    assert (tmp_path / CURVE).read_bytes().startswith(curve)


def test_a_run_that_diverges_says_so_and_keeps_its_state(tmp_path: Path) -> None:
    """A loss that is no number is an error that names the rate as its cause, not a traceback."""
    learner = subq_learner(tmp_path)
    plain = learner.loss

    def loss(part: Any, number: int, progress: float) -> Any:
        value, terms, count = plain(part, number, progress)
        return value * (float("nan") if number >= 2 * LOOP.accumulate else 1.0), terms, count

    learner.loss = loss  # type: ignore[method-assign]
    with pytest.raises(LossIsNoNumber, match="lower learning rate"):
        run_loop(learner, LOOP, Place(folder=tmp_path, made_from={"run": "test"}), Group())
    assert [path.name for path in states(tmp_path)] == ["step-00000002.pt"]


def test_parts_that_workers_cannot_share_are_refused() -> None:
    """Three parts for two workers would leave one idle and weigh the other twice."""
    with pytest.raises(ValueError, match="multiple of the workers"):
        Group(0, 2, "cpu").mine(3)


@pytest.mark.parametrize(("device", "share"), [("NVIDIA H200", 0.25), ("Some other card", 0.0)])
def test_share_of_the_peak_counts_all_workers_operations(
    monkeypatch: pytest.MonkeyPatch, device: str, share: float
) -> None:
    """Tokens a second of all, times operations a token, over the dense peak of all devices; 0 of an unknown one."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: device)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda name: 7)
    group: Any = SimpleNamespace(device="cuda:0", size=2)
    learner: Any = SimpleNamespace(flops_per_token=lambda: 1e9)
    peak = dict(PEAK_FLOPS)["H200"]
    row = _measured({"num_tokens": 0.5 * peak / 1e9}, learner, 1.0, group)
    assert row["peak_share"] == pytest.approx(share) and row["peak_bytes"] == 7


def test_phases_keep_their_shares_when_a_run_is_stretched() -> None:
    """A shorter run has the same curriculum, in fewer batches."""
    assert stretched(((4096, 1200), (16384, 1400)), 26) == ((4096, 12), (16384, 14))
    assert stretched(((4096, 1200), (16384, 1400)), 1) == ((16384, 1),)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[HfConfig, Path]:
    """A tiny reader and its triples."""
    folder = tmp_path_factory.mktemp("toy")
    return reader(folder), triples(folder / "triples")


@pytest.mark.parametrize(("method", "lr"), [("full", 3e-3), ("lora", 1e-2)])
def test_adaptation_learns_to_read(
    toy: tuple[HfConfig, Path], tmp_path: Path, method: str, lr: float
) -> None:
    """Held-out answers cost less than half of the first loss; the saved model loads; the card tells the curve."""
    config, data = toy
    spec = ReaderSpec(
        data=data, backbone=config, method=method, steps=40, lr=lr, rank=8, alpha=64, tokens_per_batch=1024
    )
    job = BackboneJob(kind="reader", out=tmp_path, spec=spec, loop=LoopConfig(steps=40, save_every=100))
    curve = run_here(job)
    told = (tmp_path / MODEL / "README.md").read_text()
    judged = float(next(line for line in told.splitlines() if "held_out_loss" in line).split("|")[2])
    assert judged < 0.5 * curve[0]["loss"]
    model = str(tmp_path / MODEL)
    loaded = HfBackbone.load(
        replace(config, adapter=model) if method == "lora" else replace(config, model=model)
    )
    assert loaded.identity != HfBackbone.load(config).identity


def test_layers_computed_again_give_the_same_gradient(toy: tuple[HfConfig, Path], tmp_path: Path) -> None:
    """With checkpointing every trained weight gets the gradient that it gets without; dropout is drawn alike."""
    config, data = toy
    found = []
    for again in (False, True):
        spec = ReaderSpec(
            data=data, backbone=config, method="lora", rank=4, tokens_per_batch=512, checkpointing=again
        )
        learner = build(BackboneJob(kind="reader", out=tmp_path, spec=spec), "cpu")
        for parameter in learner.parameters:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        loss, _, _ = learner.loss(next(learner.parts([0])), 0, 0.0)
        loss.backward()
        found.append([parameter.grad for parameter in learner.parameters])
        model = learner.model.get_base_model()  # type: ignore[attr-defined]
        assert model.is_gradient_checkpointing == again
    assert found[0]
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        assert torch.allclose(one, other, atol=1e-6)


def test_landmark_head_learns_what_tells(toy: tuple[HfConfig, Path], tmp_path: Path) -> None:
    """On held-out questions the telling text is found far oftener than by chance, with the decoder frozen."""
    config, data = toy
    spec = LandmarkSpec(data=data, backbone=config, steps=80, dim=16, questions=24)
    learner = build(BackboneJob(kind="landmark", out=tmp_path, spec=spec), "cpu")
    before = learner.recall((5,))["recall_5"]  # type: ignore[attr-defined]
    job = BackboneJob(kind="landmark", out=tmp_path, spec=spec, loop=LoopConfig(steps=80))
    curve = run_here(job)
    told = (tmp_path / MODEL / "README.md").read_text()
    after = float(next(line for line in told.splitlines() if "| recall_5" in line).split("|")[2])
    assert after > before + 0.2
    assert curve[-1]["contrastive"] < 0.7 * curve[0]["contrastive"]


def test_wrong_data_is_refused_with_what_to_do(toy: tuple[HfConfig, Path], tmp_path: Path) -> None:
    """A folder without triples, or without token files, is named."""
    with pytest.raises(ValueError, match="holds no triples"):
        run_here(BackboneJob(kind="reader", out=tmp_path, spec=ReaderSpec(data=tmp_path, backbone=toy[0])))
    with pytest.raises(ValueError, match="holds no train"):
        run_here(BackboneJob(kind="subq", out=tmp_path, spec=SubqSpec(data=tmp_path)))


@pytest.mark.slow
def test_trainer_that_was_killed_goes_on_with_the_same_curve(
    whole: list[dict[str, float]], tmp_path: Path
) -> None:
    """kill -9 in the middle: the next start of the same command ends with the undisturbed curve."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.infra.training.loop_case import *\n"
        "subq_run(Path(sys.argv[1]), replace(LOOP, save_every=1))"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not states(tmp_path) and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    assert len(read_curve(tmp_path)) < STEPS
    same(subq_run(tmp_path, replace(LOOP, save_every=1)), whole)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_worker_that_was_killed_is_replaced_and_the_curve_is_the_same(tmp_path: Path) -> None:
    """Ray Train, two workers, one ended by -9: the group is made again and ends where it would have."""
    from threading import Thread

    import psutil

    from actors.train_workers import WorkersConfig, train_on_workers

    data = token_files(tmp_path)
    loop = LoopConfig(steps=60, accumulate=2, save_every=5, report_every=60)
    train = SubqTrainConfig(muon=False, warmup=5)
    spec = SubqSpec(data=data, steps=60, accumulate=2, tiny=True, train=train)
    alone = run_here(BackboneJob(kind="subq", out=tmp_path / "alone", spec=spec, loop=loop))
    job = BackboneJob(kind="subq", out=tmp_path / "two", spec=spec, loop=loop)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            train_on_workers(work, {"job": job}, WorkersConfig(num_workers=2), job.out, "run")
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 300
    while not states(job.out) and time.monotonic() < deadline:
        time.sleep(0.02)
    # of this run's own Ray alone: others may train on this machine
    victims = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in _line(p)]
    assert victims, "no worker of Ray Train is running"
    victims[-1].kill()
    thread.join(400)
    assert not thread.is_alive() and not failed, failed
    same(read_curve(job.out), alone)
    assert (job.out / MODEL / "config.json").exists()


def _line(process: Any) -> str:
    """A process's command line; nothing for one that has ended."""
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
