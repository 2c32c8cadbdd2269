"""A ring of raw key and value pairs whose memory is taken once."""

from __future__ import annotations

import torch
from torch import Tensor


class PairRing:
    """The newest `capacity` pairs, oldest overwritten first: the pair of count `i` sits in slot `i % capacity`.

    `keys` and `values` are `[H, capacity, d]`; keys are stored before rotary embedding. Who owns the ring
    keeps the count.
    """

    def __init__(
        self, num_heads: int, capacity: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.capacity = capacity
        self.keys = torch.zeros(num_heads, capacity, dim, dtype=dtype, device=device)
        self.values = torch.zeros(num_heads, capacity, dim, dtype=dtype, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """All memory of the ring, by name."""
        return {"keys": self.keys, "values": self.values}

    def write(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Store pairs `[H, n, d]` as counts `first … first + n - 1`; of more than the capacity, the last."""
        surplus = keys.shape[1] - self.capacity
        if surplus > 0:
            keys, values, first = keys[:, surplus:], values[:, surplus:], first + surplus
        n = keys.shape[1]
        slot = first % self.capacity if self.capacity else 0
        head = min(n, self.capacity - slot)
        for store, given in ((self.keys, keys), (self.values, values)):
            store[:, slot : slot + head] = given[:, :head].to(store.dtype)
            store[:, : n - head] = given[:, head:].to(store.dtype)

    def read(self, first: int, n: int) -> tuple[Tensor, Tensor]:
        """The pairs of counts `first … first + n - 1` in order, `[H, n, d]`; they must still be held."""
        assert 0 <= n <= self.capacity
        slot = first % self.capacity if self.capacity else 0
        if slot + n <= self.capacity:
            return self.keys[:, slot : slot + n], self.values[:, slot : slot + n]
        wrapped = slot + n - self.capacity
        return (
            torch.cat((self.keys[:, slot:], self.keys[:, :wrapped]), dim=1),
            torch.cat((self.values[:, slot:], self.values[:, :wrapped]), dim=1),
        )

    def erase(self, first: int, end: int) -> None:
        """Zero the pairs of counts `first … end - 1`, which must still be held."""
        if end > first:
            nothing = torch.zeros_like(self.keys[:, : end - first])
            self.write(first, nothing, nothing)
