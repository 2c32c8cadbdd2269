"""What a backbone is trained on and how, whoever trains it; and the miniature of it, for a try on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from infra.training.subq import SubqTrainConfig
from infra.training.subq_data import Ids, SubqData
from models.subq.config import SubqConfig
from models.subq.tokenizer import SubqTokenizer
from pipeline.prepare.needle_stream import NeedleStreamConfig
from pipeline.tasks.needle_composition import ComposedGrammar
from pipeline.tasks.needle_frames import FramedGrammar, frames_of

PHASES = ((4_096, 1_200), (16_384, 1_400))
FRAME_WINDOWS, FRAME_TOKENS = 2_000, 256


def recipe_data(folder: Path, frames: float = 0.5) -> SubqData:
    """The training part of a folder; its needles in composed wordings, a share `frames` in the text's own words."""
    data = SubqData.load(folder, "train")
    if not frames:
        return replace(data, grammar=ComposedGrammar())
    found = text_frames(data.tokens, data.tokenizer)
    # a text in another script has none
    return replace(data, grammar=FramedGrammar(found, frames) if len(found) > 1 else ComposedGrammar())


def text_frames(tokens: Ids, tokenizer: SubqTokenizer) -> list[str]:
    """Frames from windows spread evenly over a text; the same text gives the same frames."""
    stride = max(FRAME_TOKENS, len(tokens) // FRAME_WINDOWS)
    starts = range(0, max(1, len(tokens) - FRAME_TOKENS), stride)
    windows = (tokenizer.decode(tokens[at : at + FRAME_TOKENS].tolist()) for at in starts)
    return list(dict.fromkeys(frames_of(windows)))


def recipe_stream(
    seed: int, phases: tuple[tuple[int, int], ...] = PHASES, twins: float = 0.5, twins_alike: float = 0.0
) -> NeedleStreamConfig:
    """Needles of made and of real questions, many of them worded alike (docs/subq.md says why).

    twins_alike: the share of those whose owner shares a word with the owner of the needle that they are worded as.
    """
    return NeedleStreamConfig(
        seed=seed, real=0.1, twins=twins, twins_alike=twins_alike, anonymous=0.9, phases=phases
    )


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
