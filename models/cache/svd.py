"""Truncated SVD: the factors of a given rank with the smallest error in the pairs themselves.

Keys before rotary embedding are close to low rank, turned keys are not (ShadowKV, arXiv 2410.21465).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.cache.compressor import Compressor, Factors, eigenvectors, onto


class SvdCompressor(Compressor):
    """Both factorings of a block, batched into one eigenproblem when their ranks are equal."""

    def compress(self, keys: Tensor, values: Tensor) -> tuple[Factors, Factors]:
        """See Compressor.compress."""
        return self.compress_by(keys, values, eigenvectors(gram_of(keys, values)))

    def compress_by(self, keys: Tensor, values: Tensor, vectors: Tensor) -> tuple[Factors, Factors]:
        """As `compress`, bit for bit, by the eigenvectors `[2 H, n, n]` of `gram_of`, found before."""
        if self.key_rank != self.value_rank:
            return from_eigenvectors(keys, values, vectors, (self.key_rank, self.value_rank))
        heads = keys.shape[0]
        factors = onto(torch.cat((keys, values)), vectors, self.key_rank)
        return (
            Factors(factors.rows[:heads], factors.basis[:heads]),
            Factors(factors.rows[heads:], factors.basis[heads:]),
        )


def gram_of(keys: Tensor, values: Tensor) -> Tensor:
    """What `from_eigenvectors` wants the eigenvectors of: `[2 H, n, n]` in double precision, keys before values."""
    both = torch.cat((keys, values))
    return (both @ both.transpose(-1, -2)).double()


def from_eigenvectors(
    keys: Tensor, values: Tensor, vectors: Tensor, ranks: tuple[int, int]
) -> tuple[Factors, Factors]:
    """The factors that `SvdCompressor` makes, from eigenvectors `[2 H, n, n]` that are known already."""
    heads = keys.shape[0]
    return onto(keys, vectors[:heads], ranks[0]), onto(values, vectors[heads:], ranks[1])
