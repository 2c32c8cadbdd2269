"""The interface that every backbone offers: token ids in, token ids out, a cache of constant size between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from models.cache import CacheConfig, RotatingCompressiveCache


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest (greedy) and needs no seed."""

    temperature: float = field(default=0.0, metadata={"help": "0 is greedy; larger is more varied"})
    top_p: float = field(default=1.0, metadata={"help": "smallest share of probability to draw from"})
    seed: int = field(default=0, metadata={"help": "seed of this answer's own generator"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"sampling.temperature is {self.temperature}; allowed: 0 to 10")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"sampling.top_p is {self.top_p}; allowed: above 0, at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reluctance:
    """A token that begins an answer only where it leads the likeliest other one by `margin` nats or more.

    Else that other one begins it; one that would end the answer does not take its place.
    """

    token: int
    margin: float


@runtime_checkable
class Backbone(Protocol):
    """A decoder with sessions. All calls take batch 1 and return on the caller's thread."""

    @property
    def identity(self) -> str:
        """Name and hashes of configuration, weights and adapter: equal for equal answers."""
        ...

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest text that the model was trained to read."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` alone: no special tokens are added (see `bos`)."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out."""
        ...

    @property
    def bos(self) -> list[int]:
        """What a fresh stream or prompt should begin with: one id, or nothing."""
        ...

    def new_cache(self, config: CacheConfig) -> RotatingCompressiveCache:
        """An empty cache whose bytes never change after this call."""
        ...

    def read(self, ids: Sequence[int], cache: RotatingCompressiveCache) -> None:
        """Read `ids` into the cache; the same ids give the same bytes, however they are split."""
        ...

    def generate(
        self,
        ids: Sequence[int],
        cache: RotatingCompressiveCache | None = None,
        max_new_tokens: int = 64,
        stop_texts: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
        suppress_first: Sequence[int] = (),
        sampling: Sampling | None = None,
        reluctant: Reluctance | None = None,
    ) -> Iterator[int]:
        """Answer after the cache and the prompt `ids`; the cache is copied when called and never changed.

        Yields ids as they come, ends before the first stop text or end token, and soon after `cancelled()`
        turns true. `suppress_first` may not be the first id, that of `reluctant` only with a lead.
        """
        ...

    def score(
        self,
        prompt_ids: Sequence[int],
        answer_ids: Sequence[int],
        cache: RotatingCompressiveCache | None = None,
    ) -> float:
        """Summed log-likelihood (nats) of the answer after the cache and the prompt."""
        ...
