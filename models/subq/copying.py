"""Copying from chosen chunks: a part of the chance of the next token goes to what followed like tokens there.

A pointer with a gate (Merity et al., arXiv 1609.07843) over the chunks that were chosen (Grave et al., arXiv
1612.04426, have it over all of the near past). What readers must first learn to carry from a chunk's values to the
logits, a name or a number that comes back, this head says by itself. A stream keeps one key a token for it, beside
those of the readers, and finds the tokens themselves among the ids that it keeps anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.subq.config import SubqConfig
from models.subq.layers import rms
from models.subq.router import Routing

_SHUT = -4.0  # of the gate at first: a fiftieth
_LEAST = 1e-9
_NOBODY = -2  # what is told behind a sequence's end: no token, and not what follows the last one either


class Copied(NamedTuple):
    """What each block of `unit` tokens may copy from. keys [N, C, d] and followed [N, C] (the token that came after
    each; -1: none yet) of all chunks on offer; indices into them (-1: empty slot) and weights [B, U, k]. The
    first block lacks its first `lead` tokens."""

    keys: Tensor
    followed: Tensor
    indices: Tensor
    weights: Tensor
    unit: int
    lead: int = 0

    def part(self, begin: int, end: int) -> Copied:
        """For tokens begin … end - 1 of each sequence alone; fewer than a block each by itself."""
        begin, end = begin + self.lead, end + self.lead
        if end - begin < self.unit:
            units = torch.arange(begin, end, device=self.indices.device) // self.unit
            return self._replace(
                indices=self.indices[:, units], weights=self.weights[:, units], unit=1, lead=0
            )
        first, last = begin // self.unit, -(-end // self.unit)
        return self._replace(
            indices=self.indices[:, first:last], weights=self.weights[:, first:last],
            lead=begin - first * self.unit,
        )  # fmt: skip

    def at(self, places: Tensor) -> Copied:
        """For single tokens [M], counted over all sequences of whole blocks: as one sequence of blocks of one."""
        rows = places // self.unit
        indices, weights = (each.flatten(0, 1)[None, rows] for each in (self.indices, self.weights))
        return self._replace(indices=indices, weights=weights, unit=1, lead=0)


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

    def keys(self, lower: Tensor) -> Tensor:
        """What a token is found by [..., d], of its state after the lower blocks [..., D]."""
        return rms(self.key(rms(lower)))

    def offered(self, lower: Tensor, ids: Tensor, routing: Routing) -> Copied:
        """What a pass may copy from: lower [B, T, D], ids [B, T], and what was chosen for each chunk's tokens."""
        size = self.config.chunk
        whole = ids.shape[1] // size * size
        keys = self.keys(lower[:, :whole]).reshape(-1, size, self.config.head_dim)
        # of a chunk's last token the next chunk's first, which is past too where the chunk may be chosen
        followed = F.pad(ids[:, 1:], (0, 1), value=-1)[:, :whole].reshape(-1, size)
        return Copied(keys, followed, *routing, size)

    def forward(self, losses: Tensor, hidden: Tensor, targets: Tensor, copied: Copied) -> Tensor:
        """Nats of each target [B, T], where the logits alone have `losses` [B, T]; hidden [B, T, D] after all."""
        shares, tokens, gate = self._shares(hidden, copied)
        wanted = self._blocks(targets[..., None], copied, _NOBODY)
        share = self._tokens((shares * (tokens[:, None] == wanted)).sum(-1, keepdim=True), hidden, copied)
        return -torch.logaddexp(
            F.logsigmoid(-gate) - losses.float(), F.logsigmoid(gate) + share[..., 0].clamp_min(_LEAST).log()
        )

    def mixed(self, logits: Tensor, hidden: Tensor, copied: Copied) -> Tensor:
        """Logarithms of the chances of all tokens [B, T, V] (float32), where the logits alone are `logits`."""
        shares, tokens, gate = self._shares(hidden, copied)
        told = shares.new_zeros(*shares.shape[:2], logits.shape[-1])
        known = shares * (tokens >= 0)[:, None]
        told.scatter_add_(2, tokens.clamp_min(0)[:, None].expand_as(shares), known)
        share = self._tokens(told, hidden, copied)
        return torch.logaddexp(
            F.logsigmoid(-gate)[..., None] + logits.float().log_softmax(-1),
            F.logsigmoid(gate)[..., None] + share.clamp_min(_LEAST).log(),
        )

    def _shares(self, hidden: Tensor, copied: Copied) -> tuple[Tensor, Tensor, Tensor]:
        """What each token would copy: shares [B * U, unit, k * C] of tokens [B * U, k * C]; gate [B, T]."""
        indices, size = copied.indices.flatten(0, 1), copied.keys.shape[1]
        rows, slots = indices.shape
        at = indices.clamp_min(0).flatten()
        asked = self._blocks(rms(self.query(rms(hidden))), copied, 0.0)
        width = copied.keys.shape[-1]  # named: of no rows nothing can be told
        keys = copied.keys.flatten(1).index_select(0, at).view(rows, slots * size, width).to(asked.dtype)
        scores = (asked @ keys.transpose(1, 2)).float() * (2.0 * asked.shape[-1] ** -0.5)
        weights = copied.weights.flatten(0, 1).float().clamp_min(_LEAST).log() * self.trust
        empty = (indices < 0).repeat_interleave(size, 1)[:, None]
        scores = (scores + weights.repeat_interleave(size, 1)[:, None]).masked_fill(empty, -1e9)
        tokens = copied.followed.index_select(0, at).view(rows, slots * size)
        gate = self.gate(rms(hidden))[..., 0].float()
        nothing = (indices < 0).all(1)[:, None, None].expand(-1, copied.unit, 1)
        gate = gate.masked_fill(self._tokens(nothing, hidden, copied)[..., 0], -1e4)
        return scores.softmax(-1) * ~empty, tokens, gate

    @staticmethod
    def _blocks(x: Tensor, copied: Copied, value: float) -> Tensor:
        """x [B, T, n] by block [B * U, unit, n], filled with `value` where a block lacks tokens."""
        units = copied.indices.shape[1]
        back = units * copied.unit - copied.lead - x.shape[1]
        if back < 0 or copied.lead >= copied.unit:
            raise ValueError(
                f"{units} blocks of {copied.unit} tokens, the first without {copied.lead}, do not hold "
                f"{x.shape[1]} tokens"
            )
        return F.pad(x, (0, 0, copied.lead, back), value=value).reshape(-1, copied.unit, x.shape[-1])

    @staticmethod
    def _tokens(x: Tensor, hidden: Tensor, copied: Copied) -> Tensor:
        """What `_blocks` made [B * U, unit, n], as a sequence again [B, T, n]."""
        batch, length = hidden.shape[:2]
        return x.reshape(batch, -1, x.shape[-1])[:, copied.lead : copied.lead + length]
