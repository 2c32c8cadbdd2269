"""What a landmark head is trained with (`infra.training.learners.landmark`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from models.hf.config import HfConfig

METHODS = ("frozen", "lora", "mixer")


@dataclass(frozen=True, kw_only=True, slots=True)
class LandmarkSpec:
    """One landmark head."""

    data: Path = field(
        metadata={"help": "folder of triples, a folder of such folders, or what landmark_data wrote"}
    )
    backbone: HfConfig = field(default_factory=HfConfig, metadata={"help": "the decoder, with its adapter"})
    method: str = field(default="frozen", metadata={"help": ", ".join(METHODS)})
    dim: int = field(default=128, metadata={"help": "width of a landmark"})
    layer: int = field(default=-1, metadata={"help": "layer that the head listens to; -1: two thirds up"})
    steps: int = field(default=1000, metadata={"help": "updates of the whole run"})
    accumulate: int = field(default=1, metadata={"help": "parts of an update"})
    questions: int = field(default=64, metadata={"help": "questions of a part; each other's texts are wrong"})
    hard: int = field(default=2, metadata={"help": "texts a question that nearly tell"})
    lr: float = field(
        default=2e-3, metadata={"help": "peak learning rate of the head; of LoRA a tenth, of a mixer three"}
    )
    scale: float = field(default=20.0, metadata={"help": "first factor of the cosines"})
    rank: int = field(default=16, metadata={"help": "rank of the adapter (lora)"})
    most_tokens: int = field(default=96, metadata={"help": "tokens of a text that are read"})
    inner: int = field(default=512, metadata={"help": "width of the mixer (mixer); a multiple of 64"})
    tokens_at_once: int = field(default=16384, metadata={"help": "tokens of a step of the decoder, at most"})
    taught: Path | None = field(
        default=None, metadata={"help": "folder that landmark_taught wrote; None: labels and practice alone"}
    )
    passages: int = field(default=160, metadata={"help": "passages of a part (taught); a multiple of 16"})
    direct: float = field(default=4.0, metadata={"help": "weight of copying the teacher's vectors (taught)"})
    trust_labels: float = field(
        default=0.5, metadata={"help": "how far labels count against the teacher's choice (taught), 0 to 1"}
    )
    trust_made: float = field(
        default=0.2, metadata={"help": "the same of queries made of a passage (taught), 0 to 1"}
    )
    practice: float = field(
        default=1.0,
        metadata={"help": "share of the practice questions that are used, where the data has some"},
    )
    dev_share: float = field(
        default=0.05, metadata={"help": "training questions kept back to choose the best update by"}
    )
    dev_every: int = field(
        default=100, metadata={"help": "updates between looks at them (0: the last is kept)"}
    )
    checkpointing: bool = field(
        default=False,
        metadata={
            "help": "layers of an adapted decoder, or of a mixer, are computed again for the gradient (lora, mixer)"
        },
    )
    embedder: str = field(default="", metadata={"help": "embedder that recall is compared with; empty: none"})
    seed: int = field(default=0, metadata={"help": "of everything"})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: given {self.method!r}; allowed: {', '.join(METHODS)}")
        counts = ("dim", "steps", "accumulate", "questions", "rank", "most_tokens")
        for name in (*counts, "inner", "tokens_at_once", "passages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        for name in ("practice", "trust_labels", "trust_made"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 to 1")
        if self.checkpointing and self.method == "frozen":
            raise ValueError(
                "checkpointing: given with method frozen, which keeps nothing for a gradient but the head's; "
                "allowed with lora and mixer"
            )
        if self.direct < 0:
            raise ValueError(f"direct: given {self.direct}; allowed: 0 or more")
        if not 0 <= self.dev_share < 1 or self.dev_every < 0:
            raise ValueError(
                f"dev_share: given {self.dev_share}, dev_every {self.dev_every}; allowed: 0 to below 1, 0 or more"
            )
        if self.hard < 0:
            raise ValueError(f"hard: given {self.hard}; allowed: 0 or more")
