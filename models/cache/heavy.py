"""Raw heavy hitters: the few tokens of evicted blocks that keep their exact pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from models.cache.config import CacheConfig
from models.cache.spec import LayerSpec


class HeavyStore:
    """`capacity` raw pairs a KV head with the stream position and score of each; heads choose for themselves.

    New ones are always admitted; the weakest or the oldest make room, as configured.
    """

    def __init__(self, spec: LayerSpec, config: CacheConfig, dtype: torch.dtype) -> None:
        shape = (spec.num_kv_heads, config.heavy)
        self.capacity, self.keep = config.heavy, config.heavy_keep
        self.keys = torch.zeros(*shape, spec.head_dim, dtype=dtype, device=spec.device)
        self.values = torch.zeros_like(self.keys)
        self.positions = torch.zeros(shape, dtype=torch.int64, device=spec.device)
        self.scores = torch.zeros(shape, dtype=torch.float32, device=spec.device)

    def tensors(self) -> dict[str, Tensor]:
        """All memory of the store, by name."""
        return {name: getattr(self, name) for name in ("keys", "values", "positions", "scores")}

    def admit(self, filled: int, keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor) -> None:
        """Take `n` new pairs `[H, n, d]` when the first `filled` slots are in use."""
        order = self.scores if self.keep == "weakest" else self.positions.double()
        free = torch.arange(self.capacity, device=order.device) >= filled
        slots = order.masked_fill(free, float("-inf")).argsort(dim=1, stable=True)[:, : keys.shape[1]]
        wide = slots[..., None].expand(-1, -1, keys.shape[-1])
        self.keys.scatter_(1, wide, keys.to(self.keys.dtype))
        self.values.scatter_(1, wide, values.to(self.values.dtype))
        self.positions.scatter_(1, slots, positions)
        self.scores.scatter_(1, slots, scores)

    def erase(self, filled: int, first: int, end: int) -> int:
        """Zero the pairs of stream positions `first … end - 1`; the next ones take their slots. How many."""
        positions = self.positions[:, :filled]
        hidden = (positions >= first) & (positions < end)
        for pairs in (self.keys, self.values):
            pairs[:, :filled] *= ~hidden[..., None]
        self.scores[:, :filled].masked_fill_(hidden, float("-inf"))
        return int(hidden.sum())

    def places(self, filled: int, sinks: int, shift: int) -> Tensor:
        """Where the first `filled` pairs stand, `[H, filled]`: their own place, or behind the sinks by age."""
        positions = self.positions[:, :filled]
        by_age = positions.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        return torch.maximum(positions - shift, by_age + sinks)
