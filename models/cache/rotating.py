"""A session's memory of constant size: the rotating compressive key-value cache over all layers of a model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import structlog
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from models.cache.config import CacheConfig
from models.cache.full_layer import RotatingLayer, stats_of
from models.cache.layers import SlidingLayer, StoredLayer, ViewLayer
from models.cache.spec import LayerSpec

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

_log = structlog.get_logger()


class CacheView(Cache):
    """What one answer reads: a cache as it was, and a tail of its own. The cache goes on independently."""

    def __init__(self, layers: list[ViewLayer]) -> None:
        self.views = layers
        super().__init__(layers=cast("list[Any]", layers))

    def rewind(self, num_tokens: int) -> None:
        """Take back the newest `num_tokens` tokens, to go on differently from there."""
        for layer in self.views:
            layer.rewind(num_tokens)

    @classmethod
    def empty(cls, specs: Sequence[LayerSpec], room: int) -> CacheView:
        """A view of nothing, for prompts without a session."""
        return cls([ViewLayer(spec, room) for spec in specs])


class RotatingCompressiveCache(Cache):
    """One stream's cache. Made by `backbone.new_cache`; read into by `backbone.read`.

    Text is computed in steps of exactly `config.read_block` tokens; the remainder waits as token ids in
    `pending` and is computed with each question. So the bytes depend on the tokens alone, not on how they were
    split, and a session that was killed and replays from its snapshot reaches the same bytes (with the
    same library versions, number of threads and kind of device).
    """

    def __init__(self, config: CacheConfig, specs: Sequence[LayerSpec], model: str) -> None:
        """`model` is the identity of the backbone; another one's snapshots are refused."""
        self.config, self.model = config, model
        self._specs = list(specs)
        full = [str(spec.index) for spec in specs if spec.window is None]
        if strange := sorted(set(config.per_layer) - set(full)):
            raise ValueError(
                f"cache.per_layer names layer {', '.join(strange)}; the full-attention layers of {model} are "
                f"{', '.join(full) or 'none'}"
            )
        self.stored = [self._layer(spec) for spec in specs]
        super().__init__(layers=cast("list[Any]", self.stored))
        self.dtype = specs[0].dtype
        device = specs[0].device
        self._pending = torch.zeros(config.read_block, dtype=torch.int64, device=device)
        self._num_pending = 0
        self._logged_blocks = 0

    def _layer(self, spec: LayerSpec) -> StoredLayer:
        dtype = spec.dtype if self.config.dtype == "model" else getattr(torch, self.config.dtype)
        if spec.window is not None:
            return SlidingLayer(spec, dtype)
        return RotatingLayer(spec, self.config.for_layer(spec.index), dtype)

    # -- what is held -----------------------------------------------------------------------------------------

    @property
    def tokens_seen(self) -> int:
        """Tokens read so far, those that wait in `pending` included."""
        return self.tokens_computed + self._num_pending

    @property
    def tokens_computed(self) -> int:
        """Tokens that have passed through the model: whole steps."""
        return self.stored[0].seen

    @property
    def pending(self) -> list[int]:
        """Token ids read but not yet computed, fewer than a step."""
        return [int(i) for i in self._pending[: self._num_pending]]

    @property
    def nbytes(self) -> int:
        """Bytes of all memory of the session, fixed when the cache is made."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def nbytes_by_part(self) -> dict[str, int]:
        """The same bytes by part: sinks, ring, latents, heavy, … of the full layers, and the sliding layers."""
        parts: dict[str, int] = {"pending": self._pending.nbytes}
        for layer in self.stored:
            for name, tensor in layer.tensors().items():
                part = "sliding" if isinstance(layer, SlidingLayer) else name.partition(".")[0]
                parts[part] = parts.get(part, 0) + tensor.nbytes
        return parts

    def tensors(self) -> dict[str, Tensor]:
        """All memory, by name."""
        named = {
            f"layer{i}.{n}": t for i, layer in enumerate(self.stored) for n, t in layer.tensors().items()
        }
        return {**named, "pending": self._pending}

    def stats(self) -> dict[str, dict[str, float]]:
        """What compression has lost in each full-attention layer, by layer number."""
        return {
            str(layer.spec.index): stats_of(layer)
            for layer in self.stored
            if isinstance(layer, RotatingLayer)
        }

    def log_lost(self) -> None:
        """Log `stats` whenever the evicted blocks have doubled since it was last logged: a few lines a session.

        Off by at most `*_worst_row` times its length is any query's score (and any head's output by the values').
        """
        layers = [layer for layer in self.stored if isinstance(layer, RotatingLayer) and layer.latents]
        blocks = max((layer.blocks for layer in layers), default=0)
        if blocks >= max(1, 2 * self._logged_blocks):
            self._logged_blocks = blocks
            _log.info("cache_truncated", model=self.model, tokens=self.tokens_computed, layers=self.stats())

    # -- reading ----------------------------------------------------------------------------------------------

    def take(self, ids: Sequence[int]) -> list[Tensor]:
        """Add ids to what waits and return the whole steps `[read_block]` that are now due, in order."""
        device = self._pending.device
        waiting = torch.cat(
            (self._pending[: self._num_pending], torch.tensor(list(ids), dtype=torch.int64, device=device))
        )
        size = self.config.read_block
        steps = [waiting[i : i + size] for i in range(0, len(waiting) - size + 1, size)]
        rest = waiting[len(steps) * size :]
        self._pending.zero_()
        self._pending[: len(rest)] = rest
        self._num_pending = len(rest)
        return steps

    def foresee(self) -> None:
        """Begin what the next step's evictions need, so that the step need not wait for it; what is held stays."""
        for layer in self.stored:
            if isinstance(layer, RotatingLayer):
                layer.foresee(self.config.read_block)

    def forget_foreseen(self) -> None:
        """Give up what was begun of coming evictions, and the memory outside of the cache that it takes."""
        for layer in self.stored:
            if isinstance(layer, RotatingLayer):
                layer.forget_foreseen()

    def view(self, room: int) -> CacheView:
        """What an answer may read now, with room for `room` further tokens (the pending ones among them)."""
        return CacheView([layer.frozen(room) for layer in self.stored])

    def reset(self) -> None:
        """Forget everything; the same memory serves the next stream."""
        for layer in self.stored:
            layer.reset()
        self._pending.zero_()
        self._num_pending = self._logged_blocks = 0

    # -- withdrawing ------------------------------------------------------------------------------------------

    @property
    def tokens_held(self) -> int:
        """Tokens that are held at most, raw or as latents; heavy hitters may be older."""
        most = []
        for layer in self.stored:
            if isinstance(layer, RotatingLayer):
                c = layer.config
                most.append(c.sinks + c.ring + (c.latent_blocks * c.evict_block if c.has_latents else 0))
            else:
                most.append(layer.spec.window or 0)
        return max(most) + self.config.read_block

    def drop(self, first: int, end: int) -> dict[str, int]:
        """Let nothing look at the tokens `first … end - 1` of the stream any more; returns how many each part held.

        Their pairs are zeroed in sinks, ring, sliding windows and heavy hitters, and their rows in the latents. Two
        traces stay until the cache is read anew from text: the bases of latent blocks that they share
        with others, and what they did to the pairs of tokens read after them. Tokens still in `pending`
        were never computed and leave without a trace; later positions then move down (`tokens_seen` falls).
        """
        computed, seen = self.tokens_computed, self.tokens_seen
        parts: dict[str, int] = {}
        held = (max(0, first), min(end, computed))
        if held[1] > held[0]:
            for layer in self.stored:
                for part, count in layer.erase(*held).items():
                    parts[part] = max(count, parts.get(part, 0))
            self._set_dropped([*self.dropped, held])
        waiting = (max(first, computed) - computed, min(end, seen) - computed)
        if waiting[1] > waiting[0]:
            rest = self.pending
            del rest[slice(*waiting)]
            self._pending.zero_()
            self._pending[: len(rest)] = torch.tensor(rest, dtype=torch.int64)
            self._num_pending = len(rest)
            parts["pending"] = waiting[1] - waiting[0]
        return {part: count for part, count in parts.items() if count}

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """The spans of stream positions that were dropped and of which places are still taken."""
        return list(self.stored[0].dropped)

    def _set_dropped(self, spans: Sequence[tuple[int, int]]) -> None:
        kept = tuple(span for span in spans if any(layer.holds(*span) for layer in self.stored))
        for layer in self.stored:
            layer.dropped = kept

    def replace_by(self, other: RotatingCompressiveCache) -> None:
        """Take over the content of a cache of the same shape, in this one's memory."""
        mine = self.tensors()
        for name, tensor in other.tensors().items():
            mine[name].copy_(tensor)
        self.set_counters(copy.deepcopy(other.counters()))

    # -- copies -----------------------------------------------------------------------------------------------

    def fork(self) -> RotatingCompressiveCache:
        """An independent cache with the same content."""
        twin = RotatingCompressiveCache(self.config, self._specs, self.model)
        twin.replace_by(self)
        twin._logged_blocks = self._logged_blocks
        return twin

    def counters(self) -> dict[str, Any]:
        """The whole numbers that belong to the memory."""
        return {
            "pending": self._num_pending,
            "layers": [layer.counters() for layer in self.stored],
            "dropped": [list(span) for span in self.dropped],
        }

    def set_counters(self, counters: dict[str, Any]) -> None:
        """Take over the numbers of a snapshot or of another cache."""
        self._num_pending = int(counters["pending"])
        for layer, given in zip(self.stored, counters["layers"], strict=True):
            layer.set_counters(given)
            layer.dropped = tuple((int(first), int(end)) for first, end in counters["dropped"])

    def to_bytes(self) -> bytes:
        """A snapshot (safetensors); equal content gives equal bytes."""
        from models.cache.snapshot import pack

        return pack(self)

    @staticmethod
    def from_bytes(
        data: bytes, backbone: HfBackbone, config: CacheConfig | None = None
    ) -> RotatingCompressiveCache:
        """The cache of a snapshot; raises ValueError for damage, another model, or another `config` if given, and
        its kind NewerSnapshot for what a later version wrote."""
        from models.cache.snapshot import unpack

        return unpack(data, backbone, config)
