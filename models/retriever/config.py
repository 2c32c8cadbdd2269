"""The size and kind of a policy network."""

from __future__ import annotations

from dataclasses import dataclass, field

ENCODERS = ("vectors", "transformer", "bilstm")
POOLINGS = ("mean", "cls")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieverConfig:
    """The Siamese scorer and its pointer policy."""

    dim: int = field(default=384, metadata={"help": "width of the embedder's vectors"})
    num_features: int = field(default=15, metadata={"help": "features of a candidate"})
    feature_names: tuple[str, ...] = field(
        default=(), metadata={"help": "their names, checked when a saved policy meets a table"}
    )
    encoder: str = field(
        default="vectors",
        metadata={
            "help": "what question and candidates are encoded by, with shared weights: vectors (the frozen "
            "embedder's), or a small transformer or bilstm over hashed words beside them"
        },
    )
    width: int = field(default=128, metadata={"help": "width of the network"})
    layers: int = field(
        default=2, metadata={"help": "attention layers over question and candidates; 0: each scored alone"}
    )
    heads: int = field(default=4, metadata={"help": "heads of those layers"})
    encoder_layers: int = field(default=1, metadata={"help": "layers of the transformer or bilstm encoder"})
    pooling: str = field(
        default="mean",
        metadata={
            "help": "what of the transformer or bilstm encoder stands for a text: mean (over its words), or cls "
            "(the state of a learned token in front of them)"
        },
    )
    num_words: int = field(default=1 << 15, metadata={"help": "hashed words that the encoder knows"})
    dropout: float = field(default=0.1, metadata={"help": "dropout while training"})

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder: given {self.encoder!r}; allowed: {', '.join(ENCODERS)}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling: given {self.pooling!r}; allowed: {', '.join(POOLINGS)}")
        if self.pooling == "cls" and self.encoder == "vectors":
            raise ValueError(
                "pooling: given 'cls' with the encoder 'vectors', which reads no words; allowed: cls with "
                "transformer or bilstm, else mean"
            )
        for name in ("dim", "num_features", "width", "heads", "encoder_layers", "num_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if self.layers < 0:
            raise ValueError(f"layers: given {self.layers}; allowed: 0 or more")
        if self.width % self.heads:
            raise ValueError(f"heads: given {self.heads}; allowed: a divisor of the width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: given {self.dropout}; allowed: 0 to below 1")
        if self.feature_names and len(self.feature_names) != self.num_features:
            raise ValueError(
                f"feature_names: given {len(self.feature_names)}; allowed: num_features, {self.num_features}"
            )
