"""Our rotating compressive cache at the same bytes, with budgets derived from them.

Three forms: latents only; heavy hitters by the question bank; heavy hitters by the learned ranker. By default the
context is read exactly and its pairs then enter the cache, as for every other method; with `streaming` it is read
through the cache from the first token, as a session does, with never more than the budget held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from models.cache.config import LEARNED, CacheConfig
from models.cache.full_layer import COMPRESSORS, RotatingLayer
from models.cache.layers import ViewLayer
from models.cache.learned import LearnedCompressor, LearnedWeights, learned_folder
from models.cache.ranker import Ranker, find_ranker
from models.cache.spec import LayerSpec
from models.compared.base import Method
from models.compared.ours_at_once import can_fill, fill
from models.compared.trace import LayerTrace, Trace, read_exactly

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

_STATS_BYTES = 48
_SLOT_BYTES = 12  # a heavy hitter's position and score


@dataclass(frozen=True, slots=True)
class Rotating:
    """One layer of our cache, as `Held`."""

    layer: RotatingLayer

    @property
    def spec(self) -> LayerSpec:
        """The layer."""
        return self.layer.spec

    @property
    def nbytes(self) -> int:
        """All memory of the layer, taken when it was made."""
        return sum(tensor.nbytes for tensor in self.layer.tensors().values())

    def frozen(self, room: int) -> ViewLayer:
        """See Held.frozen."""
        return self.layer.frozen(room)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ours(Method):
    """See the module's text. `raw_share` of the bytes is the ring of last tokens, the rest latents or hitters."""

    sinks: int = field(default=4, metadata={"help": "first tokens kept raw for ever"})
    scorer: str = field(default="", metadata={"help": "heavy hitters by this score; empty: latents only"})
    raw_share: float = field(default=0.25, metadata={"help": "share of the bytes for the ring (0 to 1)"})
    compressor: str = field(
        default="svd",
        metadata={"help": "how latents are made: svd, weighted_svd, projection or autoencoder"},
    )
    weights: str = field(
        default="shipped", metadata={"help": "for projection and autoencoder: shipped, or a folder"}
    )
    streaming: bool = field(default=False, metadata={"help": "read through the cache from the first token"})
    ranker: str = field(default="shipped", metadata={"help": "for scorer ranker: shipped, or a folder"})
    bank: Mapping[int, Tensor] = field(default_factory=dict, metadata={"help": "prepare() records it"})
    known: Ranker | None = field(default=None, metadata={"help": "prepare() loads it"})
    learned: LearnedWeights | None = field(default=None, metadata={"help": "prepare() loads them"})

    def __post_init__(self) -> None:
        if not 0 < self.raw_share < 1:
            raise ValueError(f"raw_share: given {self.raw_share}; allowed: above 0, below 1")

    def prepare(self, backbone: HfBackbone) -> Self:
        """See Method.prepare."""
        ready = replace(self, model=backbone.identity)
        if self.scorer == "question_bank" and not self.bank:
            ready = replace(ready, bank=backbone.question_bank())
        if self.scorer == "ranker" and self.known is None:
            ready = replace(ready, known=find_ranker(self.ranker, backbone.identity))
        if self.compressor in LEARNED and self.learned is None:
            kind = COMPRESSORS[self.compressor]
            assert issubclass(kind, LearnedCompressor)
            learned = LearnedWeights.load(self.compressor, kind.layer_type, learned_folder(self.weights))
            learned.check(backbone.identity)
            ready = replace(ready, learned=learned)
        return ready

    def compress(self, trace: Trace, budget_bytes: int) -> list[Rotating]:
        """See Method.compress."""
        each = _shares(trace, budget_bytes)
        return [self._layer(layer, share) for layer, share in zip(trace.layers, each, strict=True)]

    def read(self, backbone: HfBackbone, ids: Sequence[int], keep: float) -> Any:
        """See Method.read; with `streaming` a RotatingCompressiveCache that has read `ids` as a session would."""
        if not self.streaming:
            return self.memory(read_exactly(backbone, ids), _budget(backbone.specs, len(ids), keep))
        budget_bytes = _budget(backbone.specs, len(ids), keep)
        full = [spec for spec in backbone.specs if spec.window is None]
        configs = [self.config(spec, len(ids), budget_bytes // len(full)) for spec in full]
        if any(config != configs[0] for config in configs):
            raise ValueError(
                "the full-attention layers differ in shape; give budgets by per_layer of CacheConfig"
            )
        cache = backbone.new_cache(replace(configs[0], ranker=self.ranker, compressor_weights=self.weights))
        backbone.read(ids, cache)
        return cache

    def _layer(self, trace: LayerTrace, budget_bytes: int) -> Rotating:
        index = trace.spec.index
        spec = replace(trace.spec, questions=self.bank.get(index), ranker=self.known, learned=self.learned)
        config = self.config(spec, trace.num_tokens, budget_bytes)
        layer = RotatingLayer(spec, config, spec.dtype)
        if can_fill(layer):
            fill(layer, trace)
            return Rotating(layer)
        for start in range(0, trace.num_tokens, config.read_block):
            part = slice(start, start + config.read_block)
            keys, values = trace.keys[:, part], trace.values[:, part]
            layer.make_room(keys.shape[1])
            layer.append(keys, values)
            layer.observe(trace.queries[:, part])
        return Rotating(layer)

    def config(self, spec: LayerSpec, num_tokens: int, budget_bytes: int) -> CacheConfig:
        """Budgets of one layer for a context of `num_tokens`: at most `budget_bytes`, everything counted.

        Raises ValueError where sinks and the smallest ring do not fit.
        """
        number = spec.num_kv_heads * spec.dtype.itemsize
        pair = 2 * spec.head_dim * number
        pairs = (budget_bytes - _STATS_BYTES) // pair
        if pairs >= num_tokens:  # everything fits raw
            block = max(8, self.sinks)
            ring = max(num_tokens - self.sinks, 2 * block)
            if (ring + self.sinks) * pair + _STATS_BYTES <= budget_bytes:
                return CacheConfig(
                    sinks=self.sinks, ring=ring, read_block=block, evict_block=block, compressor="drop"
                )
        block = min(64, max(8, 1 << max(0, (int(pairs) // 8).bit_length() - 1)))
        read = max(block, self.sinks)
        ring = max(read + block, int(pairs * self.raw_share))
        left = budget_bytes - _STATS_BYTES - (self.sinks + ring) * pair
        if left < 0:
            raise ValueError(
                f"the budget of {budget_bytes} bytes for layer {spec.index} is less than its {self.sinks} sinks "
                f"and the smallest ring of {ring} need: {(self.sinks + ring) * pair + _STATS_BYTES} bytes"
            )
        plain: dict[str, Any] = {"sinks": self.sinks, "ring": ring, "read_block": read, "evict_block": block}
        if self.scorer:
            return self._with_heavy(plain, spec, int(left), pair, block)
        return self._with_latents(plain, spec, int(left), num_tokens, number)

    def _with_heavy(
        self, plain: dict[str, Any], spec: LayerSpec, left: int, pair: int, block: int
    ) -> CacheConfig:
        window = 32 * spec.num_heads * spec.head_dim * 4 if self.scorer == "attention_mass" else 0
        heavy = max(0, left - window) // (pair + _SLOT_BYTES * spec.num_kv_heads)
        if heavy == 0:
            return CacheConfig(**plain, compressor="drop")
        each = min(heavy, block // 2)
        return CacheConfig(
            **plain, compressor="drop", heavy=heavy, heavy_per_block=each, heavy_scorer=self.scorer
        )

    def _with_latents(
        self, plain: dict[str, Any], spec: LayerSpec, left: int, num_tokens: int, number: int
    ) -> CacheConfig:
        """All evicted blocks at the largest rank that fits; if rank 1 does not, as many blocks as do."""
        block = 256 if num_tokens > 2048 else 128
        # a block as long as the ring allows costs least in bases
        block = max(plain["evict_block"], min(block, plain["ring"] - plain["read_block"]))
        blocks = max(1, -(-(num_tokens - self.sinks - plain["ring"]) // block))
        fixed = block * 4 * spec.num_kv_heads  # positions of a block's tokens
        moments = self._moments_bytes(spec)
        most = min(block, spec.head_dim)
        if self.compressor in LEARNED:  # the bases are the model's; an autoencoder has one code for both
            rank_bytes = (1 if self.compressor == "autoencoder" else 2) * block * number
            if self.learned is not None and spec.index in self.learned.layers:
                most = min(spec.head_dim, self.learned.layers[spec.index].most_rank)
        else:
            rank_bytes = 2 * (block + spec.head_dim) * number
        rank = ((left - moments) // blocks - fixed) // rank_bytes
        rank = min(int(rank), most)
        if rank < 1:
            rank, blocks = 1, (left - moments) // (rank_bytes + fixed)
        if blocks < 1:
            return CacheConfig(**plain, compressor="drop")
        return CacheConfig(
            **{**plain, "evict_block": block},
            compressor=self.compressor,
            rank=rank,
            latent_blocks=int(blocks),
        )

    def _moments_bytes(self, spec: LayerSpec) -> int:
        if self.compressor in LEARNED:
            return 8  # which weights made the codes
        return 2 * spec.num_kv_heads * spec.head_dim**2 * 4 + 4096 if self.compressor == "weighted_svd" else 0


def _budget(specs: Sequence[LayerSpec], num_tokens: int, keep: float) -> int:
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep: given {keep}; allowed: above 0, at most 1")
    full = sum(
        2 * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize for spec in specs if spec.window is None
    )
    return int(keep * full * num_tokens)


def _shares(trace: Trace, budget_bytes: int) -> list[int]:
    """The budget split over the layers by what they hold in full."""
    full = trace.full_bytes
    return [budget_bytes * (layer.keys.nbytes + layer.values.nbytes) // full for layer in trace.layers]
