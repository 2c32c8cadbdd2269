"""Plain restatements of the compared methods' formulas: loops over tokens, heads and queries, float64."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from models.compared.trace import LayerTrace


def turned(layer: LayerTrace, x: Tensor, place: int) -> Tensor:
    """`x [d]` at a place, by the table's own cosine and sine."""
    layer.spec.rotary.reserve(place + 1)
    cos, sin = (part.double() for part in layer.spec.rotary.at(torch.tensor(place)))
    f = len(cos)
    a, b = x[:f].double(), x[f:].double()
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


@lru_cache(maxsize=64)
def _keys(layer: LayerTrace, head: int) -> Tensor:
    return torch.stack([turned(layer, key, i) for i, key in enumerate(layer.keys[head])])


def weights(layer: LayerTrace, head: int, query: Tensor, place: int) -> list[float]:
    """Softmax weights of one query at `place` over the context's tokens up to it."""
    asked = turned(layer, query, place)
    n = layer.num_tokens
    logits = [x * layer.spec.scaling for x in (_keys(layer, head)[: place + 1] @ asked).tolist()]
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    return [p / sum(powers) for p in powers] + [0.0] * (n - len(powers))


def group(layer: LayerTrace, head: int) -> range:
    """The query heads of a key head."""
    size = layer.spec.num_heads // layer.spec.num_kv_heads
    return range(head * size, (head + 1) * size)


def summed(layer: LayerTrace, head: int, places: range, power: int = 1) -> list[float]:
    """Attention to each token, to a power, summed over the queries at `places` and the group."""
    total = [0.0] * layer.num_tokens
    for query_head in group(layer, head):
        for place in places:
            row = weights(layer, head, layer.queries[query_head, place], place)
            total = [t + w**power for t, w in zip(total, row, strict=True)]
    return total


def pooled(scores: list[float], kernel: int, pooling: str) -> list[float]:
    """Mean (zeros beyond the ends) or maximum of the `kernel` neighbours."""
    half, n = kernel // 2, len(scores)
    near = [scores[max(0, i - half) : min(n, i + half + 1)] for i in range(n)]
    return [max(x) for x in near] if pooling == "max" else [sum(x) / kernel for x in near]


def best(scores: list[float], count: int) -> set[int]:
    """The places of the `count` highest scores."""
    return set(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def is_best(kept: set[int], scores: list[float]) -> bool:
    """No token left out scores higher than one kept, but for rounding (equal scores may fall either way)."""
    left = [score for i, score in enumerate(scores) if i not in kept]
    least = min(scores[i] for i in kept)
    return max(left, default=float("-inf")) <= least + 1e-5 * abs(least)


def read(
    layer: LayerTrace, head: int, query: Tensor, place: int, pairs: list[tuple[Tensor, Tensor, float]]
) -> Tensor:
    """Output `[d]` of one query over pairs (key as turned, value, weight in tokens)."""
    asked = turned(layer, query, place)
    masses = [count * math.exp(float(asked @ key) * layer.spec.scaling) for key, _, count in pairs]
    return sum(m * v.double() for m, (_, v, _) in zip(masses, pairs, strict=True)) / sum(masses)  # type: ignore[return-value]
