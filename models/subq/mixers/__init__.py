"""Mixers: causal layers that carry their state, so that segments of any size give what one pass gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from models.subq.mixers.full import FullAttention
from models.subq.mixers.gated_linear import GatedLinear
from models.subq.mixers.sliding import SlidingWindow
from models.subq.mixers.state_space import StateSpace

if TYPE_CHECKING:
    from models.subq.config import SubqConfig

__all__ = ["FullAttention", "GatedLinear", "MixerState", "SlidingWindow", "StateSpace", "build_mixer"]

MixerState = tuple[Tensor, ...]
"""What a mixer remembers of the past; None stands for the beginning of a stream."""

_KINDS: dict[str, type[nn.Module]] = {
    "sliding": SlidingWindow,
    "gated_linear": GatedLinear,
    "state_space": StateSpace,
    "full": FullAttention,
}


def build_mixer(name: str, config: SubqConfig) -> nn.Module:
    """The mixer of that name; `mixer(x [B, T, D], state | None) -> (y [B, T, D], state)`."""
    return _KINDS[name](config)
