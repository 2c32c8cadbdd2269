"""Random choices that are the same on every machine and Python version.

Only `random.Random(int).random()` is used, whose sequence Python promises to keep, and only integer
arithmetic on its results: no libm, no hash order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def derive(*parts: int | str) -> int:
    """A 64-bit seed from named parts, stable everywhere."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


class Rng:
    """A seeded source of choices; `random` gives floats in [0, 1)."""

    __slots__ = ("random",)

    def __init__(self, *parts: int | str) -> None:
        self.random: Callable[[], float] = random.Random(derive(*parts)).random

    def below(self, limit: int) -> int:
        """An integer from 0 to limit - 1."""
        return int(self.random() * limit)

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def bell(self, low: int, high: int) -> int:
        """An integer from low to high, the middle likeliest (mean of three)."""
        span = high - low + 1
        return low + int((self.random() + self.random() + self.random()) * span / 3)

    def chance(self, share: float) -> bool:
        """True in this share of calls."""
        return self.random() < share

    def pick(self, options: Sequence[_T]) -> _T:
        """One of the options."""
        return options[int(self.random() * len(options))]

    def weighted(self, options: Sequence[tuple[_T, int]]) -> _T:
        """One option, by integer weight."""
        mark = int(self.random() * sum(weight for _, weight in options))
        for option, weight in options:
            mark -= weight
            if mark < 0:
                return option
        raise AssertionError("weights must be positive")

    def sample(self, options: Sequence[_T], count: int) -> list[_T]:
        """`count` distinct options in random order (all of them if there are fewer)."""
        pool = list(options)
        chosen = []
        for _ in range(min(count, len(pool))):
            chosen.append(pool.pop(int(self.random() * len(pool))))
        return chosen
