"""What a cache must know about one attention layer of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.rotary import RotaryTable

if TYPE_CHECKING:
    from models.cache.learned import LearnedWeights
    from models.cache.ranker import Ranker


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """Shape and rotary table of one layer; `window` is None where the layer sees everything."""

    index: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    scaling: float
    rotary: RotaryTable
    device: torch.device
    dtype: torch.dtype
    # queries of recorded questions `[num_heads, n, d]`, before rotary embedding, for the score question_bank
    questions: Tensor | None = field(default=None, compare=False)
    # the learned ranker of the model, for the score ranker
    ranker: Ranker | None = field(default=None, compare=False)
    # learned weights of the compressors projection and autoencoder
    learned: LearnedWeights | None = field(default=None, compare=False)
