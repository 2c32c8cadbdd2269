"""A tree of means over unit vectors: built by k-means from the top, searched by a beam."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FAN = 16
LEAF = 64
_ROUNDS = 8
_SAMPLE = 64  # vectors a mean, at most, that k-means looks at


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
        """Over all rows [n, R]: one level of `lists` means, or as many levels of 16 as leaves of 64 need."""
        tree = cls(rows.shape[1], rows.device, rows.dtype)
        generator = torch.Generator(device=rows.device).manual_seed(0)
        nodes = [torch.arange(rows.shape[0], device=rows.device)]
        while True:
            fan = FAN if lists is None else lists
            parts: list[Tensor] = []
            means: list[Tensor] = []
            first: list[int] = []
            count: list[int] = []
            for node in nodes:
                owner, centre = _means(rows, node, min(fan, max(1, len(node) // 2)), generator)
                first.append(len(parts))
                for child in range(centre.shape[0]):
                    own = node[owner == child]
                    if len(own):
                        parts.append(own)
                        means.append(centre[child])
                count.append(len(parts) - first[-1])
            tree._means.append(torch.stack(means).to(rows.dtype))
            tree._first.append(torch.tensor(first, device=rows.device))
            tree._count.append(torch.tensor(count, device=rows.device))
            nodes = parts
            if lists is not None or max(map(len, nodes)) <= LEAF or len(tree._means) >= 8:
                break
        longest = max(map(len, nodes))
        tree._members = torch.full((len(nodes), 2 * longest), -1, dtype=torch.long, device=rows.device)
        for at, node in enumerate(nodes):
            tree._members[at, : len(node)] = node
        tree._sizes = torch.tensor([len(node) for node in nodes], device=rows.device)
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


def _means(rows: Tensor, node: Tensor, fan: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spherical k-means of a node's rows: (which mean each row belongs to [n], means [fan, R])."""
    shuffled = node[torch.randperm(len(node), generator=generator, device=node.device)]
    sample = rows[shuffled[: fan * _SAMPLE]].float()
    centre = sample[:fan].clone()
    for _ in range(_ROUNDS):
        owner = (sample @ centre.T).argmax(1)
        sums = torch.zeros_like(centre).index_add_(0, owner, sample)
        # a mean that nothing belongs to stays where it was
        centre = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centre)
    owner = torch.cat([(part.float() @ centre.T).argmax(1) for part in rows[node].split(65_536)])  # type: ignore[no-untyped-call]
    return owner, centre
