"""Indexes of landmarks: flat, lists (IVF), a tree of means, groups with bounds. They grow while they are searched.

Every search takes for each query the newest chunk that it may be offered: what is newer is never returned.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from models.kernels.landmark_topk import landmark_topk
from models.subq.tree import MeansTree, best_of

GROUP = 64


class LandmarkIndex(Protocol):
    """Landmarks [n, R] in the order of their chunks."""

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes of landmarks and of all that the search keeps beside them."""
        ...

    def add(self, landmarks: Tensor) -> None:
        """Append landmarks [n, R] of the next chunks."""
        ...

    def search(self, queries: Tensor, k: int, limits: Tensor) -> tuple[Tensor, Tensor]:
        """queries [Q, R], limits [Q] -> (scores float32, chunks int64) [Q, k], (-inf, -1) where fewer are."""
        ...

    def landmarks(self) -> Tensor:
        """All landmarks [n, R]."""
        ...

    def scored_a_query(self) -> int:
        """Vectors that a search compares its query with."""
        ...


def build_index(kind: str, dim: int, probes: int, dtype: torch.dtype, device: torch.device) -> LandmarkIndex:
    """An empty index of that kind (see SubqConfig.index)."""
    if kind == "flat":
        return FlatIndex(dim, dtype, device)
    if kind == "groups":
        return GroupIndex(dim, probes, dtype, device)
    if kind in ("ivf", "tree"):
        return TreeIndex(dim, probes, dtype, device, levels=1 if kind == "ivf" else None)
    raise ValueError(f"index: given {kind!r}; allowed: flat, ivf, tree, groups")


class FlatIndex:
    """Every landmark is scored: exact, O(n) a query, and the fastest up to tens of millions of tokens."""

    def __init__(self, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rows = torch.empty(0, dim, dtype=dtype, device=device)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """See LandmarkIndex: the rows in use (room that is kept for growth is not counted)."""
        return self._count * self._rows.shape[1] * self._rows.element_size()

    def add(self, landmarks: Tensor) -> None:
        """See LandmarkIndex; room doubles, so that adding costs O(1) each."""
        end = self._count + landmarks.shape[0]
        if end > self._rows.shape[0]:
            rows = self._rows.new_empty(max(end, 2 * self._rows.shape[0], GROUP), self._rows.shape[1])
            rows[: self._count] = self._rows[: self._count]
            self._rows = rows
        self._rows[self._count : end] = landmarks.to(self._rows.dtype)
        self._count = end

    def search(self, queries: Tensor, k: int, limits: Tensor) -> tuple[Tensor, Tensor]:
        """See LandmarkIndex."""
        length = (limits + 1).clamp(0, self._count).int()
        scores, found = landmark_topk(queries[:, None], self.landmarks(), k, length=length)
        return scores[:, 0], found[:, 0].long()

    def landmarks(self) -> Tensor:
        """See LandmarkIndex."""
        return self._rows[: self._count]

    def scored_a_query(self) -> int:
        """See LandmarkIndex."""
        return self._count


class GroupIndex(FlatIndex):
    """Groups of 64 consecutive chunks bounded by least and greatest coordinates (as Quest, arXiv 2406.10774).

    The bound never misses when all groups above the k-th score are opened; `probes` opens a fixed number.
    """

    def __init__(self, dim: int, probes: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dim, dtype, device)
        self._probes = probes
        self._low = FlatIndex(dim, dtype, device)
        self._high = FlatIndex(dim, dtype, device)

    @property
    def nbytes(self) -> int:
        """See LandmarkIndex."""
        return super().nbytes + self._low.nbytes + self._high.nbytes

    def add(self, landmarks: Tensor) -> None:
        """See LandmarkIndex."""
        super().add(landmarks)
        whole = len(self) // GROUP
        if whole > len(self._low):
            groups = self.landmarks()[len(self._low) * GROUP : whole * GROUP].unflatten(0, (-1, GROUP))  # type: ignore[no-untyped-call]
            self._low.add(groups.amin(1))
            self._high.add(groups.amax(1))

    def search(self, queries: Tensor, k: int, limits: Tensor) -> tuple[Tensor, Tensor]:
        """See LandmarkIndex: the groups with the highest bounds, and what is in no whole group yet."""
        rows = self.landmarks()
        groups = len(self._low)
        newest = torch.arange(groups * GROUP, len(self), device=rows.device).expand(len(queries), -1)
        if groups:
            bounds = queries.clamp_min(0).float() @ self._high.landmarks().float().T
            bounds += queries.clamp_max(0).float() @ self._low.landmarks().float().T
            bounds.masked_fill_(
                torch.arange(groups, device=rows.device) * GROUP > limits[:, None], float("-inf")
            )
            opened = bounds.topk(min(self._probes, groups), -1).indices
            members = opened[..., None] * GROUP + torch.arange(GROUP, device=rows.device)
            newest = torch.cat((members.flatten(1), newest), 1)
        return best_of(queries, rows, newest, k, limits)

    def scored_a_query(self) -> int:
        """See LandmarkIndex: two bounds a group, then what is in the opened groups or in none."""
        groups = len(self._low)
        return 2 * groups + min(self._probes, groups) * GROUP + len(self) - groups * GROUP


class TreeIndex(FlatIndex):
    """k-means lists (levels=1), or a tree of means whose search opens `probes` nodes a level: O(log n) a query.

    Landmarks are put into the leaf that a greedy descent finds; the whole is built anew when it has doubled, so
    building costs O(log n) a landmark over the life of a stream.
    """

    FIRST = 512

    def __init__(
        self, dim: int, probes: int, dtype: torch.dtype, device: torch.device, levels: int | None
    ) -> None:
        super().__init__(dim, dtype, device)
        self._probes, self._levels = probes, levels
        self._tree: MeansTree | None = None
        self._built = self._in_tree = 0

    @property
    def nbytes(self) -> int:
        """See LandmarkIndex."""
        return super().nbytes + (self._tree.nbytes if self._tree else 0)

    def add(self, landmarks: Tensor) -> None:
        """See LandmarkIndex."""
        super().add(landmarks)
        if len(self) < self.FIRST:
            return
        if self._tree is None or len(self) >= 2 * self._built:
            lists = math.isqrt(len(self)) if self._levels == 1 else None
            self._tree = MeansTree.build(self.landmarks(), lists)
            self._built = len(self)
        else:
            self._tree.insert(self.landmarks(), self._in_tree, len(self))
        self._in_tree = len(self)

    def search(self, queries: Tensor, k: int, limits: Tensor) -> tuple[Tensor, Tensor]:
        """See LandmarkIndex."""
        if self._tree is None:
            return super().search(queries, k, limits)
        members = self._tree.candidates(queries, max(self._probes, 1))
        return best_of(queries, self.landmarks(), members, k, limits)

    def scored_a_query(self) -> int:
        """See LandmarkIndex."""
        return len(self) if self._tree is None else self._tree.scored_a_query(max(self._probes, 1))
