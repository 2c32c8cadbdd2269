"""Copying from chosen chunks: a part of the chance of the next token goes to what followed like tokens there.

A pointer with a gate (Merity et al., arXiv 1609.07843) over the chunks that were chosen (Grave et al., arXiv
1612.04426, have it over all of the near past). What readers must first learn to carry from a chunk's values to the
logits, a name or a number that comes back, this head says by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.subq.config import SubqConfig
from models.subq.layers import rms
from models.subq.router import Routing

_SHUT = -4.0  # of the gate at first: a fiftieth
_LEAST = 1e-9


class CopyHead(nn.Module):
    """Scores of a token against all tokens of its chosen chunks, and the gate between them and the logits."""

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.width, config.head_dim, bias=False)
        self.key = nn.Linear(config.width, config.head_dim, bias=False)
        self.gate = nn.Linear(config.width, 1)
        self.trust = nn.Parameter(torch.tensor(0.5))  # how much the choice's weights count
        self.close()

    @torch.no_grad()
    def close(self) -> None:
        """Shut the gate but for a slit."""
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, _SHUT)

    def forward(
        self, losses: Tensor, hidden: Tensor, lower: Tensor, ids: Tensor, targets: Tensor, routing: Routing
    ) -> Tensor:
        """Nats of each target [B, T], where the logits alone have `losses` [B, T].

        hidden, lower [B, T, D] after all blocks and after the lower ones; ids, targets [B, T]; whole chunks.
        """
        size = self.config.chunk
        if ids.shape[1] % size:
            raise ValueError(f"ids of {ids.shape[1]} tokens a sequence; allowed: whole chunks of {size}")
        indices = routing.indices.flatten(0, 1)
        rows, slots = indices.shape
        at = indices.clamp_min(0).flatten()
        asked = rms(self.query(rms(hidden))).reshape(rows, size, -1)
        held = rms(self.key(rms(lower))).reshape(-1, size, asked.shape[-1])
        keys = held.flatten(1).index_select(0, at).view(rows, slots * size, -1)
        scores = (asked @ keys.transpose(1, 2)).float() * (2.0 * asked.shape[-1] ** -0.5)
        weights = routing.weights.flatten(0, 1).float().clamp_min(_LEAST).log() * self.trust
        empty = (indices < 0).repeat_interleave(size, 1)[:, None]
        scores = (scores + weights.repeat_interleave(size, 1)[:, None]).masked_fill(empty, -1e9)
        # what followed: of a chunk's last token the next chunk's first, which is past too
        followed = F.pad(ids.flatten()[1:], (0, 1), value=-1).view(-1, size)
        told = followed.index_select(0, at).view(rows, 1, slots * size) == targets.reshape(rows, size, 1)
        share = (scores.softmax(-1) * (told & ~empty)).sum(-1).view_as(losses)
        gate = self.gate(rms(hidden))[..., 0].float()
        gate = gate.masked_fill((indices < 0).all(1).repeat_interleave(size).view_as(gate), -1e4)
        return -torch.logaddexp(
            F.logsigmoid(-gate) - losses.float(), F.logsigmoid(gate) + share.clamp_min(_LEAST).log()
        )
