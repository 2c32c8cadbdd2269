"""SqueezeAttention: layers whose attention changes the stream least get less (arXiv 2404.04793)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from models.compared.base import Method, ScoredMethod, even_tokens
from models.compared.kept import Kept, keep_tokens
from models.compared.trace import Trace
from models.compared.window import sinks_and_last

INNER = ("window_sinks", "snapkv", "question_bank", "expected_attention")


@dataclass(frozen=True, kw_only=True, slots=True)
class Squeeze(Method):
    """Layers in three groups by the cosine of the stream before and after attention; the most alike are squeezed.

    Their layers get `share` of the even budget, the others what that frees: the sum stays. The cosine is taken
    over the prompt, after the residual is added and before the MLP. Only full-attention layers are grouped. Inside
    a layer, `inner` chooses the tokens. `share` is tuned by task in the paper's code (0.38 in one).
    """

    source: ClassVar[str] = "arXiv 2404.04793"
    share: float = field(
        default=0.4, metadata={"help": "of the even budget, for the squeezed group (0 to 1)"}
    )
    sinks: int = field(default=4, metadata={"help": "first tokens that always stay"})
    inner: str = field(
        default="snapkv", metadata={"help": f"who chooses inside a layer: {', '.join(INNER[:2])}"}
    )
    seed: int = field(default=0, metadata={"help": "of the clustering's starts"})

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: given {self.share}; allowed: above 0, at most 1")
        if self.inner not in INNER[:2]:
            raise ValueError(f"inner: given {self.inner!r}; allowed: {', '.join(INNER[:2])}")

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        each = even_tokens(trace, budget_bytes, self.sinks)
        counts = self.counts([layer.likeness for layer in trace.layers], each, trace.num_tokens)
        if min(counts) <= self.sinks:
            raise ValueError(
                f"a squeezed layer would hold {min(counts)} tokens, not more than its {self.sinks} sinks; raise "
                f"the budget of {budget_bytes} bytes or share ({self.share})"
            )
        if self.inner == "window_sinks":
            return [
                keep_tokens(layer, [sinks_and_last(layer, self.sinks, count)] * layer.keys.shape[0])
                for layer, count in zip(trace.layers, counts, strict=True)
            ]
        from models.compared.snapkv import SnapKV

        scorer: ScoredMethod = SnapKV(sinks=self.sinks, window=min(64, max(1, min(counts) // 2)))
        return [scorer.keep_best(layer, count) for layer, count in zip(trace.layers, counts, strict=True)]

    def counts(self, likeness: Sequence[float], each: int, n: int) -> list[int]:
        """Tokens a layer, whose sum is at most that of `each` in all; nobody gets more than the `n` there are."""
        groups = cluster(likeness, 3, self.seed)
        last = max(groups)
        squeezed = [group == last and last > 0 for group in groups]
        num = sum(squeezed)
        if num in (0, len(groups)):
            return [each] * len(groups)
        small = int(self.share * each)
        large = (len(groups) * each - num * small) // (len(groups) - num)
        if large > n:  # what does not fit goes back
            small, large = min(n, (len(groups) * each - (len(groups) - num) * n) // num), n
        return [small if given else large for given in squeezed]


def cluster(values: Sequence[float], k: int, seed: int, starts: int = 16) -> list[int]:
    """k-means of numbers: the group of each, 0 for the smallest; the best of several seeded starts (Lloyd)."""
    distinct = sorted(set(values))
    k = min(k, len(distinct))
    rng = random.Random(seed)
    best: tuple[float, list[float]] | None = None
    for _ in range(starts):
        centres = sorted(rng.sample(distinct, k))
        for _ in range(100):
            groups = [_nearest(value, centres) for value in values]
            moved = [
                sum(v for v, g in zip(values, groups, strict=True) if g == at) / groups.count(at)
                if at in groups
                else centre
                for at, centre in enumerate(centres)
            ]
            if moved == centres:
                break
            centres = moved
        spread = sum((value - centres[_nearest(value, centres)]) ** 2 for value in values)
        if best is None or spread < best[0]:
            best = (spread, sorted(centres))
    assert best is not None
    return [_nearest(value, best[1]) for value in values]


def _nearest(value: float, centres: Sequence[float]) -> int:
    return min(range(len(centres)), key=lambda at: abs(value - centres[at]))
