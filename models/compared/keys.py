"""Scores from the keys alone: their difference from the mean, their norm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from models.compared.base import ScoredMethod
from models.compared.trace import LayerTrace


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyDifference(ScoredMethod):
    """KeyDiff: minus the cosine between a key and the mean of all normalised keys, keys at their places."""

    source: ClassVar[str] = "arXiv 2504.15364"
    turned: bool = field(
        default=True, metadata={"help": "score keys at their places, or before rotary embedding"}
    )

    def score(self, layer: LayerTrace) -> Tensor:
        """See ScoredMethod.score."""
        keys = layer.turned_keys() if self.turned else layer.keys.float()
        anchor = normalize(keys, dim=-1).mean(1, keepdim=True)
        likeness: Tensor = cosine_similarity(keys, anchor, dim=-1)
        return -likeness


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyNorm(ScoredMethod):
    """Minus the key's length: short keys draw attention in many models (arXiv 2406.11430)."""

    source: ClassVar[str] = "arXiv 2406.11430"

    def score(self, layer: LayerTrace) -> Tensor:
        """See ScoredMethod.score."""
        length: Tensor = layer.keys.float().norm(dim=-1)
        return -length
