"""Buffers and work of all layers of one kind in decoding token by token (models/hf/static_memory.py).

Shapes: `L` layers of one kind, `B` rows, `H` key heads, `N` slots, `d` head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.cache.spec import LayerSpec

_NEVER = float("-inf")


class StaticKind:
    """All layers of one kind: the same window, key heads, head width and rotary table."""

    def __init__(self, specs: Sequence[LayerSpec], rows: int, slots: int, places: int, recorded: int) -> None:
        """`slots` a row, rotary angles below `places`; the last `recorded` steps' pairs are kept unturned too."""
        spec = specs[0]
        self.specs, self.window, self.slots, self.places = list(specs), spec.window, slots, places
        shape = (len(specs), rows, spec.num_kv_heads)
        self.keys = torch.zeros(*shape, slots, spec.head_dim, dtype=spec.dtype, device=spec.device)
        self.values = torch.zeros_like(self.keys)
        self.raw_keys = torch.zeros(*shape, recorded, spec.head_dim, dtype=spec.dtype, device=spec.device)
        self.raw_values = torch.zeros_like(self.raw_keys)
        self.withheld = torch.zeros(*shape, slots, dtype=torch.bool, device=spec.device)
        self.first_slot = torch.zeros(shape[:2], dtype=torch.int64, device=spec.device)
        self.first_place = torch.zeros_like(self.first_slot)
        self._column = torch.arange(slots, device=spec.device)
        spec.rotary.reserve(places)
        # a table of our own: the shared one is replaced when it grows, and a graph would go on reading the old one
        cos, sin = spec.rotary.at(torch.arange(places, device=spec.device))
        still = cos.new_zeros(places, spec.head_dim - 2 * spec.rotary.num_frequencies)
        self._cos = torch.cat((cos, cos, still + 1.0), dim=-1)
        self._sin = torch.cat((-sin, sin, still), dim=-1)
        self._half = spec.rotary.num_frequencies
        self._wide = spec.dtype != torch.float32 and _multiplies_halves_widely(self.keys[0, 0])

    def lay(
        self, layer: int, row: int, pairs: tuple[Tensor, Tensor], allowed: Tensor | None, place: int
    ) -> None:
        """Put what a row holds into its buffers: `pairs` `[H, n, d]`, keys turned; the next token's `place`.

        `allowed [1 or H, n]` is False where nothing may look. Raises ValueError where the buffers are too small.
        """
        keys, values = pairs
        n = keys.shape[1]
        if n >= self.slots or place >= self.places:
            raise ValueError(
                f"{n} pairs up to place {place} do not fit into {self.slots} slots and {self.places} places; "
                "make the memory with more"
            )
        self.keys[layer, row, :, :n] = keys
        self.values[layer, row, :, :n] = values
        self.withheld[layer, row] = False
        if allowed is not None:
            self.withheld[layer, row, :, :n] = ~allowed
        self.first_slot[layer, row] = n
        self.first_place[layer, row] = place

    def prepare(self, step: Tensor) -> None:
        """The step's slots, angles and mask, for all layers at once; `step [1]` counts from 0."""
        self._step = step
        self._slot = self.first_slot + step
        place = (self.first_place + step)[:, :, None, None]
        self._now = self._cos[place], self._sin[place]  # [L, B, 1, 1, d]
        last = self._slot[:, :, None]
        hidden = self._column > last
        if self.window is not None:
            hidden = hidden | (self._column <= last - self.window)
        self._hidden = (hidden[:, :, None] | self.withheld)[:, :, :, None]  # [L, B, H, 1, N]

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Add the step's pairs `[B, H, 1, d]`, keys not turned."""
        at = self._slot[layer][:, None, None, None].expand_as(keys)
        self.keys[layer].scatter_(2, at, self._turned(layer, keys))
        self.values[layer].scatter_(2, at, values)
        if self.raw_keys.shape[3]:
            self.raw_keys[layer].index_copy_(2, self._step, keys)
            self.raw_values[layer].index_copy_(2, self._step, values)

    def raw(self, layer: int, row: int, count: int) -> tuple[Tensor, Tensor]:
        """The pairs `[H, count, d]` of the last `count` steps since something was laid, keys not turned."""
        return self.raw_keys[layer, row, :, :count], self.raw_values[layer, row, :, :count]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        held = (self.keys, self.values, self.raw_keys, self.raw_values, self.withheld)
        return sum(x.nbytes for x in held)

    def _turned(self, layer: int, x: Tensor) -> Tensor:
        """`x [B, heads, 1, d]` turned to the step's places: as models/rotary.py, in half of its launches."""
        wide, f = x.float(), self._half
        other = wide.roll(f, -1) if 2 * f == x.shape[-1] else _halves_swapped(wide, f)
        cos, sin = self._now
        return torch.addcmul(wide * cos[layer], other, sin[layer]).to(x.dtype)

    def attend(self, layer: int, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """Attention `[B, heads, 1, d]` of the step's queries, not turned, over all that the row may see."""
        rows, heads, _, dim = query.shape
        kv_heads = self.keys.shape[2]
        turned = self._turned(layer, query).reshape(rows * kv_heads, -1, dim)
        keys, values = (x[layer].flatten(0, 1) for x in (self.keys, self.values))
        if self._wide:
            scores = torch.bmm(turned, keys.transpose(1, 2), out_dtype=torch.float32)
        else:
            scores = turned.float() @ keys.float().transpose(1, 2)
        scores = scores * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(self._hidden[layer].flatten(0, 1), _NEVER)
        out = scores.softmax(-1).to(values.dtype) @ values
        return out.reshape(rows, heads, 1, dim)


def _halves_swapped(x: Tensor, f: int) -> Tensor:
    """The pairs (i, i + f) the other way round; what is not turned stays."""
    return torch.cat((x[..., f : 2 * f], x[..., :f], x[..., 2 * f :]), dim=-1)


def _multiplies_halves_widely(like: Tensor) -> bool:
    """Whether the device gives a product of halves in float32, which is as exact as a fused kernel's scores."""
    if not like.is_cuda:
        return False
    try:
        return torch.bmm(like, like.transpose(1, 2), out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError, NotImplementedError):
        return False
