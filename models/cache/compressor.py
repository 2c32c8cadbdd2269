"""How an evicted block of pairs becomes low-rank factors: one small class a method, one file each."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.cache.config import CacheConfig
from models.cache.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class Factors:
    """`rows [H, n, r]` with orthonormal columns and `basis [H, r, d]`; the block is close to their product."""

    rows: Tensor
    basis: Tensor

    def unpack(self) -> Tensor:
        """The block as attention reads it, `[H, n, d]`."""
        return self.rows @ self.basis


@dataclass(frozen=True, slots=True)
class SharedBases:
    """Bases `[H, r, d]` that all blocks share; with `joint` one code of a token stands for key and value."""

    key: Tensor
    value: Tensor
    joint: bool


class Compressor(ABC):
    """One layer's method and its state. Subclasses choose the subspace of the keys."""

    def __init__(self, spec: LayerSpec, config: CacheConfig) -> None:
        self.spec, self.config = spec, config
        self.key_rank, self.value_rank = config.key_and_value_ranks

    def tensors(self) -> dict[str, Tensor]:
        """State that the method learns while reading, by name: saved, copied and reset with the cache."""
        return {}

    def observe(self, queries: Tensor) -> None:  # noqa: B027  (a method that learns nothing keeps this)
        """See the queries `[num_heads, T, d]` of the step just read, before rotary embedding."""

    def reset(self) -> None:  # noqa: B027  (likewise)
        """Forget what was learned while reading; called after the tensors were zeroed."""

    def check(self) -> None:  # noqa: B027  (likewise)
        """Raise ValueError where the state of a snapshot was made by other weights."""

    def shared(self) -> SharedBases | None:
        """The bases of all blocks, where they are the model's and no block has its own."""
        return None

    @abstractmethod
    def compress(self, keys: Tensor, values: Tensor) -> tuple[Factors, Factors]:
        """Factors of an evicted block, keys and values `[H, n, d]` in float32, in that order."""


def eigenvectors(gram: Tensor) -> Tensor:
    """Eigenvectors `[..., n, n]` of symmetric matrices, the least eigenvalue's first, in double precision.

    On a GPU the library takes the matrices of a batch one after another (2 ms each for n = 128 on an H200), so
    there they are solved by the host's processors side by side.
    """
    wide = gram.double()
    if not wide.is_cuda or wide.ndim < 3:
        found: Tensor = torch.linalg.eigh(wide).eigenvectors
        return found
    found = side_by_side(wide.flatten(0, -3).cpu(), _solvers())
    return found.to(wide.device).reshape(wide.shape)


def side_by_side(matrices: Tensor, pool: ThreadPoolExecutor) -> Tensor:
    """Eigenvectors of `matrices [B, n, n]` on the CPU, the batch dealt out to the pool's threads."""
    size = 1 + len(matrices) // 64
    pieces = [matrices[at : at + size] for at in range(0, len(matrices), size)]
    parts = pool.map(lambda piece: torch.linalg.eigh(piece).eigenvectors, pieces)
    return torch.cat(list(parts))


@lru_cache(maxsize=1)
def _solvers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="eigenvectors")


def project(block: Tensor, gram: Tensor, rank: int) -> Factors:
    """`block [H, n, d]` projected onto the `rank` leading eigenvectors of `gram [H, n, n]`.

    With `gram = X Xᵀ` this is the truncated SVD of X, at the cost of one symmetric eigenproblem of the block's
    length, batched over heads. Double precision, because squaring doubles the digits that are lost.
    """
    vectors = eigenvectors(gram)
    rows = vectors[..., -rank:].flip(-1).to(block.dtype)
    return Factors(rows, rows.transpose(-1, -2) @ block)


@dataclass(frozen=True, slots=True)
class TruncationError:
    """What the truncation of one block lost, in the norms that bound attention.

    `tail` is the squared Frobenius norm of the residual (of `energy` in all); for plain SVD it equals the sum of
    the dropped squared singular values, the least that any factors of this rank can lose. `worst` is the
    longest residual row: with queries of length at most Q, no score of the block is off by more than
    `scaling * Q * worst` (keys), and no output by more than `worst` for exact scores (values).
    """

    energy: float
    tail: float
    worst: float


def truncation_error(block: Tensor, factors: Factors) -> TruncationError:
    """Measure `factors` against the block `[H, n, d]` that they stand for."""
    residual = (block - factors.unpack()).double()
    rows = residual.square().sum(-1)
    return TruncationError(
        float(block.double().square().sum()),
        float(rows.sum()),
        float(rows.max().sqrt()) if rows.numel() else 0.0,
    )
