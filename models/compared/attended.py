"""Scores from attention weights of the whole context or of recorded questions: H2O and the question bank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from models.compared.base import ScoredMethod, attention_weights, even_tokens
from models.compared.kept import Kept
from models.compared.trace import LayerTrace, Trace

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone


@dataclass(frozen=True, kw_only=True, slots=True)
class H2O(ScoredMethod):
    """Attention that a token has received from all later ones, summed; half of the budget is for the last tokens.

    The sum favours early tokens, which more queries could see: that is the method (arXiv 2306.14048).
    """

    source: ClassVar[str] = "arXiv 2306.14048"
    recent_share: float = field(default=0.5, metadata={"help": "share of the budget for the last tokens"})
    stride: int = field(default=1, metadata={"help": "score by every stride-th query only (1: all)"})

    def score(self, layer: LayerTrace) -> Tensor:
        """See ScoredMethod.score."""
        places = torch.arange(0, layer.num_tokens, self.stride, device=layer.keys.device)
        total = torch.zeros(layer.keys.shape[:2], device=layer.keys.device)
        for weights, _ in attention_weights(layer, places):
            total += weights.sum(2).mean(1)
        return total

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        count = even_tokens(trace, budget_bytes, self.sinks)
        recent = min(int(count * self.recent_share), count - self.sinks)
        return [replace(self, sinks=self.sinks).keep_recent(layer, count, recent) for layer in trace.layers]

    def keep_recent(self, layer: LayerTrace, count: int, recent: int) -> Kept:
        """The last `recent` tokens and the best of the others, `count` in all."""
        from models.compared.kept import keep_tokens

        scores = self.scores(layer).clone()
        scores[:, : self.sinks] = float("inf")
        if recent:
            scores[:, -recent:] = float("inf")
        return keep_tokens(layer, list(scores.topk(min(count, layer.num_tokens), dim=1).indices))


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionBank(ScoredMethod):
    """Mean attention of questions recorded over other texts, as if asked `asked_after` tokens after the context."""

    source: ClassVar[str] = "our own; akin to arXiv 2510.00636"
    asked_after: int = field(
        default=50, metadata={"help": "tokens between the context's end and the question"}
    )
    bank: Mapping[int, Tensor] = field(
        default_factory=dict, metadata={"help": "queries [num_heads, w, d] by layer; prepare() records them"}
    )

    def prepare(self, backbone: HfBackbone) -> Self:
        """See Method.prepare: records the model's own bank unless one was given."""
        if self.bank and self.model in ("", backbone.identity):
            return replace(self, model=backbone.identity)
        return replace(self, bank=backbone.question_bank(), model=backbone.identity)

    def score(self, layer: LayerTrace) -> Tensor:
        """See ScoredMethod.score."""
        queries = self.bank.get(layer.spec.index)
        if queries is None:
            known = ", ".join(map(str, self.bank)) or "no layer: prepare(backbone) records one"
            raise ValueError(f"the question bank lacks layer {layer.spec.index}; it knows {known}")
        asked = layer.num_tokens + self.asked_after
        places = torch.full((queries.shape[1],), asked, device=layer.keys.device)
        total = torch.zeros(layer.keys.shape[:2], device=layer.keys.device)
        for weights, _ in attention_weights(layer, places, queries.to(layer.keys.device)):
            total += weights.sum(2).mean(1)
        return total / queries.shape[1]
