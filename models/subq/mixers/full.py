"""Causal attention over everything before: the plain transformer that the others are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.subq.config import SubqConfig
from models.subq.mixers.sliding import Projections, rotary, turn


class FullAttention(nn.Module):
    """Quadratic in the length. State: all keys (before rotary) and values [B, t, H, d]; it grows."""

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.base = config.rotary_base
        self.project = Projections(config)

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `build_mixer`."""
        q, k, v = self.project.split(x)
        if state is not None:
            k, v = torch.cat((state[0].to(k.dtype), k), 1), torch.cat((state[1].to(v.dtype), v), 1)
        past = k.shape[1] - q.shape[1]
        cos, sin = rotary(torch.arange(k.shape[1], device=x.device), q.shape[-1], self.base)
        seen = None
        if past:
            rows = torch.arange(q.shape[1], device=x.device)[:, None] + past
            seen = torch.arange(k.shape[1], device=x.device) <= rows
        out = F.scaled_dot_product_attention(
            turn(q, cos[past:], sin[past:]).transpose(1, 2), turn(k, cos, sin).transpose(1, 2), v.transpose(1, 2),
            attn_mask=seen, is_causal=seen is None, scale=self.project.scale,
        )  # fmt: skip
        return self.project.out(out.transpose(1, 2).flatten(2)), (k, v)
