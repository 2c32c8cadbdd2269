"""What a backbone is trained on and how, whoever trains it; and the miniature of it, for a try on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from infra.training.subq import SubqTrainConfig
from infra.training.subq_data import SubqData
from models.subq.config import SubqConfig
from pipeline.prepare.needle_stream import NeedleStreamConfig
from pipeline.tasks.needle_composition import ComposedGrammar

PHASES = ((4_096, 1_200), (16_384, 1_400))


def recipe_data(folder: Path) -> SubqData:
    """The training part of a folder, its needles in composed wordings."""
    return replace(SubqData.load(folder, "train"), grammar=ComposedGrammar())


def recipe_stream(
    seed: int, phases: tuple[tuple[int, int], ...] = PHASES, twins: float = 0.4
) -> NeedleStreamConfig:
    """Needles of made and of real questions, many of them worded alike (docs/subq.md says why)."""
    return NeedleStreamConfig(seed=seed, real=0.15, twins=twins, phases=phases)


Recipe = tuple[SubqConfig, NeedleStreamConfig, SubqTrainConfig]


def tiny_form(model: SubqConfig, stream: NeedleStreamConfig, train: SubqTrainConfig) -> Recipe:
    """The same recipe with a model and sequences that a CPU can train in minutes."""
    return (
        replace(
            model, width=64, lower_blocks=1, upper_blocks=1, head_dim=16, feed_forward=128, window=32, chunk=32,
            encoder_heads=4, landmark_dim=32, top_k=2, near=2, context_tokens=512,
        ),
        replace(
            stream, tokens=1_024, targets=256, phases=((512, 1),), longer=0.0, longest=512, chunk=32, far=3,
            per_4096=40,
        ),
        replace(train, lr=4e-3, warmup=10, bank=1_024),
    )  # fmt: skip
