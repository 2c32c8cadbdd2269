"""One attention layer's memory: what all forms share, the sliding window, and the frozen view.

Layers hold keys before rotary embedding and turn them by their place when they are read. `update` takes the
step's new pairs `[1, H, T, d]` and returns everything that the step may see, turned, the new pairs last;
`query_place` is then the place of the step's first query. Batch is 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import CacheLayerMixin

from models.cache.ring import PairRing
from models.cache.spec import LayerSpec

if TYPE_CHECKING:
    from models.cache.factors import Factors


class MemoryLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """A layer of a cache as transformers sees it."""

    supports_early_init = False

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spec = spec
        self.is_initialized = True
        self.is_sliding = spec.window is not None
        self.query_place = 0
        self.watch: Callable[[Tensor], None] | None = None  # for measuring: sees all queries
        # which of the pairs that `update` returned may be looked at `[1 or H, n]`; None for all of them
        self.allowed: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy: all memory is taken when the cache is made."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset for masks of transformers' own; our attention makes its own."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit: reading goes on for ever."""
        return -1

    def observe(self, queries: Tensor) -> None:
        """See the step's queries `[num_heads, T, d]` before rotary embedding."""
        if self.watch is not None:
            self.watch(queries)


class StoredLayer(MemoryLayer):  # type: ignore[no-untyped-call]
    """A layer with memory of its own, which grows older by `update` and can be frozen."""

    seen = 0
    dropped: tuple[tuple[int, int], ...] = ()
    """Spans `(first, end)` of stream positions that nothing may look at any more."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All memory of the layer, by name."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """The whole numbers that belong to the memory."""

    @abstractmethod
    def set_counters(self, counters: dict[str, int]) -> None:
        """Take over the numbers of a snapshot."""

    @abstractmethod
    def make_room(self, num_tokens: int) -> None:
        """Evict what must go before `num_tokens` new pairs are stored."""

    @abstractmethod
    def visible(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """Keys and values `[H, n, d]`, keys not turned; their places `[1 or H, n]`; the next token's place."""

    @abstractmethod
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store the step's pairs `[H, T, d]`."""

    @abstractmethod
    def positions(self) -> Tensor:
        """Stream positions `[1 or H, n]` of the pairs that `visible` returns, in its order."""

    @abstractmethod
    def erase(self, first: int, end: int) -> dict[str, int]:
        """Zero what is held of the stream positions `first … end - 1`; how many tokens of each part."""

    def hidden(self, positions: Tensor) -> Tensor:
        """Which of the stream positions lie in a dropped span, as booleans of their shape."""
        out = torch.zeros_like(positions, dtype=torch.bool)
        for first, end in self.dropped:
            out |= (positions >= first) & (positions < end)
        return out

    def holds(self, first: int, end: int) -> bool:
        """Whether anything of the stream positions `first … end - 1` is held."""
        positions = self.positions()
        return bool(((positions >= first) & (positions < end)).any())

    def _seen_by_all(self) -> Tensor | None:
        return ~self.hidden(self.positions()) if self.dropped else None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See the module's text."""
        new_keys, new_values = key_states[0], value_states[0]
        self.make_room(new_keys.shape[1])
        keys, values, places, self.query_place = self.visible()
        allowed = self._seen_by_all()
        self.allowed = (
            None if allowed is None else functional.pad(allowed, (0, new_keys.shape[1]), value=True)
        )
        end = self.query_place + new_keys.shape[1]
        self.spec.rotary.reserve(end)
        steps = torch.arange(self.query_place, end, device=places.device)
        turned = self.spec.rotary.turn(
            torch.cat((keys.to(new_keys.dtype), new_keys), dim=1),
            torch.cat((places, steps.expand(places.shape[0], -1)), dim=1),
        )
        values = torch.cat((values.to(new_values.dtype), new_values), dim=1)
        self.append(new_keys, new_values)
        return turned[None], values[None]

    def frozen(self, room: int) -> ViewLayer:
        """A view of what is held now, with room for `room` more pairs."""
        keys, values, places, next_place = self.visible()
        view = ViewLayer(self.spec, keys.shape[1] + room, next_place)  # reserves the places that we turn to
        view.fill(self.spec.rotary.turn(keys.to(self.spec.dtype), places), values.to(self.spec.dtype))
        view.show_only(self._seen_by_all())
        return view

    def reset(self) -> None:
        """Forget everything; the memory stays and is zeroed."""
        for tensor in self.tensors().values():
            tensor.zero_()
        self.set_counters(dict.fromkeys(self.counters(), 0))
        self.dropped = ()


class SlidingLayer(StoredLayer):  # type: ignore[no-untyped-call]
    """The last `window - 1` pairs in a ring; places count from the oldest pair held."""

    def __init__(self, spec: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(spec)
        assert spec.window is not None
        self.ring = PairRing(spec.num_kv_heads, spec.window - 1, spec.head_dim, dtype, spec.device)

    def tensors(self) -> dict[str, Tensor]:
        """See StoredLayer.tensors."""
        return {f"ring.{name}": tensor for name, tensor in self.ring.tensors().items()}

    def counters(self) -> dict[str, int]:
        """See StoredLayer.counters."""
        return {"seen": self.seen}

    def set_counters(self, counters: dict[str, int]) -> None:
        """See StoredLayer.set_counters."""
        self.seen = counters["seen"]

    def make_room(self, num_tokens: int) -> None:
        """The ring overwrites its oldest pairs by itself."""

    def get_seq_length(self) -> int:
        """Number of pairs held."""
        return min(self.seen, self.ring.capacity)

    def visible(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """See StoredLayer.visible."""
        held = self.get_seq_length()
        keys, values = self.ring.read(self.seen - held, held)
        return keys, values, torch.arange(held, device=self.spec.device)[None], held

    def append(self, keys: Tensor, values: Tensor) -> None:
        """See StoredLayer.append."""
        self.ring.write(self.seen, keys, values)
        self.seen += keys.shape[1]

    def positions(self) -> Tensor:
        """See StoredLayer.positions."""
        return torch.arange(self.seen - self.get_seq_length(), self.seen, device=self.spec.device)[None]

    def erase(self, first: int, end: int) -> dict[str, int]:
        """See StoredLayer.erase."""
        self.ring.erase(max(first, self.seen - self.get_seq_length()), min(end, self.seen))
        return {}


class ViewLayer(MemoryLayer):  # type: ignore[no-untyped-call]
    """A snapshot of a layer, turned once, with a tail that grows: for answers, which must not change the cache.

    Working memory of one answer, given back when it ends; nothing is evicted from it.
    """

    def __init__(self, spec: LayerSpec, capacity: int, next_place: int = 0) -> None:
        super().__init__(spec)
        shape = (1, spec.num_kv_heads, capacity, spec.head_dim)
        self._keys = torch.empty(shape, dtype=spec.dtype, device=spec.device)
        self._values = torch.empty(shape, dtype=spec.dtype, device=spec.device)
        self._length, self._next_place = 0, next_place
        self._shown: Tensor | None = None
        # the latents among the pairs, as factors, where a step is to read them so (models/hf/static_factors.py)
        self.factors: Factors | None = None
        spec.rotary.reserve(next_place + capacity)

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Add pairs `[H, n, d]`, keys already turned."""
        end = self._length + keys.shape[1]
        assert end <= self._keys.shape[2]
        self._keys[0, :, self._length : end] = keys
        self._values[0, :, self._length : end] = values
        self._length = end

    def show_only(self, allowed: Tensor | None) -> None:
        """Let nobody look at the pairs held so far where `allowed [1 or H, n]` is False."""
        if allowed is not None:
            free = self._keys.shape[2] - self._length
            self._shown = functional.pad(allowed, (0, free), value=True)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the step's pairs and return what it may see: for a sliding layer its window, else everything."""
        num_tokens = key_states.shape[2]
        self.query_place = self._next_place
        places = torch.arange(self.query_place, self.query_place + num_tokens, device=key_states.device)
        first = 0 if self.spec.window is None else max(0, self._length - self.spec.window + 1)
        self.fill(self.spec.rotary.turn(key_states[0], places), value_states[0])
        self._next_place += num_tokens
        self.allowed = None if self._shown is None else self._shown[:, first : self._length]
        return self._keys[:, :, first : self._length], self._values[:, :, first : self._length]

    def rewind(self, num_tokens: int) -> None:
        """Forget the newest `num_tokens` pairs."""
        assert 0 <= num_tokens <= self._length
        self._length -= num_tokens
        self._next_place -= num_tokens

    def get_seq_length(self) -> int:
        """Number of pairs in the view."""
        return self._length
