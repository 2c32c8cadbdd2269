"""How an evicted block of pairs becomes low-rank factors: one small class a method, one file each."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.cache.config import CacheConfig
from models.cache.spec import LayerSpec

MOST_SOLVERS = 8  # threads that find eigenvectors for a GPU, in all of a process
SOLVING_LIMIT_S = 120.0


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


class ComingEigenvectors:
    """Eigenvectors that the host's processors find while the device goes on with other work.

    Nothing waits before `result` is called, neither here nor on the device.
    """

    def __init__(self, gram: Tensor) -> None:
        """`gram [B, n, n]`, symmetric, in double precision."""
        self._device = gram.device
        if gram.is_cuda:
            self._host = torch.empty(gram.shape, dtype=gram.dtype, pin_memory=True)
            self._host.copy_(gram, non_blocking=True)
            self._copied: torch.cuda.Event | None = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(gram.device))
        else:
            self._host, self._copied = gram, None
        pool = _solvers()
        self._parts: list[Future[Tensor]] = [pool.submit(self._solve, at) for at in range(len(gram))]

    def _solve(self, at: int) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()
        found: Tensor = torch.linalg.eigh(self._host[at]).eigenvectors
        return found

    def result(self) -> Tensor:
        """Eigenvectors `[B, n, n]` on the device, the least eigenvalue's first."""
        return torch.stack([part.result(timeout=SOLVING_LIMIT_S) for part in self._parts]).to(self._device)


@lru_cache(maxsize=1)
def _solvers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(MOST_SOLVERS, os.cpu_count() or 1), thread_name_prefix="eigenvectors")


def project(block: Tensor, gram: Tensor, rank: int) -> Factors:
    """`block [H, n, d]` projected onto the `rank` leading eigenvectors of `gram [H, n, n]`.

    With `gram = X Xᵀ` this is the truncated SVD of X, at the cost of one symmetric eigenproblem of the block's
    length, batched over heads. Double precision, because squaring doubles the digits that are lost.
    """
    return onto(block, eigenvectors(gram), rank)


def onto(block: Tensor, vectors: Tensor, rank: int) -> Factors:
    """`block [H, n, d]` projected onto the last `rank` of `vectors [H, n, n]`."""
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
    return TruncationError(*lost_of(block, factors).tolist())


def lost_of(block: Tensor, factors: Factors) -> Tensor:
    """The numbers of a `TruncationError` `[3]`, in double precision where the block is: nothing waits for them."""
    rows = (block - factors.unpack()).double().square().sum(-1)
    worst = rows.max().sqrt() if rows.numel() else rows.new_zeros(())
    return torch.stack((block.double().square().sum(), rows.sum(), worst))
