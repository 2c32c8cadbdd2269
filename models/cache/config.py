"""What a session's cache holds, chosen before it is made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

LEARNED = ("projection", "autoencoder")
COMPRESSORS = ("svd", "weighted_svd", *LEARNED, "drop")
SCORERS = ("key_difference", "key_norm", "attention_mass", "question_bank", "ranker")
KEY_FRAMES = ("before_rotary", "within_block")
KEEP_RULES = ("weakest", "oldest")
SUMMARIES = ("own", "in_place")
_SAME_IN_ALL_LAYERS = {"read_block", "dtype", "per_layer", "ranker", "compressor_weights"}
STORAGE = ("model", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Budgets of the rotating compressive cache: counts of tokens in each full-attention layer.

    The bytes follow from these numbers and the model's shape alone and are allocated once. Sliding-window
    layers keep their own window beside and have no budget here.
    """

    sinks: int = field(
        default=4, metadata={"help": "first tokens of the stream, kept raw for ever (attention sinks)"}
    )
    ring: int = field(
        default=1024,
        metadata={"help": "most recent tokens kept as raw key and value pairs; oldest leave first"},
    )
    evict_block: int = field(
        default=128, metadata={"help": "tokens that leave the ring together and become one block of latents"}
    )
    rank: int = field(default=32, metadata={"help": "rank of a latent block's key factors"})
    value_rank: int = field(
        default=0, metadata={"help": "rank of a latent block's value factors; 0 takes the keys' rank"}
    )
    latent_blocks: int = field(
        default=16, metadata={"help": "latent blocks kept, first in first out; 0 keeps none"}
    )
    summaries: str = field(
        default="own",
        metadata={
            "help": "where latents stand: own (a ring of their own beside the raw pairs), in_place (in the place "
            "of the raw pairs that they replace: ring then counts both, all raw while a stream is young)"
        },
    )
    compressor: str = field(
        default="svd",
        metadata={
            "help": "how a block becomes latents: svd (smallest error in the pairs), weighted_svd (smallest "
            "error in what the queries seen so far read), projection (learned matrices), autoencoder "
            "(one learned code for key and value), drop (window and sinks only)"
        },
    )
    compressor_weights: str = field(
        default="shipped",
        metadata={
            "help": "for projection and autoencoder: shipped (for gemma-3-270m), or the folder of trained ones"
        },
    )
    key_frame: str = field(
        default="before_rotary",
        metadata={
            "help": "what the key factors describe: before_rotary (keys without positions, turned one by one "
            "when read), within_block (keys turned to their place in the block: factors can be read "
            "without unpacking, at a larger error)"
        },
    )
    heavy: int = field(
        default=0, metadata={"help": "raw slots for heavy hitters picked out of evicted blocks; 0 for none"}
    )
    heavy_per_block: int = field(
        default=16, metadata={"help": "heavy hitters picked out of every evicted block, when heavy is not 0"}
    )
    heavy_scorer: str = field(
        default="key_difference",
        metadata={
            "help": "what ranks the tokens of an evicted block: key_difference, "
            "key_norm, attention_mass (of the newest text), question_bank (of recorded questions), ranker (learned)"
        },
    )
    ranker: str = field(
        default="shipped",
        metadata={"help": "for heavy_scorer ranker: shipped (for gemma-3-270m), or a ranker's folder"},
    )
    heavy_keep: str = field(
        default="weakest",
        metadata={"help": "who makes room for new heavy hitters: the weakest score or the oldest"},
    )
    read_block: int = field(
        default=128,
        metadata={"help": "tokens read in one step; a remainder waits, so how text is split never matters"},
    )
    dtype: str = field(
        default="model", metadata={"help": "type of the stored numbers: model, float32, bfloat16 or float16"}
    )
    per_layer: dict[str, dict[str, int | str]] = field(
        default_factory=dict,
        metadata={
            "help": 'other budgets of single full-attention layers, as {"17": {"ring": 2048, "rank": 64}}'
        },
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("sinks", 0),
            ("ring", 1),
            ("evict_block", 1),
            ("rank", 1),
            ("value_rank", 0),
            ("latent_blocks", 0),
            ("heavy", 0),
            ("heavy_per_block", 1),
            ("read_block", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"cache.{name} is {value!r}; it must be a whole number of at least {least}")
        for name, allowed in (
            ("summaries", SUMMARIES),
            ("compressor", COMPRESSORS),
            ("heavy_scorer", SCORERS),
            ("heavy_keep", KEEP_RULES),
            ("key_frame", KEY_FRAMES),
            ("dtype", STORAGE),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"cache.{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not self.compressor_weights:
            raise ValueError("cache.compressor_weights is empty; give shipped or the folder of trained ones")
        if not self.ranker:
            raise ValueError("cache.ranker is empty; give shipped or the folder of a trained ranker")
        if self.read_block < self.sinks:
            raise ValueError(
                f"cache.read_block is {self.read_block} and cache.sinks {self.sinks}: the sinks must fit into "
                "the first block read; lower sinks or raise read_block"
            )
        need = self.read_block + self.evict_block
        if self.ring < need:
            raise ValueError(
                f"cache.ring is {self.ring}, less than read_block {self.read_block} + evict_block "
                f"{self.evict_block} = {need}; raise ring or lower the blocks"
            )
        if self.summaries == "in_place":
            self._check_in_place()
        if self.heavy and self.heavy < self.heavy_per_block:
            raise ValueError(
                f"cache.heavy is {self.heavy}, less than heavy_per_block {self.heavy_per_block}; "
                "raise heavy or lower heavy_per_block"
            )
        if self.heavy and self.heavy_per_block >= self.evict_block:
            raise ValueError(
                f"cache.heavy_per_block is {self.heavy_per_block}, not less than evict_block {self.evict_block}"
            )
        for name, value in (("rank", self.rank), ("value_rank", self.value_rank)):
            if self.has_latents and self.compressor not in LEARNED and value > self.block_tokens:
                raise ValueError(
                    f"cache.{name} is {value}, more than the {self.block_tokens} tokens of a latent block "
                    f"(evict_block {self.evict_block} less its heavy hitters); lower {name}"
                )

        self._check_layers()

    def _check_in_place(self) -> None:
        if not self.has_latents or self.compressor in LEARNED:
            raise ValueError(
                f"cache.summaries is in_place with compressor {self.compressor} and latent_blocks "
                f"{self.latent_blocks}; allowed: compressor svd or weighted_svd, and at least one latent block"
            )
        if self.ring % self.evict_block:
            raise ValueError(
                f"cache.ring is {self.ring} and cache.summaries in_place; it must be a multiple of evict_block "
                f"{self.evict_block}"
            )

    def _check_layers(self) -> None:
        allowed = {f.name for f in fields(self)} - _SAME_IN_ALL_LAYERS
        for layer, changes in self.per_layer.items():
            if not str(layer).isdigit():
                raise ValueError(f"cache.per_layer names layer {layer!r}; it must be a layer's number")
            if unknown := sorted(set(changes) - allowed):
                raise ValueError(
                    f"cache.per_layer sets {', '.join(unknown)} of layer {layer}; "
                    f"allowed: {', '.join(sorted(allowed))}"
                )
            try:
                self.for_layer(int(layer))
            except ValueError as error:
                raise ValueError(f"cache.per_layer, layer {layer}: {error}") from error

    def for_layer(self, index: int) -> CacheConfig:
        """The budgets of layer number `index`."""
        changes: dict[str, Any] = {**self.per_layer.get(str(index), {}), "per_layer": {}}
        return replace(self, **changes)

    @property
    def has_latents(self) -> bool:
        """Whether evicted blocks leave latents behind."""
        return self.latent_blocks > 0 and self.compressor != "drop"

    @property
    def block_tokens(self) -> int:
        """Tokens that one latent block stands for (its heavy hitters are raw, elsewhere)."""
        return self.evict_block - (self.heavy_per_block if self.heavy else 0)

    @property
    def key_and_value_ranks(self) -> tuple[int, int]:
        """Ranks of the key factors and of the value factors."""
        return self.rank, self.value_rank or self.rank
