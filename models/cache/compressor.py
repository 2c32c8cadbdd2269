"""How an evicted block of pairs becomes low-rank factors: one small class a method, one file each."""

from __future__ import annotations

import os
import threading
import time
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
    there they are solved by the host's processors side by side. One thread solves a matrix, wherever and whenever
    it is solved, so that the bits do not depend on it.
    """
    wide = gram.double()
    if wide.ndim < 3 or (not wide.is_cuda and torch.get_num_threads() == 1):
        found: Tensor = torch.linalg.eigh(wide).eigenvectors
        return found
    found = side_by_side(wide.flatten(0, -3).cpu(), _solvers())
    return found.to(wide.device).reshape(wide.shape)


def side_by_side(matrices: Tensor, pool: ThreadPoolExecutor) -> Tensor:
    """Eigenvectors of `matrices [B, n, n]` on the CPU, the batch dealt out to the pool's threads."""
    size = 1 + len(matrices) // 64
    pieces = [matrices[at : at + size] for at in range(0, len(matrices), size)]
    parts = pool.map(lambda piece: torch.linalg.eigh(piece).eigenvectors, pieces, timeout=SOLVING_LIMIT_S)
    return torch.cat(list(parts))


class ComingEigenvectors:
    """Eigenvectors that the host's processors find while the device goes on with other work.

    Nothing waits before `result` is called, neither here nor on the device; nor does the device then, nor is it
    waited for beyond the work that was queued when this was made. Takes `B n²` doubles of the host's memory.
    """

    def __init__(self, gram: Tensor) -> None:
        """`gram [B, n, n]`, symmetric, in double precision."""
        self._device = gram.device
        with torch.inference_mode(False):  # the threads write results in its place
            self._host = torch.empty(gram.shape, dtype=gram.dtype, pin_memory=gram.is_cuda)
        self._host.copy_(gram, non_blocking=gram.is_cuda)
        self._copied: torch.cuda.Event | None = None
        if gram.is_cuda:
            self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(gram.device))
        pool = _solvers()
        self._parts: list[Future[None]] = [pool.submit(self._solve, at) for at in range(len(gram))]

    def _solve(self, at: int) -> None:
        if self._copied is not None:
            self._copied.synchronize()  # as long as the device's queue; `wait` has a limit
        self._host[at].copy_(torch.linalg.eigh(self._host[at]).eigenvectors)

    def wait(self) -> None:
        """Until all are found. Raises TimeoutError after `SOLVING_LIMIT_S`, and what solving raised."""
        until = time.monotonic() + SOLVING_LIMIT_S
        for part in self._parts:
            part.result(timeout=max(0.0, until - time.monotonic()))

    def result(self) -> Tensor:
        """Eigenvectors `[B, n, n]` on the device, the least eigenvalue's first; raises as `wait`."""
        self.wait()
        return self._host.to(self._device, non_blocking=True)

    def cancel(self) -> None:
        """Solve no more of them than have been begun; nobody will ask for the result."""
        for part in self._parts:
            part.cancel()


@lru_cache(maxsize=1)
def _solvers() -> ThreadPoolExecutor:
    """Threads that solve a matrix each, alone.

    Left to itself, the library shares each small matrix out among all processors, from every one of these threads:
    that takes twice the processors' time, and the slowest of a busy host's.
    """
    count, before = min(MOST_SOLVERS, os.cpu_count() or 1), torch.get_num_threads()
    pool = ThreadPoolExecutor(
        count, thread_name_prefix="eigenvectors", initializer=torch.set_num_threads, initargs=(1,)
    )
    begun = threading.Barrier(count)
    list(pool.map(lambda _: begun.wait(SOLVING_LIMIT_S), range(count)))
    torch.set_num_threads(before)  # threads that others start take the number that was set last
    return pool


os.register_at_fork(after_in_child=_solvers.cache_clear)  # a forked child has none of the threads


def project(block: Tensor, gram: Tensor, rank: int) -> Factors:
    """`block [H, n, d]` projected onto the `rank` leading eigenvectors of `gram [H, n, n]`.

    With `gram = X Xᵀ` this is the truncated SVD of X, at the cost of one symmetric eigenproblem of the block's
    length, batched over heads. Double precision, because squaring doubles the digits that are lost.
    """
    return onto(block, eigenvectors(gram), rank)


def onto(block: Tensor, vectors: Tensor, rank: int) -> Factors:
    """`block [H, n, d]` projected onto the last `rank` of `vectors [H, n, n]`."""
    # contiguous: products of other layouts may be rounded otherwise
    rows = vectors[..., -rank:].flip(-1).to(block.dtype).contiguous()
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
