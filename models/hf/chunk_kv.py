"""A chunk's keys and values, computed once and read at any place: a retrieved chunk costs no prefill.

Keys are kept before rotary embedding; they are turned when the chunk is put behind what a view holds. A chunk is
encoded by itself, after the tokens in `after` (the model's <bos>, which draws the attention that goes nowhere), so
several chunks do not see each other: the question sees all of them. All layers' pairs are kept, sliding ones too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.cache.layers import ViewLayer
from models.cache.rotating import CacheView, RotatingCompressiveCache
from models.cache.spec import LayerSpec

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone


@dataclass(frozen=True, slots=True, eq=False)
class ChunkKV:
    """Pairs of `n` tokens in every layer: `keys, values [H, n, d]`, keys before rotary; `model` computed them."""

    model: str
    ids: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all pairs."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> ChunkKV:
        """The same in another type or place (host memory, 16 bits)."""
        keys = tuple(tensor.to(device=device, dtype=dtype) for tensor in self.keys)
        values = tuple(tensor.to(device=device, dtype=dtype) for tensor in self.values)
        return ChunkKV(self.model, self.ids, keys, values)


class _TappedLayer(ViewLayer):  # type: ignore[no-untyped-call]
    """A view that keeps the raw pairs of what is read into it."""

    def __init__(self, spec: LayerSpec, capacity: int) -> None:
        super().__init__(spec, capacity)
        self.raw: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See ViewLayer.update."""
        self.raw.append((key_states[0].clone(), value_states[0].clone()))
        return super().update(key_states, value_states)


@torch.no_grad()
def encode_chunk(backbone: HfBackbone, ids: Sequence[int], after: Sequence[int] | None = None) -> ChunkKV:
    """Read a chunk by itself after `after` (None: the model's beginning of text).

    Raises ValueError for an empty chunk.
    """
    if not ids:
        raise ValueError("the chunk is empty; give at least one token id")
    before = list(backbone.bos if after is None else after)
    layers = [_TappedLayer(spec, len(before) + len(ids)) for spec in backbone.specs]
    backbone.run([*before, *ids], CacheView(list[ViewLayer](layers)))
    start = len(before)
    keys = tuple(torch.cat([k for k, _ in layer.raw], dim=1)[:, start:].contiguous() for layer in layers)
    values = tuple(torch.cat([v for _, v in layer.raw], dim=1)[:, start:].contiguous() for layer in layers)
    return ChunkKV(backbone.identity, tuple(int(i) for i in ids), keys, values)


@torch.no_grad()
def view_with_chunks(
    backbone: HfBackbone, cache: RotatingCompressiveCache | None, chunks: Sequence[ChunkKV], room: int
) -> CacheView:
    """What a cache holds (None: <bos> alone), then the chunks in the order given, with room for `room` more tokens.

    Raises ValueError for a chunk of another model. The cache's pending tokens are not in the view: read them first.
    """
    for chunk in chunks:
        if chunk.model != backbone.identity:
            raise ValueError(
                f"the chunk was encoded by {chunk.model}, this backbone is {backbone.identity}: encode it again"
            )
    total = sum(len(chunk.ids) for chunk in chunks)
    if cache is None:
        view = CacheView.empty(backbone.specs, len(backbone.bos) + total + room)
        if backbone.bos:
            backbone.run(backbone.bos, view)
    else:
        view = backbone.steps.view_of(cache, total + room)
    for at, layer in enumerate(view.views):
        for chunk in chunks:
            insert(layer, chunk.keys[at], chunk.values[at])
    return view


def insert(layer: ViewLayer, keys: Tensor, values: Tensor) -> None:
    """Put pairs `[H, n, d]`, keys not turned, behind what a view's layer holds."""
    spec, n = layer.spec, keys.shape[1]
    wanted = (spec.num_kv_heads, n, spec.head_dim)
    for name, given in (("keys", keys), ("values", values)):
        if tuple(given.shape) != wanted:
            raise ValueError(
                f"{name} have shape {tuple(given.shape)}; layer {spec.index} takes "
                f"[{spec.num_kv_heads}, {n}, {spec.head_dim}]"
            )
    first = layer._next_place
    spec.rotary.reserve(first + n)
    places = torch.arange(first, first + n, device=spec.device)
    turned = spec.rotary.turn(keys.to(spec.device, spec.dtype), places)
    layer.fill(turned, values.to(spec.device, spec.dtype))
    layer._next_place += n
