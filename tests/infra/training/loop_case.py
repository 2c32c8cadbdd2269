"""A run of the tiny sub-quadratic backbone, for one worker or each of two; few imports, as workers start often."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from infra.training.backbone_loop import LoopConfig, Place, read_curve, run_loop
from infra.training.learners.subq import SubqLearner
from infra.training.subq import SubqTrainConfig
from models.data_parallel import Group
from tests.infra.training.subq_case import MODEL as SUBQ
from tests.infra.training.subq_case import STREAM, small_data

STEPS, PARTS = 6, 2
LOOP = LoopConfig(steps=STEPS, accumulate=PARTS, save_every=2, report_every=2)


def subq_learner(folder: Path) -> SubqLearner:
    """The tiny backbone over made-up words, twelve parts in all."""
    stream = replace(STREAM, phases=((512, STEPS * PARTS),))
    config = SubqTrainConfig(lr=3e-3, warmup=1, bank=256, muon=False)
    return SubqLearner(SUBQ, small_data(), stream, config, folder, "cpu")


def subq_run(folder: Path, loop: LoopConfig = LOOP) -> list[dict[str, float]]:
    """A run of it in this worker's share; the whole curve."""
    place = Place(folder=folder, made_from={"run": "test"})
    run_loop(subq_learner(folder), loop, place, Group.current("cpu"))
    return read_curve(folder)


def joined(rank: int, size: int, port: int) -> None:
    """Enter a gloo group."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=120),
    )


def second(port: int, folder: str) -> None:
    """The other worker, a process of its own."""
    torch.set_num_threads(1)
    joined(1, 2, port)
    subq_run(Path(folder))
    torch.distributed.destroy_process_group()
