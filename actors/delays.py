"""A histogram of delays in milliseconds: small, mergeable, percentiles within 5%."""

from __future__ import annotations

import math
from collections import Counter

_RATIO = math.log(1.1)


class Delays:
    """Counts by logarithmic bucket, each 10% wide."""

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, delay_ms: float) -> None:
        """Count one delay; below 1 ms counts as 1 ms."""
        self.counts[round(math.log(max(delay_ms, 1.0)) / _RATIO)] += 1

    def merge(self, counts: dict[int, int]) -> None:
        """Add another histogram's counts."""
        self.counts.update(counts)

    def percentile(self, share: float) -> float | None:
        """The delay below which `share` of all lie, None without any."""
        total = sum(self.counts.values())
        if not total:
            return None
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= share * total:
                return round(math.exp(bucket * _RATIO), 1)
        return None

    def to_dict(self) -> dict[str, float | None]:
        """p50 and p99 in ms."""
        return {"p50": self.percentile(0.5), "p99": self.percentile(0.99)}
