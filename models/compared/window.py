"""Recency alone: the last tokens, without and with attention sinks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from models.compared.base import Method, even_tokens
from models.compared.kept import Kept, keep_tokens
from models.compared.trace import LayerTrace, Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation(Method):
    """The last tokens only, moved together to places 0, 1, 2, …, as if the text began there.

    Their keys and values still come from the whole text.
    """

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        count = even_tokens(trace, budget_bytes, 0)
        return [keep_tokens(layer, _window(layer, 0, count), from_zero=True) for layer in trace.layers]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSinks(Method):
    """StreamingLLM: the first tokens (sinks) and the last ones, at places within the cache.

    The paper counts positions inside the cache, not in the text; `places_in_cache=False` leaves keys where they
    were, as kvpress does.
    """

    source: ClassVar[str] = "arXiv 2309.17453"
    sinks: int = field(default=4, metadata={"help": "first tokens that always stay"})
    places_in_cache: bool = field(
        default=True, metadata={"help": "move the pairs together, as the paper does"}
    )

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        count = even_tokens(trace, budget_bytes, self.sinks)
        return [
            keep_tokens(layer, _window(layer, self.sinks, count), from_zero=self.places_in_cache)
            for layer in trace.layers
        ]


def _window(layer: LayerTrace, sinks: int, count: int) -> list[Tensor]:
    return [sinks_and_last(layer, sinks, count)] * layer.keys.shape[0]


def sinks_and_last(layer: LayerTrace, sinks: int, count: int) -> Tensor:
    """Positions of the first `sinks` tokens and of the last ones, `count` in all (at most every token)."""
    n = layer.num_tokens
    count = min(count, n)
    first = torch.arange(min(sinks, count), device=layer.keys.device)
    last = torch.arange(n - (count - len(first)), n, device=layer.keys.device)
    return torch.cat((first, last))
