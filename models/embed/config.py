"""What an operator sets about the embedder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

PRECISIONS = ("fp32", "int8")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedderConfig:
    """Which model turns texts into vectors, and how it runs."""

    model: str = field(
        default="minilm",
        metadata={
            "help": "'minilm', 'static', 'none' (nothing is embedded: search by words alone), or the folder of a "
            "sentence-transformers or model2vec model"
        },
    )
    precision: str = field(
        default="fp32",
        metadata={
            "help": "of minilm on CPU: fp32, or int8 (faster; cosine 0.99 to the original, its own store)"
        },
    )
    device: str = field(default="auto", metadata={"help": "auto (CUDA where there is one), cpu or cuda"})
    threads: int = field(default=0, metadata={"help": "CPU threads of the embedder; 0 takes every core"})
    batch_texts: int = field(
        default=16, metadata={"help": "texts in one forward pass on CPU (16 times more on CUDA)"}
    )
    cache_dir: str = field(
        default="",
        metadata={
            "help": "folder for exported and distilled models; empty: $DYSRA_CACHE, else ~/.cache/dysra"
        },
    )

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError("model is blank; name 'minilm', 'static' or a model's folder")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        if self.device not in DEVICES:
            raise ValueError(f"device is {self.device!r}; allowed: {', '.join(DEVICES)}")
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}; it must be 0 (every core) or more")
        if self.batch_texts < 1:
            raise ValueError(f"batch_texts is {self.batch_texts}; it must be at least 1")


def cpu_threads(configured: int) -> int:
    """CPU threads to use: as configured, else as many as this process may run on."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return configured or allowed or 1
