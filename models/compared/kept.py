"""What a method has kept of a context, and how a question reads it.

Pairs may differ in number from head to head (short heads are padded with pairs of weight 0), may weigh more than
one token (a logit bias), and a layer may borrow another layer's attention weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from models.cache.layers import ViewLayer
from models.cache.rotating import CacheView
from models.cache.spec import LayerSpec
from models.compared.trace import LayerTrace, Trace
from models.hf.attention import attend, causal_mask


class Held(Protocol):
    """One layer's compressed memory."""

    @property
    def spec(self) -> LayerSpec:
        """The layer."""

    @property
    def nbytes(self) -> int:
        """All bytes held, metadata included."""

    def frozen(self, room: int) -> ViewLayer:
        """What a question reads, with room for `room` tokens of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """One layer's pairs, a list entry a KV head: `keys, values [m, d]`, keys before rotary; `places [m]`.

    `log_weights [m]` are added to the logits. `overhead_bytes` counts whatever else the method must store to go
    on. `leader` is the index of a layer whose attention weights are used here: then `keys` is empty.
    """

    spec: LayerSpec
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    places: Sequence[Tensor]
    next_place: int
    log_weights: Sequence[Tensor] | None = None
    overhead_bytes: int = 0
    leader: int | None = None
    leads: bool = field(default=False)

    @property
    def counts(self) -> list[int]:
        """Pairs kept, by head."""
        return [int(values.shape[0]) for values in self.values]

    @property
    def nbytes(self) -> int:
        """See Held.nbytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values)) + self.overhead_bytes

    def frozen(self, room: int) -> ViewLayer:
        """See Held.frozen."""
        return KeptLayer(self, room)


def keep_tokens(
    layer: LayerTrace, chosen: Sequence[Tensor], *, from_zero: bool = False, overhead_bytes: int = 0
) -> Kept:
    """The pairs of the context's tokens `chosen` (positions, an entry a head).

    They stay at their places in the context, or, with `from_zero`, move together to places 0, 1, 2, …
    """
    order = [positions.sort().values for positions in chosen]
    if from_zero:
        places = [torch.arange(len(at), device=at.device) for at in order]
        next_place = max(len(at) for at in order)
    else:
        places, next_place = order, layer.num_tokens
    return Kept(
        spec=layer.spec,
        keys=[layer.keys[head, at] for head, at in enumerate(order)],
        values=[layer.values[head, at] for head, at in enumerate(order)],
        places=places,
        next_place=next_place,
        overhead_bytes=overhead_bytes,
    )


class KeptLayer(ViewLayer):  # type: ignore[no-untyped-call]
    """The view of a `Kept`; `attend` is used by our attention in place of its own (models/hf/attention.py)."""

    def __init__(self, kept: Kept, room: int) -> None:
        longest = max(kept.counts)
        super().__init__(kept.spec, longest + room, kept.next_place)
        spec, heads = kept.spec, len(kept.values)
        self._kept, self._held = kept, longest
        self.leader: KeptLayer | None = None
        self.weights: Tensor | None = None
        shape = (heads, longest, spec.head_dim)
        keys = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        values, bias = torch.zeros_like(keys), torch.full(shape[:2], float("-inf"), device=spec.device)
        places = torch.zeros(shape[:2], dtype=torch.int64, device=spec.device)
        for head, count in enumerate(kept.counts):
            values[head, :count] = kept.values[head]
            if kept.leader is None:
                keys[head, :count] = kept.keys[head]
            places[head, :count] = kept.places[head]
            bias[head, :count] = 0.0 if kept.log_weights is None else kept.log_weights[head]
        plain = kept.log_weights is None and len(set(kept.counts)) == 1
        self._bias = None if plain else bias
        spec.rotary.reserve(int(places.max()) + 1 if places.numel() else 0)
        self.fill(spec.rotary.turn(keys, places), values)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attention `[1, heads, T, d]` of turned queries over what `update` returned."""
        num_tokens, num_keys = query.shape[2], key.shape[2]
        mask = causal_mask(num_tokens, num_keys, None, query.device)
        if self.leader is None and not self._kept.leads and self._bias is None:
            return attend(query, key, value, mask, scaling, softcap)
        if softcap is not None:
            raise ValueError(
                f"layer {self.spec.index} caps its logits (softcap {softcap}); weighted, uneven or shared pairs "
                "are read without a cap only; use a method that keeps as many plain pairs in every head"
            )
        if self.leader is not None:
            weights = self.leader.weights
            assert weights is not None and weights.shape[-2:] == (num_tokens, num_keys)
        else:
            weights = self._weights(query, key, mask, scaling)
        if self._kept.leads:
            self.weights = weights
        heads, groups = key.shape[1], query.shape[1] // key.shape[1]
        # weights [H, groups, T, n] times values [H, 1, n, d]: values are not copied
        out: Tensor = weights.flatten(1, 2) @ value[0]
        return out.reshape(1, heads * groups, num_tokens, -1)

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        heads, num_tokens = key.shape[1], query.shape[2]
        grouped = query[0].reshape(heads, -1, query.shape[-1])
        scores: Tensor = (grouped @ key[0].transpose(-1, -2)).float() * scaling
        scores = scores.reshape(heads, -1, num_tokens, key.shape[2])
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        if self._bias is not None:
            scores[..., : self._held] += self._bias[:, None, None]
        shares: Tensor = scores.softmax(-1).to(query.dtype)
        return shares


class CompressedContext:
    """A context that a method has compressed: stands in a cache's place for `backbone.generate` and `score`."""

    pending: tuple[int, ...] = ()

    def __init__(self, trace: Trace, held: Sequence[Held]) -> None:
        indices = [layer.spec.index for layer in trace.layers]
        given = [layer.spec.index for layer in held]
        if indices != given:
            raise ValueError(
                f"layers kept are {given}; the full-attention layers of {trace.model} are {indices}"
            )
        self.model, self.num_tokens, self.held = trace.model, trace.num_tokens, list(held)
        self._sliding, self._still = trace.sliding, trace.still
        self.full_bytes, self.sliding_bytes = trace.full_bytes, trace.sliding_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the full-attention layers, metadata included; the sliding layers' constant is beside."""
        return sum(layer.nbytes for layer in self.held)

    def view(self, room: int) -> CacheView:
        """What one question reads; see RotatingCompressiveCache.view."""
        views = {layer.spec.index: layer.frozen(room) for layer in self.held}
        # what nothing can be read into may be shared
        views |= {s.spec.index: s.frozen(room) if room else self._shared(s) for s in self._sliding}
        for view, layer in zip((views[held.spec.index] for held in self.held), self.held, strict=True):
            leader = getattr(layer, "leader", None)
            if isinstance(view, KeptLayer) and leader is not None:
                view.leader = cast("KeptLayer", views[leader])
        return CacheView([views[index] for index in sorted(views)])

    def _shared(self, layer: Any) -> ViewLayer:
        if layer.spec.index not in self._still:
            self._still[layer.spec.index] = layer.frozen(0)
        return self._still[layer.spec.index]

    def as_cache(self) -> Any:
        """Itself, for the methods of HfBackbone that take a cache."""
        return self
