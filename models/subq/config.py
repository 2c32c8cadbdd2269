"""The shape of a sub-quadratic backbone: sizes, mixers, and how chunks are found and read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MIXERS = ("sliding", "gated_linear", "state_space", "full")
RETRIEVALS = ("chunk", "token", "none")
ENCODERS = ("layer", "lean")
INDEXES = ("flat", "ivf", "tree", "groups")
KERNELS = ("auto", "plain", "naive", "fused")


@dataclass(frozen=True, kw_only=True, slots=True)
class SubqConfig:
    """Lower blocks make chunks; upper blocks read the chunks that were chosen (GCA, arXiv 2410.01651)."""

    vocabulary: int = field(default=16_384, metadata={"help": "number of token ids"})
    width: int = field(default=512, metadata={"help": "width of the residual stream"})
    lower_blocks: int = field(default=3, metadata={"help": "blocks below the chunk encoder"})
    upper_blocks: int = field(default=3, metadata={"help": "blocks that read chosen chunks"})
    head_dim: int = field(default=64, metadata={"help": "width of an attention head"})
    kv_heads: int = field(
        default=2, metadata={"help": "key and value heads of a chunk, shared by all blocks"}
    )
    feed_forward: int = field(default=1_280, metadata={"help": "hidden width of the SwiGLU network"})
    window: int = field(
        default=512, metadata={"help": "tokens that a sliding-window block sees, its own included"}
    )
    taps: int = field(default=4, metadata={"help": "tokens that the causal depthwise convolution sees"})
    state_dim: int = field(default=64, metadata={"help": "state size a head of the state-space mixer"})
    lower_mixers: tuple[str, ...] = field(
        default=("sliding",),
        metadata={"help": f"pattern repeated over the lower blocks, of {', '.join(MIXERS)}"},
    )
    upper_mixers: tuple[str, ...] = field(
        default=("sliding",), metadata={"help": "pattern repeated over the upper blocks"}
    )
    chunk: int = field(default=64, metadata={"help": "tokens a chunk"})
    encoder_heads: int = field(default=8, metadata={"help": "heads that pool a chunk into its landmark"})
    landmark_dim: int = field(default=256, metadata={"help": "width of landmarks and queries"})
    retrieval: str = field(
        default="chunk",
        metadata={
            "help": "chunk: one query for each 64 tokens (GCA); token: one each (HSA, 2504.16795); none"
        },
    )
    tied: bool = field(default=True, metadata={"help": "landmark and query share values and output network"})
    top_k: int = field(default=8, metadata={"help": "chunks read by a query"})
    top_k_log: float = field(
        default=0.0, metadata={"help": "if above 0: round(this * log2(past chunks)) chunks, at most top_k"}
    )
    neighbours: bool = field(
        default=False,
        metadata={"help": "read chunk j + 1 with j's weight (what straddles two is read whole)"},
    )
    rerank: bool = field(
        default=False,
        metadata={
            "help": "a head weighs chosen chunks also by how well their tokens match its query, by a learned factor"
        },
    )
    encoder: str = field(
        default="layer",
        metadata={
            "help": "chunk encoder: layer (sees both ways inside a chunk), or lean (linear maps of the lower half "
            "alone, a fifth of the parameters)"
        },
    )
    lookahead: int = field(
        default=0,
        metadata={
            "help": "tokens after a chunk that its landmark, keys and values have seen; none more is stored"
        },
    )
    lookbehind: int = field(default=0, metadata={"help": "tokens before a chunk that they have seen"})
    shared_reader: bool = field(
        default=False,
        metadata={
            "help": "readers of chosen chunks use the query and output projections of their block's window"
        },
    )
    copies: bool = field(
        default=False,
        metadata={
            "help": "a head copies what followed such tokens in chosen chunks; a stream keeps a key a token for it"
        },
    )
    near: int = field(default=4, metadata={"help": "chunks nearer than this are never offered"})
    scale: float = field(default=16.0, metadata={"help": "initial factor of cosines in the choice's softmax"})
    scale_max: float = field(default=60.0, metadata={"help": "largest factor that training may reach"})
    index: str = field(default="flat", metadata={"help": f"search of landmarks: {', '.join(INDEXES)}"})
    probes: int = field(default=8, metadata={"help": "lists, nodes a level or groups that a search opens"})
    rotary_base: float = field(default=10_000.0, metadata={"help": "base of the rotary frequencies"})
    kernel: str = field(
        default="auto",
        metadata={
            "help": "chunk attention: plain PyTorch, or models.kernels.sparse_attention (naive, fused, auto)"
        },
    )
    context_tokens: int = field(default=16_384, metadata={"help": "longest sequence of training"})

    def __post_init__(self) -> None:
        _at_least(
            self, 1, "vocabulary", "width", "lower_blocks", "head_dim", "kv_heads", "feed_forward", "window",
            "taps", "state_dim", "encoder_heads", "landmark_dim", "top_k", "near", "probes", "context_tokens",
        )  # fmt: skip
        _at_least(self, 0, "upper_blocks", "top_k_log")
        if self.chunk < 2 or self.chunk & (self.chunk - 1):
            raise ValueError(f"chunk: given {self.chunk}; allowed: a power of two, 2 or more")
        for name, allowed in (
            ("retrieval", RETRIEVALS), ("encoder", ENCODERS), ("index", INDEXES), ("kernel", KERNELS),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: given {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in ("lower_mixers", "upper_mixers"):
            pattern = getattr(self, name)
            if isinstance(pattern, str) or not pattern or set(pattern) - set(MIXERS):
                raise ValueError(f"{name}: given {pattern!r}; allowed: a tuple of {', '.join(MIXERS)}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim: given {self.head_dim}; allowed: even numbers (rotary turns pairs)")
        if self.width % self.head_dim or self.num_heads % self.kv_heads:
            raise ValueError(
                f"width: given {self.width}, head_dim {self.head_dim}, kv_heads {self.kv_heads}; allowed: a width "
                "of whole heads whose number is a multiple of kv_heads"
            )
        if self.width % self.encoder_heads:
            raise ValueError(
                f"encoder_heads: given {self.encoder_heads}; allowed: divisors of width {self.width}"
            )
        if (self.retrieval == "none") != (self.upper_blocks == 0):
            raise ValueError(
                f"retrieval: given {self.retrieval!r} with upper_blocks {self.upper_blocks}; allowed: 'none' "
                "with 0 upper blocks, 'chunk' or 'token' with 1 or more"
            )
        if not 0 < self.scale <= self.scale_max:
            raise ValueError(
                f"scale: given {self.scale}; allowed: above 0, at most scale_max {self.scale_max}"
            )
        if self.copies and self.retrieval != "chunk":
            raise ValueError(
                f"copies: given with retrieval {self.retrieval!r}; allowed: with 'chunk' (from what was chosen)"
            )
        if self.rerank and self.kernel not in ("auto", "plain"):
            raise ValueError(
                f"kernel: given {self.kernel!r} with rerank; allowed: auto or plain (the kernels know only weights "
                "that are the same for all heads)"
            )
        self._check_encoder()
        if self.neighbours and self.near < 2:
            raise ValueError(
                f"near: given {self.near} with neighbours; allowed: 2 or more (a neighbour must be past)"
            )

    def _check_encoder(self) -> None:
        for name in ("lookahead", "lookbehind"):
            if not 0 <= getattr(self, name) <= self.chunk // 2:
                raise ValueError(
                    f"{name}: given {getattr(self, name)}; allowed: 0 to half a chunk ({self.chunk // 2})"
                )
        around = self.lookahead + self.lookbehind
        if self.lookahead and self.near < 2:
            raise ValueError(
                f"near: given {self.near} with lookahead {self.lookahead}; allowed: 2 or more (what a chunk looks "
                "ahead to must be past)"
            )
        if self.encoder == "lean" and (around or self.retrieval == "token"):
            raise ValueError(
                f"encoder: given 'lean' with lookahead {self.lookahead}, lookbehind {self.lookbehind}, retrieval "
                f"{self.retrieval!r}; allowed: 'layer', or neither around a chunk nor token queries"
            )
        others = {self.upper_mixer(i) for i in range(self.upper_blocks)} - {"sliding", "full"}
        if self.shared_reader and others:
            raise ValueError(
                f"shared_reader: given with upper mixers {self.upper_mixers}; allowed: sliding and full (others "
                "have no query to share)"
            )

    @property
    def num_heads(self) -> int:
        """Query heads of a block."""
        return self.width // self.head_dim

    @property
    def slots(self) -> int:
        """Chunks that a query reads at most, neighbours included."""
        return self.top_k * (2 if self.neighbours else 1)

    def lower_mixer(self, block: int) -> str:
        """Mixer of a lower block."""
        return self.lower_mixers[block % len(self.lower_mixers)]

    def upper_mixer(self, block: int) -> str:
        """Mixer of an upper block."""
        return self.upper_mixers[block % len(self.upper_mixers)]

    def chosen(self, past_chunks: int) -> int:
        """Chunks that a query chooses among `past_chunks`: top_k, or c * log2(past chunks) up to top_k."""
        if self.top_k_log <= 0:
            return self.top_k
        return min(self.top_k, max(1, round(self.top_k_log * math.log2(max(2, past_chunks)))))

    def reach(self, upper: bool) -> int | None:
        """Tokens before a token that can change it inside one half; None where a mixer remembers without end."""
        names = [self.upper_mixer(i) for i in range(self.upper_blocks)] if upper else [
            self.lower_mixer(i) for i in range(self.lower_blocks)
        ]  # fmt: skip
        if any(name != "sliding" for name in names):
            return None
        return len(names) * (self.window - 1 + self.taps - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept beside a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SubqConfig:
        """Read what `to_dict` wrote; raises ValueError for fields that there are not."""
        known = {each.name for each in fields(cls)}
        if set(values) - known:
            raise ValueError(
                f"unknown fields {sorted(set(values) - known)}; allowed: {', '.join(sorted(known))}"
            )
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def _at_least(config: SubqConfig, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name}: given {getattr(config, name)}; allowed: {least} or more")
