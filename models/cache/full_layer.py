"""One full-attention layer's memory: sinks, heavy hitters, latents and a raw ring, of constant size.

The stream's first tokens are sinks. All later ones enter the ring; when it is full, its oldest `evict_block`
pairs leave together: the highest scored become heavy hitters (if any are configured), the others one block of
latents, and the oldest latents go. Pairs are stored by count, never moved.

Places: while nothing has left the latents, a token's place is its position in the stream. Later everything
after the sinks is shifted down so that the sinks are followed by room for the heavy hitters, then by the oldest
latents: distances between held tokens stay true, except to the sinks (arXiv 2309.17453 does the same for
sinks and window) and to heavy hitters older than the latents, which stand behind the sinks by age.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from models.cache.compressor import Compressor, lost_of
from models.cache.config import CacheConfig
from models.cache.eviction import Leaving, NextBlock, begun, foreseen, let_go
from models.cache.heavy import HeavyStore
from models.cache.latents import LatentRing
from models.cache.layers import StoredLayer
from models.cache.learned_autoencoder import LearnedAutoencoder
from models.cache.learned_projection import LearnedProjection
from models.cache.places import SharedLatents, SharedRing, places_of, ring_of
from models.cache.ring import PairRing
from models.cache.scorers import BY_NAME, Evicted
from models.cache.spec import LayerSpec
from models.cache.svd import SvdCompressor
from models.cache.weighted_svd import WeightedSvdCompressor

COMPRESSORS: dict[str, type[Compressor]] = {
    "svd": SvdCompressor,
    "weighted_svd": WeightedSvdCompressor,
    "projection": LearnedProjection,
    "autoencoder": LearnedAutoencoder,
}
WINDOW_QUERIES = 32  # newest queries that the score attention_mass looks at
_STATS = ("key_energy", "key_tail", "key_worst", "value_energy", "value_tail", "value_worst")

_log = logging.getLogger(__name__)


class RotatingLayer(StoredLayer):  # type: ignore[no-untyped-call]
    """See the module's text."""

    def __init__(self, spec: LayerSpec, config: CacheConfig, dtype: torch.dtype) -> None:
        super().__init__(spec)
        heads, dim, device = spec.num_kv_heads, spec.head_dim, spec.device
        if config.has_latents and max(config.key_and_value_ranks) > dim:
            raise ValueError(
                f"cache.rank is {max(config.key_and_value_ranks)}, more than the model's head width {dim} "
                f"(layer {spec.index}); lower rank"
            )
        self.config = config
        self.blocks = 0
        self.sinks = PairRing(heads, config.sinks, dim, dtype, device)
        self.places = places_of(config, dim)
        self.ring = ring_of(self.places, heads, config.ring, dim, dtype, device)
        self.latents: LatentRing | None = None
        self.compressor: Compressor | None = None
        if config.has_latents:
            ranks = config.key_and_value_ranks
            blocks, tokens = config.latent_blocks, config.block_tokens
            self.compressor = COMPRESSORS[config.compressor](spec, config)
            shared = self.compressor.shared()
            if isinstance(self.ring, SharedRing):
                self.latents = SharedLatents(self.ring, tokens, ranks)
            else:
                self.latents = LatentRing(heads, blocks, tokens, ranks, dim, dtype, device, shared)
        self.heavy = HeavyStore(spec, config, dtype) if config.heavy else None
        needs_queries = config.heavy and config.heavy_scorer == "attention_mass"
        window = WINDOW_QUERIES if needs_queries else 0
        self.queries = torch.zeros(spec.num_heads, window, dim, device=device)
        self.stats = torch.zeros(len(_STATS), dtype=torch.float64, device=device)
        self._leaving: Leaving | NextBlock | None = None

    def reset(self) -> None:
        """See StoredLayer.reset."""
        super().reset()
        if self.compressor:
            self.compressor.reset()

    # -- memory -----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """See StoredLayer.tensors."""
        parts = {"sinks": self.sinks, "ring": self.ring, "latents": self.latents, "heavy": self.heavy}
        parts["compressor"] = self.compressor  # type: ignore[assignment]
        named = {
            f"{part}.{n}": t for part, owner in parts.items() if owner for n, t in owner.tensors().items()
        }
        return {**named, "queries": self.queries, "stats": self.stats}

    def counters(self) -> dict[str, int]:
        """See StoredLayer.counters."""
        return {"seen": self.seen, "blocks": self.blocks}

    def set_counters(self, counters: dict[str, int]) -> None:
        """See StoredLayer.set_counters."""
        self.seen, self.blocks = counters["seen"], counters["blocks"]
        self.forget_foreseen()  # what is held is another's

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def _in_ring(self) -> int:
        return max(0, self.seen - self.config.sinks) - self.blocks * self.config.evict_block

    @property
    def free(self) -> int:
        """Raw pairs that fit before the next eviction; sinks that are still missing are not counted."""
        return self.places.capacity(self.blocks) - self._in_ring

    @property
    def _latent_blocks(self) -> int:
        return min(self.blocks, self.config.latent_blocks) if self.latents else 0

    @property
    def _heavies(self) -> int:
        return min(self.blocks * self.config.heavy_per_block, self.config.heavy) if self.heavy else 0

    @property
    def _oldest(self) -> int:
        """Stream position of the oldest token behind sinks and old heavy hitters."""
        return self.config.sinks + (self.blocks - self._latent_blocks) * self.config.evict_block

    @property
    def _shift(self) -> int:
        return max(0, self._oldest - self.config.sinks - self.config.heavy)

    def get_seq_length(self) -> int:
        """Number of pairs held, raw or as latents."""
        latent = self._latent_blocks * self.config.block_tokens
        return min(self.seen, self.config.sinks) + self._heavies + latent + self._in_ring

    def visible(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """See StoredLayer.visible; order: sinks, heavy hitters, latents (unpacked), ring."""
        return self._held(latents=True)

    def raw(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """As `visible`, without the latents (models/cache/factors.py has them)."""
        return self._held(latents=False)

    def _held(self, *, latents: bool) -> tuple[Tensor, Tensor, Tensor, int]:
        config, device = self.config, self.spec.device
        heads = self.spec.num_kv_heads
        num_sinks = min(self.seen, config.sinks)
        parts = [(*self.sinks.read(0, num_sinks), torch.arange(num_sinks, device=device).expand(heads, -1))]
        if self.heavy:
            n = self._heavies
            places = self.heavy.places(n, config.sinks, self._shift)
            parts.append((self.heavy.keys[:, :n], self.heavy.values[:, :n], places))
        if self.latents and latents:
            keys, values, offsets = self.latents.unpack(self.latents.order(self.blocks))
            if config.key_frame == "within_block":
                offsets = torch.zeros_like(offsets)
            parts.append((keys, values, (self.latent_starts()[:, None] + offsets).flatten(1)))
        count = self.blocks * config.evict_block
        first = config.sinks + count - self._shift
        ring_places = torch.arange(first, first + self._in_ring, device=device).expand(heads, -1)
        parts.append((*self.ring.read(count, self._in_ring), ring_places))
        keys, values, places = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return keys, values, places, self.seen - self._shift

    def latent_starts(self) -> Tensor:
        """Places of the first tokens of the held latent blocks `[blocks]`, oldest first."""
        numbers = torch.arange(self._latent_blocks, device=self.spec.device)
        return self._oldest - self._shift + numbers * self.config.evict_block

    def positions(self) -> Tensor:
        """See StoredLayer.positions."""
        config, device = self.config, self.spec.device
        heads = self.spec.num_kv_heads
        parts = [torch.arange(min(self.seen, config.sinks), device=device).expand(heads, -1)]
        if self.heavy:
            parts.append(self.heavy.positions[:, : self._heavies])
        parts.append(self._latent_positions().flatten(1))
        first = config.sinks + self.blocks * config.evict_block
        parts.append(torch.arange(first, first + self._in_ring, device=device).expand(heads, -1))
        return torch.cat(parts, dim=1)

    def _latent_positions(self) -> Tensor:
        """Stream positions `[H, blocks, n]` of the held latents, oldest block first."""
        if self.latents is None:
            return torch.zeros(self.spec.num_kv_heads, 0, 0, dtype=torch.int64, device=self.spec.device)
        numbers = torch.arange(self.blocks - self._latent_blocks, self.blocks, device=self.spec.device)
        starts = self.config.sinks + numbers * self.config.evict_block
        return starts[:, None] + self.latents.offsets[:, self.latents.order(self.blocks)]

    # -- writing ----------------------------------------------------------------------------------------------

    def make_room(self, num_tokens: int) -> None:
        """See StoredLayer.make_room; whole blocks leave until the new pairs fit.

        Who reads token by token has the block that leaves next factored meanwhile.
        """
        blocks = self._due(num_tokens)
        if self._together(blocks):
            known = self._leaving
            if not isinstance(known, Leaving) or (known.begin, known.count) != (self.blocks, blocks):
                known = foreseen(self, blocks)
            self._note(*let_go(self, known))
        else:
            for _ in range(blocks):
                self._evict()
        if blocks:
            self.forget_foreseen()
        if num_tokens == 1 and self._leaving is None:
            self._leaving = begun(self)

    def forget_foreseen(self) -> None:
        """Give up what was begun of coming evictions; they are then factored when they fall due."""
        if self._leaving is not None:
            self._leaving.vectors.cancel()
            self._leaving = None

    def foresee(self, num_tokens: int) -> None:
        """Begin to factor what the next step of `num_tokens` will push out; nothing that is held changes."""
        self.forget_foreseen()
        blocks = self._due(num_tokens)
        self._leaving = foreseen(self, blocks) if self._together(blocks) else None

    def _due(self, num_tokens: int) -> int:
        """Blocks that must leave before `num_tokens` fit."""
        config = self.config
        to_ring = num_tokens - max(0, min(num_tokens, config.sinks - self.seen))
        wanted, left = self._in_ring + to_ring, 0
        while wanted - left * config.evict_block > self.places.capacity(self.blocks + left):
            left += self.places.step(self.blocks + left)
        return left

    def _together(self, blocks: int) -> bool:
        return blocks > 1 and self.factored_alone

    @property
    def factored_alone(self) -> bool:
        """Whether the factors of a block follow from its pairs alone, whatever is read before it leaves."""
        return self.config.compressor == "svd" and self.config.has_latents and not self.heavy

    def append(self, keys: Tensor, values: Tensor) -> None:
        """See StoredLayer.append."""
        pinned = max(0, min(keys.shape[1], self.config.sinks - self.seen))
        if pinned:
            self.sinks.write(self.seen, keys[:, :pinned], values[:, :pinned])
        self.ring.write(self.seen + pinned - self.config.sinks, keys[:, pinned:], values[:, pinned:])
        self.seen += keys.shape[1]

    def erase(self, first: int, end: int) -> dict[str, int]:
        """See StoredLayer.erase; heavy hitters are counted once a KV head."""
        config = self.config
        self.forget_foreseen()
        pinned = (max(first, 0), min(end, config.sinks, self.seen))
        self.sinks.erase(*pinned)
        begin = config.sinks + self.blocks * config.evict_block
        raw = (max(first, begin), min(end, self.seen))
        if raw[1] > raw[0]:
            self.ring.erase(raw[0] - config.sinks, raw[1] - config.sinks)
        counts = {"sinks": max(0, pinned[1] - pinned[0]), "ring": max(0, raw[1] - raw[0])}
        if self.latents:
            positions = self._latent_positions()
            hidden = (positions >= first) & (positions < end)
            self.latents.erase(self.latents.order(self.blocks), hidden)
            counts["latents"] = int(hidden.sum(dim=(1, 2)).max())
        if self.heavy:
            counts["heavy"] = self.heavy.erase(self._heavies, first, end)
        return counts

    def observe(self, queries: Tensor) -> None:
        """See MemoryLayer.observe."""
        super().observe(queries)
        if self.compressor:
            self.compressor.observe(queries)
        window = self.queries.shape[1]
        if window:
            self.queries.copy_(torch.cat((self.queries, queries.float()), dim=1)[:, -window:])

    def oldest(self) -> tuple[Tensor, Tensor, Tensor]:
        """The block that leaves next: pairs `[H, n, d]` in float32, places inside the block `[H, n]`."""
        n = self.config.evict_block
        keys, values = (pair.float() for pair in self.ring.read(self.blocks * n, n))
        return keys, values, torch.arange(n, device=self.spec.device).expand(keys.shape[0], -1)

    def framed(self, keys: Tensor, offsets: Tensor) -> Tensor:
        """Keys of a block as its factors describe them (`key_frame`)."""
        if self.config.key_frame == "before_rotary":
            return keys
        self.spec.rotary.reserve(self.config.evict_block)
        return self.spec.rotary.turn(keys, offsets)

    def _evict(self) -> None:
        keys, values, offsets = self.oldest()
        if self.heavy:
            keys, values, offsets = self._pick_heavy(self.blocks * self.config.evict_block, keys, values)
        if self.latents and self.compressor:
            keys = self.framed(keys, offsets)
            known, self._leaving = self._leaving, None
            if isinstance(known, NextBlock) and known.begin == self.blocks:
                assert isinstance(self.compressor, SvdCompressor)
                key, value = self.compressor.compress_by(keys, values, known.vectors.result())
            else:
                key, value = self.compressor.compress(keys, values)
            self.latents.write(self.blocks, (key.rows, key.basis), (value.rows, value.basis), offsets)
            self._note(lost_of(keys, key), lost_of(values, value))
        self.blocks += 1

    def _note(self, key: Tensor, value: Tensor) -> None:
        """Add what was lost to the statistics: sums of energy, the longest lost row. Nothing waits for a GPU."""
        now = torch.cat((key, value)).to(self.stats.device)
        longest = torch.maximum(self.stats, now)
        self.stats.add_(now)
        self.stats[2::3] = longest[2::3]
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("block %d of layer %d compressed: %s", self.blocks, self.spec.index, _named(now))

    def _pick_heavy(self, first: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.heavy is not None
        config = self.config
        ring_keys = self.ring.read(first, self._in_ring)[0].float()
        # queries at least as young as the block's first token, places counted from there
        window = min(self.queries.shape[1], self._in_ring)
        places = torch.arange(self._in_ring - window, self._in_ring, device=keys.device)
        queries = self.queries[:, self.queries.shape[1] - window :]
        sink_keys = self.sinks.keys.float()
        block = Evicted(self.spec, keys, values, ring_keys, sink_keys, queries, places)
        scores = BY_NAME[config.heavy_scorer](block)
        if self.dropped:
            begin = first + config.sinks
            places = torch.arange(begin, begin + config.evict_block, device=keys.device)
            scores = scores.masked_fill(self.hidden(places), float("-inf"))
        ranked = scores.argsort(dim=1, descending=True, stable=True)
        chosen = ranked[:, : config.heavy_per_block].sort(dim=1).values
        others = ranked[:, config.heavy_per_block :].sort(dim=1).values

        def take(x: Tensor, which: Tensor) -> Tensor:
            return x.gather(1, which[..., None].expand(-1, -1, x.shape[-1]))

        positions = chosen + first + config.sinks
        picked = scores.gather(1, chosen)
        self.heavy.admit(self._heavies, take(keys, chosen), take(values, chosen), positions, picked)
        return take(keys, others), take(values, others), others


def _named(stats: Tensor) -> dict[str, float]:
    return dict(zip(_STATS, (float(x) for x in stats), strict=True))


def stats_of(layer: RotatingLayer) -> dict[str, float]:
    """What truncation has lost so far: shares of energy and the longest lost row, for keys and values."""
    named = _named(layer.stats)
    out = {"evicted_blocks": float(layer.blocks)}
    for kind in ("key", "value"):
        energy = named[f"{kind}_energy"]
        out[f"{kind}_lost_share"] = named[f"{kind}_tail"] / energy if energy else 0.0
        out[f"{kind}_worst_row"] = named[f"{kind}_worst"]
    return out
