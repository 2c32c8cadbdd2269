"""A tree of means over unit vectors: built by k-means from the top, searched by a beam."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FAN = 16
LEAF = 64
_ROUNDS = 8
_SAMPLE = 64  # vectors a mean, at most, that k-means looks at
_PIECE = 65_536  # vectors in float32 at once


def best_of(queries: Tensor, rows: Tensor, members: Tensor, k: int, limits: Tensor) -> tuple[Tensor, Tensor]:
    """The k best rows among `members` [Q, M] (-1: none) that are not newer than `limits` [Q]."""
    offered = (members >= 0) & (members <= limits[:, None])
    vectors = rows[members.clamp_min(0)].float()
    scores = torch.einsum("qmr,qr->qm", vectors, queries.to(rows.dtype).float())
    scores = scores.masked_fill(~offered, float("-inf"))
    best, at = scores.topk(min(k, scores.shape[1]), -1)
    found = members.gather(1, at).masked_fill(best == float("-inf"), -1)
    missing = k - best.shape[1]
    return F.pad(best, (0, missing), value=float("-inf")), F.pad(found, (0, missing), value=-1)


class MeansTree:
    """Levels of means; a node's children are a run of the next level, a leaf's members a row of a table.

    means[l] [n_l, R]; first[l], count[l] [n_l]: children of node i of level l. Members [leaves, room], -1 empty.
    """

    def __init__(self, dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self._means: list[Tensor] = []
        self._first: list[Tensor] = []
        self._count: list[Tensor] = []
        self._members = torch.empty(0, 0, dtype=torch.long, device=device)
        self._sizes = torch.empty(0, dtype=torch.long, device=device)
        self._extra = torch.empty(0, dtype=torch.long, device=device)
        self._dtype, self._dim = dtype, dim

    @classmethod
    def build(cls, rows: Tensor, lists: int | None) -> MeansTree:
        """Over all rows [n, R]: one level of `lists` means, or as many levels of 16 as leaves of 64 need.

        All nodes of a level are split together, so that the number of launches grows with levels, not with nodes.
        """
        tree = cls(rows.shape[1], rows.device, rows.dtype)
        generator = torch.Generator(device=rows.device).manual_seed(0)
        order = torch.arange(rows.shape[0], device=rows.device)
        sizes = torch.tensor([rows.shape[0]])
        fan = min(FAN if lists is None else lists, max(1, rows.shape[0] // 2))
        while True:
            # what is small enough has one child, itself
            split = (
                (sizes > LEAF) if lists is None and tree._means else torch.ones_like(sizes, dtype=torch.bool)
            )
            child = _split(rows, order, sizes, split, fan, generator)
            node = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(rows.device)
            key = node * fan + child
            order = order[key.argsort(stable=True)]
            counts = torch.bincount(key, minlength=len(sizes) * fan).cpu()
            children = (counts.view(-1, fan) > 0).sum(1)
            sizes = counts[counts > 0]
            tree._means.append(_means_of(rows, order, sizes).to(rows.dtype))
            tree._first.append((children.cumsum(0) - children).to(rows.device))
            tree._count.append(children.to(rows.device))
            if lists is not None or int(sizes.max()) <= LEAF or len(tree._means) >= 8:
                break
        longest = int(sizes.max())
        tree._members = torch.full((len(sizes), 2 * longest), -1, dtype=torch.long, device=rows.device)
        node, place = _places(sizes, rows.device)
        tree._members[node, place] = order
        tree._sizes = sizes.to(rows.device)
        return tree

    @property
    def nbytes(self) -> int:
        """Bytes of means and tables."""
        tables = [*self._means, *self._first, *self._count, self._members, self._sizes, self._extra]
        return sum(each.nbytes for each in tables)

    def insert(self, rows: Tensor, start: int, end: int) -> None:
        """File rows start … end - 1 under the leaves of a greedy descent; a full leaf's go to a list beside."""
        new = torch.arange(start, end, device=rows.device)
        leaves = self._descend(rows[start:end], 1)[:, 0]
        order = leaves.argsort(stable=True)
        leaves, new = leaves[order], new[order]
        run_start = torch.searchsorted(leaves, leaves)
        place = self._sizes[leaves] + torch.arange(len(leaves), device=rows.device) - run_start
        fits = place < self._members.shape[1]
        self._members[leaves[fits], place[fits]] = new[fits]
        self._sizes += torch.bincount(leaves[fits], minlength=len(self._sizes))
        self._extra = torch.cat((self._extra, new[~fits]))

    def candidates(self, queries: Tensor, probes: int) -> Tensor:
        """Members of the `probes` most promising leaves of each query [Q, M], -1 where there is none."""
        leaves = self._descend(queries, probes)
        members = self._members[leaves.clamp_min(0)].masked_fill((leaves < 0)[..., None], -1)
        return torch.cat((members.flatten(1), self._extra.expand(len(queries), -1)), 1)

    def scored_a_query(self, probes: int) -> int:
        """Means and members that a search looks at, empty places counted."""
        total, beam = len(self._extra), 1
        for means, count in zip(self._means, self._count, strict=True):
            total += beam * int(count.max())
            beam = min(probes, beam * int(count.max()), len(means))
        return total + beam * self._members.shape[1]

    def _descend(self, queries: Tensor, beam: int) -> Tensor:
        """Nodes of the last level [Q, beam], best first (-1: fewer)."""
        queries = queries.to(self._dtype).float()
        nodes = torch.zeros(len(queries), 1, dtype=torch.long, device=queries.device)
        for means, first, count in zip(self._means, self._first, self._count, strict=True):
            widest = int(count.max())
            run = torch.arange(widest, device=queries.device)
            parents = nodes.clamp_min(0)
            children = first[parents][..., None] + run
            real = (run < count[parents][..., None]) & (nodes >= 0)[..., None]
            children, real = children.flatten(1), real.flatten(1)
            vectors = means[children.masked_fill(~real, 0)].float()
            scores = torch.einsum("qcr,qr->qc", vectors, queries).masked_fill(~real, float("-inf"))
            best, at = scores.topk(min(beam, scores.shape[1]), -1)
            nodes = children.gather(1, at).masked_fill(best == float("-inf"), -1)
        return nodes


def _places(sizes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of runs of `sizes`, laid end to end: which run each place is of, and where in it [sum of sizes]."""
    sizes = sizes.to(device)
    node = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    return node, torch.arange(len(node), device=device) - (sizes.cumsum(0) - sizes)[node]


def _means_of(rows: Tensor, order: Tensor, sizes: Tensor) -> Tensor:
    """The mean of each run of rows[order], of length 1 [runs, R]."""
    node, _ = _places(sizes, rows.device)
    sums = torch.zeros(len(sizes), rows.shape[1], device=rows.device)
    for at, own in zip(order.split(_PIECE), node.split(_PIECE), strict=True):  # type: ignore[no-untyped-call]
        sums.index_add_(0, own, rows[at].float())
    return F.normalize(sums, dim=1)


def _split(
    rows: Tensor, order: Tensor, sizes: Tensor, split: Tensor, fan: int, generator: torch.Generator
) -> Tensor:
    """Which of `fan` children each row of order [n] belongs to: k-means in every run that is to be `split`."""
    starts = sizes.cumsum(0) - sizes
    child = torch.zeros_like(order)
    # nodes of a like size together: little of a padded batch is padding
    wanted = torch.nonzero(split)[:, 0]
    wanted = wanted[sizes[wanted].argsort(descending=True)]
    while len(wanted):
        longest = int(sizes[wanted[0]])
        group, wanted = wanted.tensor_split([max(1, _PIECE // longest)])
        first, size = starts[group].to(rows.device), sizes[group].to(rows.device)
        centres = _centres(rows, order, first, size, longest, fan, generator)
        for begin in range(0, longest, _PIECE):
            place = torch.arange(begin, min(longest, begin + _PIECE), device=rows.device)
            inside = place < size[:, None]
            at = (first[:, None] + place).clamp_max(len(order) - 1)
            nearest = (rows[order[at]].float() @ centres.transpose(1, 2)).argmax(-1)
            child[at[inside]] = nearest[inside]
    return child


def _centres(
    rows: Tensor,
    order: Tensor,
    first: Tensor,
    size: Tensor,
    longest: int,
    fan: int,
    generator: torch.Generator,
) -> Tensor:
    """Spherical k-means of runs of order [n] that begin at `first` [g] and hold `size` [g] rows: [g, fan, R]."""
    most = min(longest, fan * _SAMPLE)
    spread = torch.arange(most, device=rows.device)
    # a longer run is looked at in even steps, a shorter one whole
    place = torch.where(size[:, None] > most, spread * size[:, None] // most, spread)
    real = place < size[:, None]
    sample = rows[order[(first[:, None] + place).clamp_max(len(order) - 1)]].float() * real[..., None]
    chance = torch.rand(real.shape, generator=generator, device=rows.device).masked_fill(~real, -1.0)
    begun = chance.topk(fan, 1).indices
    centres = sample.gather(1, begun[..., None].expand(-1, -1, sample.shape[2]))
    for _ in range(_ROUNDS):
        owner = (sample @ centres.transpose(1, 2)).argmax(-1)
        shares = F.one_hot(owner, fan).to(sample.dtype)
        sums = shares.transpose(1, 2) @ sample
        # a mean that nothing belongs to stays where it was
        centres = torch.where(sums.norm(dim=-1, keepdim=True) > 0, F.normalize(sums, dim=-1), centres)
    return centres
