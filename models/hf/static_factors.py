"""Full-attention layers of fixed shape whose latents stay factors: one softmax over raw pairs and factors.

The decode kernel (models/kernels/latent_decode) reads rows of a batch with places of their own, so every key head
is a row here: heads differ in what they hold (heavy hitters) and in where their latents' tokens stand. Raw keys are
kept turned, as everywhere in fixed shapes, and stand at place 0, which turns nothing; -1 hides a slot. For latents
the kernel turns the query back: once a block whose tokens all stand at one place (key frame `within_block`), else
once a token. Both are exact in places.

Shapes: `L` layers of one kind, `B` rows, `H` key heads, `N` slots, `d` head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.cache.factors import Factors, one_place
from models.cache.full_layer import RotatingLayer
from models.cache.layers import StoredLayer
from models.cache.spec import LayerSpec
from models.hf.static_kind import StaticKind
from models.kernels.dispatch import HEAD_DIMS
from models.kernels.latent_decode import MAX_ROWS, Latents, latent_decode

SMALLEST_HEAD = 32
MOST_RANK = 128  # above, a block's factors do not fit beside the queries
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class LatentShape(NamedTuple):
    """What the latents of one layer take: `runs` is the number of places that a block's tokens stand at."""

    blocks: int
    tokens: int
    key_rank: int
    value_rank: int
    runs: int


Shapes = tuple[tuple[int, LatentShape], ...]
"""Latents by layer number, of the layers that have any."""


def shapes_of(layers: Iterable[StoredLayer], also: Iterable[StoredLayer] = ()) -> Shapes:
    """The latents of a cache's layers; `also`: those of further caches that are decoded beside it."""
    several = {
        layer.spec.index for layer in also if isinstance(layer, RotatingLayer) and not one_place(layer)
    }
    found = []
    for layer in layers:
        if not isinstance(layer, RotatingLayer) or layer.latents is None:
            continue
        held = layer.latents
        single = one_place(layer) and layer.spec.index not in several
        ranks = held.key_rows.shape[-1], held.value_rows.shape[-1]
        shape = LatentShape(held.num_blocks, held.block_tokens, *ranks, 1 if single else held.block_tokens)
        found.append((layer.spec.index, shape))
    return tuple(found)


def shape_of(factors: Factors) -> LatentShape:
    """The latents of one layer of a view."""
    tokens = factors.place.shape[2]
    ranks = factors.key_rows.shape[-1], factors.value_rows.shape[-1]
    return LatentShape(factors.capacity, tokens, *ranks, 1 if factors.one_place else tokens)


def not_covered(specs: Sequence[LayerSpec], shapes: Shapes, softcap: float | None) -> str | None:
    """Why the kernel cannot read these layers' latents; None where it can.

    Away from a GPU its plain form runs, which takes any width, type and rank.
    """
    if softcap is not None:
        return f"attention scores are capped (softcap {softcap}); allowed: none"
    ranks = {index: max(shape.key_rank, shape.value_rank) for index, shape in shapes}
    for spec in specs:
        if spec.window is not None:
            continue
        where = f"layer {spec.index}: "
        if 2 * spec.rotary.num_frequencies != spec.head_dim:
            turned = 2 * spec.rotary.num_frequencies
            return f"{where}{turned} of {spec.head_dim} dimensions of a head are turned; allowed: all"
        if spec.device.type != "cuda":
            continue
        if spec.head_dim not in HEAD_DIMS or spec.head_dim < SMALLEST_HEAD:
            allowed = ", ".join(str(width) for width in HEAD_DIMS if width >= SMALLEST_HEAD)
            return f"{where}heads are {spec.head_dim} wide; allowed: {allowed}"
        if spec.dtype not in _TYPES:
            return f"{where}its numbers are {spec.dtype}; allowed: {', '.join(map(str, _TYPES))}"
        if spec.num_heads // spec.num_kv_heads > MAX_ROWS:
            group = spec.num_heads // spec.num_kv_heads
            return f"{where}{group} heads share a key head; allowed: up to {MAX_ROWS}"
        if ranks.get(spec.index, 0) > MOST_RANK:
            return f"{where}latents have rank {ranks[spec.index]}; allowed: up to {MOST_RANK}"
    return None


class FactoredKind(StaticKind):
    """See the module's text."""

    def __init__(
        self, specs: Sequence[LayerSpec], rows: int, slots: int, places: int, recorded: int, shapes: Shapes
    ) -> None:
        """As StaticKind, `slots` for raw pairs alone; `shapes` of the layers that have latents."""
        super().__init__(specs, rows, slots, places, recorded)
        known, self._heads = dict(shapes), specs[0].num_kv_heads
        self.latents = [
            _empty(spec, rows * self._heads, known[spec.index]) if spec.index in known else None
            for spec in specs
        ]
        half = specs[0].head_dim // 2
        self._tables = self._cos[:, :half].contiguous(), self._sin[:, half:].contiguous()

    @property
    def nbytes(self) -> int:
        """See StaticKind.nbytes."""
        return super().nbytes + sum(
            x.nbytes for held in self.latents if held is not None for x in _parts(held)
        )

    def lay_factors(self, layer: int, row: int, factors: Factors | None) -> None:
        """Put what a row holds as latents into its buffers; None: it holds none.

        Raises ValueError for latents of another shape.
        """
        store = self.latents[layer]
        if store is None or factors is None:
            if factors is not None and factors.tokens:
                raise ValueError(
                    f"layer {self.specs[layer].index} holds {factors.tokens} tokens as latents and the memory has "
                    "no room for any; make the memory with the shapes of this cache"
                )
            if store is not None:
                store.place[row * self._heads : (row + 1) * self._heads] = -1
            return
        at, blocks = slice(row * self._heads, (row + 1) * self._heads), factors.place.shape[1]
        runs, index = store.place.shape[2], self.specs[layer].index
        given = (factors.key_rows, factors.key_basis, factors.value_rows, factors.value_basis)
        for part, new in zip(_parts(store)[:4], given, strict=True):
            if blocks > part.shape[2] or new.shape[2:] != part.shape[3:]:
                raise ValueError(
                    f"layer {index} holds latents {list(new.shape)} (heads, blocks, …) and the memory takes "
                    f"{list(part.shape[1:])}; make the memory with the shapes of this cache"
                )
            part[at, 0, :blocks] = new
        if runs == 1 and not factors.one_place:
            raise ValueError(
                f"tokens of layer {index} were withdrawn since the memory was made, which hides whole blocks; make "
                "another memory (a new SessionDecoding)"
            )
        store.place[at] = -1
        store.place[at, :blocks] = factors.place[..., :runs]

    def prepare(self, step: Tensor) -> None:
        """See StaticKind.prepare."""
        super().prepare(step)
        layers, rows = self.first_place.shape
        place = (self.first_place + step).to(torch.int32)[:, :, None]
        self._place = place.repeat(1, 1, self._heads).view(layers, rows * self._heads)
        hidden = self._hidden[:, :, :, 0].reshape(layers, rows * self._heads, self.slots)
        self._shown = hidden.to(torch.int32).neg()

    def attend(self, layer: int, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """See StaticKind.attend; there is no softcap."""
        if softcap is not None:
            raise ValueError(f"the scores' softcap is {softcap}; allowed with latents as factors: none")
        batch, dim = self._place.shape[1], query.shape[-1]
        out = latent_decode(
            query.reshape(batch, 1, -1, dim),
            self.keys[layer].view(batch, self.slots, 1, dim),
            self.values[layer].view(batch, self.slots, 1, dim),
            self._shown[layer],
            self._place[layer],
            latents=self.latents[layer],
            rotary=self._tables,
            scale=scaling,
        )
        assert isinstance(out, Tensor)
        return out.reshape(query.shape)


def _empty(spec: LayerSpec, rows: int, shape: LatentShape) -> Latents:
    """Room for one layer's latents, a row each key head of each session; nothing is visible."""

    def zeros(*last: int) -> Tensor:
        return torch.zeros(rows, 1, shape.blocks, *last, dtype=spec.dtype, device=spec.device)

    return Latents(
        zeros(shape.tokens, shape.key_rank),
        zeros(shape.key_rank, spec.head_dim),
        zeros(shape.tokens, shape.value_rank),
        zeros(shape.value_rank, spec.head_dim),
        torch.full((rows, shape.blocks, shape.runs), -1, dtype=torch.int32, device=spec.device),
    )


def _parts(held: Latents) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return held.key_factor, held.key_basis, held.value_factor, held.value_basis, held.place
