"""What one fast training of a reader is told, and how far it is: its learning rate follows tokens or the clock."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from models.reader_packs import PackShape


@dataclass(frozen=True, kw_only=True, slots=True)
class FastRun:
    """One run; `runs.json` holds a list of these."""

    name: str
    method: str = field(default="lora", metadata={"help": "lora or full"})
    rank: int = 16
    alpha: float = 32.0
    init: str = field(
        default="", metadata={"help": "shipped: begin with the shipped adapter, cut to the rank"}
    )
    lr: float = 7e-4
    weight_decay: float = 0.01
    contrast: float = field(default=0.0, metadata={"help": "weight of the unlikelihood of misled answers"})
    warmup: float = 0.04
    clip: float = 1.0
    tokens: int = field(
        default=0, metadata={"help": "the run ends after so many, or by the clock (0: by it alone)"}
    )
    known: float = field(
        default=0.0,
        metadata={"help": "share of the questions that `tokens` were chosen for (0: any; see `knowing`)"},
    )
    average: float = field(
        default=0.0, metadata={"help": "share of the run's end whose mean weights are judged too (0: none)"}
    )
    forced: bool = field(
        default=False, metadata={"help": "dev answers are judged as given when it must answer"}
    )
    rows: int = field(default=16, metadata={"help": "packed rows of a step"})
    length: int = field(default=1024, metadata={"help": "tokens of a packed row"})
    seed: int = 0
    silent_share: dict[str, float] = field(
        default_factory=lambda: {"default": 0.1, "squad": 0.15, "newswire": 0.25}
    )
    shares: dict[str, float] = field(default_factory=dict)
    dev_at: tuple[float, ...] = (0.6, 0.85, 1.0)

    def __post_init__(self) -> None:
        if self.method not in ("lora", "full"):
            raise ValueError(f"method: given {self.method!r}; allowed: lora, full")
        if self.init not in ("", "shipped"):
            raise ValueError(f"init: given {self.init!r}; allowed: shipped, or empty")
        if not self.lr > 0:
            raise ValueError(f"lr: given {self.lr}; allowed: above 0")
        if self.tokens < 0:
            raise ValueError(f"tokens: given {self.tokens}; allowed: 0 or more")
        if not 0 <= self.known <= 1:
            raise ValueError(f"known: given {self.known}; allowed: 0 to 1")
        if not 0 <= self.average < 1:
            raise ValueError(f"average: given {self.average}; allowed: 0 to below 1")

    def knowing(self, share: float) -> FastRun:
        """The run of a reader that knows `share` of the questions: over fewer than `known` it makes no more passes.

        Half of the questions were known by heart after what suits three quarters (docs/log.md, 2026-12-01).
        """
        if not 0 < share <= 1:
            raise ValueError(f"share: given {share}; allowed: above 0 to 1")
        return replace(self, tokens=round(self.tokens * share / self.known)) if share < self.known else self

    @property
    def shape(self) -> PackShape:
        """The shapes of its packs; answers of up to a sixteenth of the tokens, readings of 32 tokens and more."""
        size = self.rows * self.length
        return PackShape(
            rows=self.rows, length=self.length, readings=size // 32 + 2 * self.rows, answers=size // 16
        )


def read_runs(path: Path) -> list[FastRun]:
    """The runs of a file; ValueError that names an unknown setting."""
    known = {each.name for each in fields(FastRun)}
    runs = []
    for given in json.loads(path.read_text()):
        if unknown := set(given) - known:
            raise ValueError(f"{path}: given {sorted(unknown)}; allowed: {', '.join(sorted(known))}")
        runs.append(FastRun(**{**given, **({"dev_at": tuple(given["dev_at"])} if "dev_at" in given else {})}))
    return runs


def done_at(run: FastRun, step: int, gone_s: float, seconds: float) -> float:
    """How much of a run is done (0 to 1): its share of tokens or of time, whichever is further."""
    by_tokens = step * run.rows * run.length / run.tokens if run.tokens else 0.0
    return max(by_tokens, gone_s / seconds)


def rate_at(run: FastRun, done: float) -> float:
    """The learning rate when `done` (0 to 1) of the run has gone: a linear rise, a cosine to a fiftieth."""
    if done < run.warmup:
        return run.lr * max(done, 0.002) / run.warmup
    part = min(1.0, (done - run.warmup) / (1 - run.warmup))
    return run.lr * (0.02 + 0.49 * (1 + math.cos(math.pi * part)))
