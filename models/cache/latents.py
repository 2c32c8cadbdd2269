"""The ring of latents: blocks of evicted pairs as low-rank factors, first in first out.

A block of `n` tokens is kept as `U [n, r]` and `B [r, d]` with `K ≈ U B` (values alike). Values have no
position, so attention reads them without unpacking: `p V ≈ (p U) B`. For keys it depends on their frame:

* `within_block`: the block's keys were turned to their places inside the block before factoring. The whole
  block is then turned as one, or the query turned back: `s = ((R⁻¹ q) Bᵀ) Uᵀ`, never unpacked.
* `before_rotary`: every token is turned by its own place, and no single turned query serves all of them. The
  exact form without unpacking sums over frequencies: `s_j = Σ_r U_jr Σ_f (cos_jf α_rf + sin_jf β_rf)` with
  `α, β` from `q` and `B`. It needs as many multiplications per query as unpacking needs for all queries
  together, so it pays for a single query, or in a kernel that unpacks tile by tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.cache.compressor import SharedBases
from models.rotary import RotaryTable, turn


class LatentRing:
    """The factors of the newest `num_blocks` evicted blocks; block `i` sits in slot `i % num_blocks`."""

    def __init__(
        self,
        num_heads: int,
        num_blocks: int,
        block_tokens: int,
        ranks: tuple[int, int],
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        shared: SharedBases | None = None,
    ) -> None:
        """`shared`: bases that belong to the model; blocks then keep their rows alone."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(num_heads, num_blocks, *shape, dtype=dtype, device=device)

        self.num_blocks, self.block_tokens = num_blocks, block_tokens
        self.shared = shared
        self.key_rows = zeros(block_tokens, ranks[0])
        if shared is None:
            self.key_basis, self.value_basis = zeros(ranks[0], dim), zeros(ranks[1], dim)
        else:
            self.key_basis, self.value_basis = (
                basis.to(device, dtype)[:, None].expand(-1, num_blocks, -1, -1)
                for basis in (shared.key, shared.value)
            )
        joint = shared is not None and shared.joint
        self.value_rows = self.key_rows if joint else zeros(block_tokens, ranks[1])
        # place of each token inside its block: not 0, 1, 2, … where heavy hitters were taken out
        self.offsets = torch.zeros(num_heads, num_blocks, block_tokens, dtype=torch.int32, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """All memory of the ring, by name."""
        names = ["key_rows", "key_basis", "value_rows", "value_basis", "offsets"]
        if self.shared is not None:  # the bases are the model's
            names = ["key_rows", "offsets"] if self.shared.joint else ["key_rows", "value_rows", "offsets"]
        return {name: getattr(self, name) for name in names}

    def write(
        self, block: int, key: tuple[Tensor, Tensor], value: tuple[Tensor, Tensor], offsets: Tensor
    ) -> None:
        """Store block number `block`: rows `[H, n, r]` and basis `[H, r, d]` of keys and values."""
        slot = block % self.num_blocks
        at = self._at(slot)
        self.key_rows[at], self.value_rows[at] = key[0], value[0]
        if self.shared is None:
            self.key_basis[at], self.value_basis[at] = key[1], value[1]
        self.offsets[:, slot] = offsets.to(torch.int32)

    def write_many(
        self, first: int, key: tuple[Tensor, Tensor], value: tuple[Tensor, Tensor], offsets: Tensor
    ) -> None:
        """Store blocks from number `first` on: rows `[H, b, n, r]`, bases `[H, b, r, d]`, offsets `[n]` of all."""
        count = key[0].shape[1]
        assert count <= self.num_blocks
        slots = torch.arange(first, first + count, device=self.offsets.device) % self.num_blocks
        stores = [(self.key_rows, key[0]), (self.value_rows, value[0])]
        if self.shared is None:
            stores += [(self.key_basis, key[1]), (self.value_basis, value[1])]
        for store, given in stores:
            store[self._at(slots)] = given.to(store.dtype)
        self.offsets[:, slots] = offsets.to(torch.int32)

    def erase(self, order: Tensor, hidden: Tensor) -> None:
        """Zero the rows of the slots in `order` where `hidden [H, blocks, n]`; the bases stay as they are."""
        kept = ~hidden[..., None]
        rows_of = [self.key_rows] if self.value_rows is self.key_rows else [self.key_rows, self.value_rows]
        at = self._at(order)
        for rows in rows_of:
            rows[at] = rows[at] * kept

    def order(self, blocks: int) -> Tensor:
        """The slots that are filled after `blocks` evictions, oldest block first."""
        first = max(0, blocks - self.num_blocks)
        numbers = torch.arange(first, blocks, device=self.offsets.device)
        return numbers % max(1, self.num_blocks)

    def _at(self, slots: Tensor | int) -> tuple[slice | Tensor | int, ...]:
        """What indexes the factors of these slots."""
        return (slice(None), slots)

    def unpack(self, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values `[H, blocks * n, d]` of the slots in `order`, and their offsets `[H, blocks, n]`."""
        heads = self.key_rows.shape[0]
        at = self._at(order)
        keys, values = self.key_rows[at] @ self.key_basis[at], self.value_rows[at] @ self.value_basis[at]
        dim = keys.shape[-1]
        return keys.reshape(heads, -1, dim), values.reshape(heads, -1, dim), self.offsets[:, order]


def scores_within_block(
    queries: Tensor, rows: Tensor, basis: Tensor, block_places: Tensor, rotary: RotaryTable
) -> Tensor:
    """`q · k` for keys in the frame `within_block`, from the factors alone.

    `queries [H, q, d]` turned to their places, `rows [H, b, n, r]`, `basis [H, b, r, d]`, `block_places [b]`
    (place of each block's first token). Returns `[H, q, b * n]`, unscaled.
    """
    cos, sin = rotary.at(block_places)
    back = turn(queries[:, None], cos[None, :, None], -sin[None, :, None])  # [H, b, q, d]
    scores = (back.float() @ basis.float().transpose(-1, -2)) @ rows.float().transpose(-1, -2)
    return scores.transpose(1, 2).flatten(2)


def scores_before_rotary(
    queries: Tensor, rows: Tensor, basis: Tensor, places: Tensor, rotary: RotaryTable
) -> Tensor:
    """`q · k` for keys in the frame `before_rotary`, from the factors alone; exact, see the module's text.

    `queries [H, q, d]` turned to their places, `rows [H, b, n, r]`, `basis [H, b, r, d]`, `places [H, b, n]`.
    Returns `[H, q, b * n]`, unscaled.
    """
    f = rotary.num_frequencies
    cos, sin = rotary.at(places)  # [H, b, n, f]
    q, b = queries.float()[:, None, :, None], basis.float()[:, :, None]  # [H, 1, q, 1, d], [H, b, 1, r, d]
    along = q[..., :f] * b[..., :f] + q[..., f : 2 * f] * b[..., f : 2 * f]  # [H, b, q, r, f]
    across = q[..., f : 2 * f] * b[..., :f] - q[..., :f] * b[..., f : 2 * f]
    still = (q[..., 2 * f :] * b[..., 2 * f :]).sum(-1)  # dimensions that are not turned, [H, b, q, r]
    turned = torch.einsum("hbnf,hbqrf->hbqnr", cos, along) + torch.einsum("hbnf,hbqrf->hbqnr", sin, across)
    scores = ((turned + still[:, :, :, None]) * rows.float()[:, :, None]).sum(-1)  # [H, b, q, n]
    return scores.transpose(1, 2).flatten(2)


def weighted_values(weights: Tensor, rows: Tensor, basis: Tensor) -> Tensor:
    """`weights [H, q, b * n]` times the values, without unpacking them: `[H, q, d]` in float32."""
    heads, num_queries, _ = weights.shape
    split = weights.float().reshape(heads, num_queries, rows.shape[1], rows.shape[2]).transpose(1, 2)
    return ((split @ rows.float()) @ basis.float()).sum(1)
