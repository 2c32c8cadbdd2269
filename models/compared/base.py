"""What a compared method is: from an exact trace of a context and a byte budget to what is kept of it.

A method of your own is one file: subclass `ScoredMethod` and give every token a score, or `Method` and return a
`Kept` a layer; then add it to `models/compared/__init__.py`. docs/cache-methods.md has an example.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from models.compared.kept import CompressedContext, Held, Kept, keep_tokens
from models.compared.trace import LayerTrace, Trace, read_exactly

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

_QUERY_BLOCK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Method(ABC):
    """Base of all methods. Instances hold settings only; `prepare` returns one that knows the model."""

    source: ClassVar[str] = ""
    model: str = field(default="", metadata={"help": "identity of the model it was prepared for; empty: any"})

    @abstractmethod
    def compress(self, trace: Trace, budget_bytes: int) -> Sequence[Held]:
        """What is kept, a layer each. Raises ValueError for a budget that the method cannot work with."""

    def prepare(self, backbone: HfBackbone) -> Self:
        """The method with whatever it must know of the model; most need nothing."""
        return self

    def memory(self, trace: Trace, budget_bytes: int) -> CompressedContext:
        """The compressed context: at most `budget_bytes` in the full-attention layers, everything counted."""
        if self.model and self.model != trace.model:
            raise ValueError(
                f"the method was prepared for model {self.model}; the context was read by {trace.model}: "
                "prepare it again"
            )
        context = CompressedContext(trace, self.compress(trace, budget_bytes))
        if context.nbytes > budget_bytes:
            raise RuntimeError(
                f"{type(self).__name__} holds {context.nbytes} bytes, over its budget of {budget_bytes}"
            )
        return context

    def read(self, backbone: HfBackbone, ids: Sequence[int], keep: float) -> CompressedContext:
        """Read `ids` exactly, then compress to the share `keep` of the full layers' bytes."""
        trace = read_exactly(backbone, ids)
        return self.prepare(backbone).memory(trace, budget_of(trace, keep))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredMethod(Method):
    """Keeps the tokens of highest score, each head its own, as many in every layer; sinks always stay."""

    sinks: int = field(default=4, metadata={"help": "first tokens that always stay"})

    @abstractmethod
    def score(self, layer: LayerTrace) -> Tensor:
        """A score a token and head, `[H, n]`; infinite for what must stay."""

    def scores(self, layer: LayerTrace) -> Tensor:
        """What `score` gives, computed once for all budgets; not to be changed in place."""
        values = [getattr(self, part.name) for part in fields(self)]
        settings = tuple(value if isinstance(value, str | int | float) else id(value) for value in values)
        # the note holds the settings too, so that no other object can get their ids
        found: Tensor = layer.noted((type(self), settings), lambda: (self.score(layer), values))[0]
        return found

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        count = even_tokens(trace, budget_bytes, self.sinks)
        return [self.keep_best(layer, count) for layer in trace.layers]

    def keep_best(self, layer: LayerTrace, count: int) -> Kept:
        """`layer` with its `count` best tokens a head."""
        scores = self.scores(layer).clone()
        assert scores.shape == layer.keys.shape[:2]
        scores[:, : self.sinks] = float("inf")
        return keep_tokens(layer, list(scores.topk(min(count, layer.num_tokens), dim=1).indices))


def budget_of(trace: Trace, keep: float) -> int:
    """The bytes that the share `keep` leaves; raises ValueError outside (0, 1]."""
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep: given {keep}; allowed: above 0, at most 1 (1 is the whole cache)")
    return math.floor(trace.full_bytes * keep)


def even_tokens(trace: Trace, budget_bytes: int, at_least: int, extra_bytes: int = 0) -> int:
    """Tokens a head when every layer and head keeps as many and each pair costs `extra_bytes` more.

    Raises ValueError if these are not more than `at_least` (the sinks, a window).
    """
    heads = [(layer.keys.shape[0], layer.pair_bytes + extra_bytes) for layer in trace.layers]
    one_each = sum(num * cost for num, cost in heads)
    count = budget_bytes // one_each
    if count <= at_least:
        raise ValueError(
            f"the budget of {budget_bytes} bytes holds {count} tokens a head in {len(heads)} layers; the method "
            f"pins {at_least} (sinks and window): give at least {(at_least + 1) * one_each} bytes or pin fewer"
        )
    return min(int(count), trace.num_tokens)


@torch.no_grad()
def attention_weights(
    layer: LayerTrace, places: Tensor, queries: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Softmax weights `[H, groups, b, n]` of queries at `places`, block by block, with the block's places.

    `queries [num_heads, w, d]` before rotary embedding; without them those of the context at these places. A query
    sees the tokens up to its own place; weights are float32.
    """
    spec, n = layer.spec, layer.num_tokens
    if queries is None:
        queries = layer.queries[:, places]
    spec.rotary.reserve(max(n, int(places.max()) + 1))
    keys, at = layer.turned_keys(), torch.arange(n, device=layer.keys.device)
    for start in range(0, len(places), _QUERY_BLOCK):
        block = places[start : start + _QUERY_BLOCK]
        turned = spec.rotary.turn(queries[:, start : start + _QUERY_BLOCK].float(), block)
        grouped = turned.reshape(spec.num_kv_heads, -1, *turned.shape[1:])
        scores = grouped @ keys[:, None].transpose(-1, -2) * spec.scaling
        yield scores.masked_fill(at > block[:, None], float("-inf")).softmax(-1), block
