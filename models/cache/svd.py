"""Truncated SVD: the factors of a given rank with the smallest error in the pairs themselves.

Keys before rotary embedding are close to low rank, turned keys are not (ShadowKV, arXiv 2410.21465).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.cache.compressor import Compressor, Factors, onto, project


class SvdCompressor(Compressor):
    """Both factorings of a block, batched into one eigenproblem when their ranks are equal."""

    def compress(self, keys: Tensor, values: Tensor) -> tuple[Factors, Factors]:
        """See Compressor.compress."""
        both = torch.cat((keys, values))
        gram = both @ both.transpose(-1, -2)
        heads = keys.shape[0]
        if self.key_rank != self.value_rank:
            return (
                project(keys, gram[:heads], self.key_rank),
                project(values, gram[heads:], self.value_rank),
            )
        factors = project(both, gram, self.key_rank)
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
