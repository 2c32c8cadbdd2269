"""Memory of fixed shape for decoding token by token: the same buffers and the same work at every step.

A CUDA graph repeats what it was shown, so nothing here depends on a number of Python's that changes: where the next
pair goes, which place it takes and what may be looked at are tensors on the device. What a cache or view holds is
laid into the buffers between steps (keys turned); the tail that grows behind it is masked, not cut.

Shapes: `L` layers of one kind, `B` rows, `H` key heads, `N` slots, `d` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from models.cache.layers import MemoryLayer, StoredLayer
from models.cache.rotating import CacheView, RotatingCompressiveCache
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


class StaticLayer(MemoryLayer):  # type: ignore[no-untyped-call]
    """One layer of a `StaticMemory` as transformers sees it."""

    def __init__(self, kind: StaticKind, at: int) -> None:
        super().__init__(kind.specs[at])
        self.kind, self.at = kind, at

    def get_seq_length(self) -> int:
        """Slots, a number that never changes: places and masks are our own."""
        return self.kind.slots

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the step's pairs `[B, H, 1, d]`; what comes back is not looked at (`attend_rows`)."""
        self.kind.store(self.at, key_states, value_states)
        return key_states, value_states

    def attend_rows(self, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """See models/hf/attention.py."""
        return self.kind.attend(self.at, query, scaling, softcap)


class StaticMemory(Cache):
    """What `B` rows hold, and room for further tokens, in buffers that never move."""

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        rows: int,
        slots: dict[int | None, int],
        places: int,
        recorded: int = 0,
    ) -> None:
        """`slots` a row by window (None: full attention); `recorded` steps are kept as raw pairs too."""
        kinds: dict[tuple[Any, ...], list[LayerSpec]] = {}
        for spec in specs:
            kinds.setdefault((spec.window, spec.num_kv_heads, spec.head_dim, id(spec.rotary)), []).append(
                spec
            )
        self.kinds = [
            StaticKind(found, rows, slots[found[0].window], places, recorded) for found in kinds.values()
        ]
        self.num_rows, self.recorded = rows, recorded
        made = {
            spec.index: StaticLayer(kind, at) for kind in self.kinds for at, spec in enumerate(kind.specs)
        }
        self.rows = [made[spec.index] for spec in specs]
        self.step = torch.zeros(1, dtype=torch.int64, device=specs[0].device)
        super().__init__(layers=cast("list[Any]", self.rows))

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(
            x.nbytes
            for kind in self.kinds
            for x in (kind.keys, kind.values, kind.raw_keys, kind.raw_values, kind.withheld)
        )

    def prepare(self) -> None:
        """Begin a step."""
        for kind in self.kinds:
            kind.prepare(self.step)

    def lay_view(self, row: int, view: CacheView) -> None:
        """Let `row` hold what a view holds; the next step is the first behind it."""
        for layer, held in zip(self.rows, view.views, strict=True):
            n = held.get_seq_length()
            first = 0 if held.spec.window is None else max(0, n - held.spec.window + 1)
            pairs = held._keys[0, :, first:n], held._values[0, :, first:n]
            allowed = None if held._shown is None else held._shown[:, first:n]
            layer.kind.lay(layer.at, row, pairs, allowed, held._next_place)
        self.step.zero_()

    def lay_cache(self, row: int, cache: RotatingCompressiveCache) -> None:
        """Let `row` hold what a session's cache holds; the next step is the first behind it."""
        for layer, held in zip(self.rows, cache.stored, strict=True):
            keys, values, places, place = held.visible()
            held.spec.rotary.reserve(place + 1)
            keys = held.spec.rotary.turn(keys.to(held.spec.dtype), places)
            pairs = keys, values.to(held.spec.dtype)
            layer.kind.lay(layer.at, row, pairs, held._seen_by_all(), place)
        self.step.zero_()

    def raw(self, layer: int, row: int, count: int) -> tuple[Tensor, Tensor]:
        """The pairs `[H, count, d]` of the last `count` steps since something was laid, keys not turned."""
        kind, at = self.rows[layer].kind, self.rows[layer].at
        return kind.raw_keys[at, row, :, :count], kind.raw_values[at, row, :, :count]


def slots_of(layers: Sequence[MemoryLayer | StoredLayer], room: int) -> dict[int | None, int]:
    """Slots a row by window for what is held and `room` tokens more, in few sizes, so that graphs serve again."""
    found: dict[int | None, int] = {}
    for layer in layers:
        window = layer.spec.window
        held = layer.get_seq_length()
        need = (held if window is None else min(held, window - 1)) + room + 1
        found[window] = max(found.get(window, 0), need)
    return {window: rounded(need) for window, need in found.items()}


def rounded(need: int) -> int:
    """The next power of two from 256 on; above 4,096 the next multiple of it."""
    if need > 4096:
        return -(-need // 4096) * 4096
    return max(256, 1 << (need - 1).bit_length())
