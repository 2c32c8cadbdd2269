"""Memory of fixed shape for decoding token by token: the same buffers and the same work at every step.

A CUDA graph repeats what it was shown, so nothing here depends on a number of Python's that changes: where the next
pair goes, which place it takes and what may be looked at are tensors on the device. What a cache or view holds is
laid into the buffers between steps (keys turned); the tail that grows behind it is masked, not cut. Latents are
laid out unpacked, or, with `shapes`, stay the factors that they are (models/hf/static_factors.py).

Shapes: `L` layers of one kind, `B` rows, `H` key heads, `N` slots, `d` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from models.cache.factors import factors_of, raw_of
from models.cache.full_layer import RotatingLayer
from models.cache.layers import MemoryLayer, StoredLayer, ViewLayer
from models.cache.rotating import CacheView, RotatingCompressiveCache
from models.cache.spec import LayerSpec
from models.hf.static_factors import FactoredKind, Shapes
from models.hf.static_kind import StaticKind


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
        shapes: Shapes | None = None,
    ) -> None:
        """`slots` a row by window (None: full attention); `recorded` steps are kept as raw pairs too.

        With `shapes` the latents of full-attention layers stay factors: slots are for raw pairs alone.
        """
        kinds: dict[tuple[Any, ...], list[LayerSpec]] = {}
        for spec in specs:
            kinds.setdefault((spec.window, spec.num_kv_heads, spec.head_dim, id(spec.rotary)), []).append(
                spec
            )
        self.kinds: list[StaticKind] = []
        for found in kinds.values():
            given = found, rows, slots[found[0].window], places, recorded
            if shapes is not None and found[0].window is None:
                self.kinds.append(FactoredKind(*given, shapes))
            else:
                self.kinds.append(StaticKind(*given))
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
        return sum(kind.nbytes for kind in self.kinds)

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
            if isinstance(layer.kind, FactoredKind):
                if held.factors is not None:
                    pairs = held.factors.without(pairs[0]), held.factors.without(pairs[1])
                    allowed = None if allowed is None else held.factors.without(allowed)
                layer.kind.lay_factors(layer.at, row, held.factors)
            layer.kind.lay(layer.at, row, pairs, allowed, held._next_place)
        self.step.zero_()

    def lay_cache(self, row: int, cache: RotatingCompressiveCache) -> None:
        """Let `row` hold what a session's cache holds; the next step is the first behind it."""
        for layer, held in zip(self.rows, cache.stored, strict=True):
            if isinstance(layer.kind, FactoredKind):
                assert isinstance(held, RotatingLayer)
                layer.kind.lay_factors(layer.at, row, factors_of(held))
                (keys, values, places, place), allowed = raw_of(held)
            else:
                keys, values, places, place = held.visible()
                allowed = held._seen_by_all()
            held.spec.rotary.reserve(place + 1)
            keys = held.spec.rotary.turn(keys.to(held.spec.dtype), places)
            layer.kind.lay(layer.at, row, (keys, values.to(held.spec.dtype)), allowed, place)
        self.step.zero_()

    def raw(self, layer: int, row: int, count: int) -> tuple[Tensor, Tensor]:
        """The pairs `[H, count, d]` of the last `count` steps since something was laid, keys not turned."""
        return self.rows[layer].kind.raw(self.rows[layer].at, row, count)


def slots_of(
    layers: Sequence[MemoryLayer | StoredLayer], room: int, *, factored: bool = False
) -> dict[int | None, int]:
    """Slots a row by window for what is held and `room` tokens more, in few sizes, so that graphs serve again.

    `factored`: tokens that views hold as latents too need none.
    """
    found: dict[int | None, int] = {}
    for layer in layers:
        window = layer.spec.window
        held = layer.get_seq_length()
        if factored and isinstance(layer, ViewLayer) and layer.factors is not None:
            held -= layer.factors.tokens
        need = (held if window is None else min(held, window - 1)) + room + 1
        found[window] = max(found.get(window, 0), need)
    return {window: rounded(need) for window, need in found.items()}


def rounded(need: int) -> int:
    """The next power of two from 256 on; above 4,096 the next multiple of it."""
    if need > 4096:
        return -(-need // 4096) * 4096
    return max(256, 1 << (need - 1).bit_length())
