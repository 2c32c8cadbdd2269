"""ExpectedAttention: the attention that queries distributed like the context's would give (arXiv 2510.00636)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from models.compared.base import ScoredMethod
from models.compared.trace import LayerTrace


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedAttention(ScoredMethod):
    """Softmax over tokens of s k·R mu + s²/2 k R Sigma Rᵀ k, plus epsilon, times the value's length.

    mu and Sigma are mean and covariance of the context's queries before rotary embedding, a query head each; R is
    the mean rotation of the next `future` places; the mean over the group is taken after the softmax.
    """

    source: ClassVar[str] = "arXiv 2510.00636"
    future: int = field(
        default=512, metadata={"help": "places after the context where the question may stand"}
    )
    epsilon: float = field(
        default=0.02, metadata={"help": "added to every weight, divided by the context's length"}
    )
    covariance: bool = field(default=True, metadata={"help": "use the second moment too"})

    def score(self, layer: LayerTrace) -> Tensor:
        """See ScoredMethod.score."""
        spec, n = layer.spec, layer.num_tokens
        queries = layer.queries[:, min(self.sinks, n - 1) :].float()
        mean = queries.mean(1)
        turn = self._mean_turn(layer)
        keys = layer.turned_keys()
        groups = spec.num_heads // spec.num_kv_heads
        direction = (mean @ turn.T).reshape(spec.num_kv_heads, groups, -1)
        logits = torch.einsum("hnd,hgd->hgn", keys, direction) * spec.scaling
        if self.covariance:
            centred = queries - mean[:, None]
            moment = turn @ (centred.transpose(1, 2) @ centred / queries.shape[1]) @ turn.T
            by_head = moment.reshape(spec.num_kv_heads, groups, *moment.shape[1:])
            for group in range(groups):
                spread = ((keys @ by_head[:, group]) * keys).sum(-1)
                logits[:, group] += 0.5 * spec.scaling**2 * spread
        weights = logits.clone()
        weights[..., : self.sinks] = float("-inf")  # the sinks stay anyway and would take most of the mass
        expected = weights.softmax(-1).mean(1) if n > self.sinks else torch.zeros_like(logits[:, 0])
        scores: Tensor = (expected + self.epsilon / n) * layer.values.float().norm(dim=-1)
        return scores

    def _mean_turn(self, layer: LayerTrace) -> Tensor:
        """The mean of the rotations of the next places, `[d, d]`."""
        rotary, n, d = layer.spec.rotary, layer.num_tokens, layer.spec.head_dim
        rotary.reserve(n + self.future)
        cos, sin = (
            part.mean(0) for part in rotary.at(torch.arange(n, n + self.future, device=layer.keys.device))
        )
        f = rotary.num_frequencies
        turn = torch.eye(d, device=layer.keys.device)
        at = torch.arange(f, device=layer.keys.device)
        turn[at, at], turn[at + f, at + f] = cos, cos
        turn[at, at + f], turn[at + f, at] = -sin, sin
        return turn
