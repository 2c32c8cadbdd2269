"""Landmark indexes: what is found, what is never returned, and what a search costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.subq.index import LandmarkIndex, build_index

DIM = 32


def _landmarks(num: int) -> torch.Tensor:
    """Vectors in clusters, as chunks of similar text have."""
    make = torch.Generator().manual_seed(0)
    centres = torch.randn(40, DIM, generator=make)
    own = torch.randint(0, 40, (num,), generator=make)
    return F.normalize(centres[own] + 0.7 * torch.randn(num, DIM, generator=make), dim=-1)


def _filled(kind: str, rows: torch.Tensor, probes: int = 8) -> LandmarkIndex:
    index = build_index(kind, DIM, probes, torch.float32, torch.device("cpu"))
    for part in rows.split(300):
        index.add(part)
    return index


@pytest.mark.parametrize("kind", ["flat", "ivf", "tree", "groups"])
def test_search_finds_what_was_planted(kind: str) -> None:
    """A query near one landmark finds it; only as many probes as an index needs are opened."""
    rows = _landmarks(5_000)
    index = _filled(kind, rows, probes=64 if kind == "groups" else 12)
    gold = torch.randint(0, 5_000, (64,), generator=torch.Generator().manual_seed(1))
    queries = F.normalize(
        rows[gold] + 0.05 * torch.randn(64, DIM, generator=torch.Generator().manual_seed(2)), dim=-1
    )
    scores, found = index.search(queries, 8, torch.full((64,), 4_999))
    recall = (found == gold[:, None]).any(1).float().mean()
    assert recall >= (1.0 if kind == "flat" else 0.9)
    assert (scores.diff(dim=1) <= 0).all()
    torch.testing.assert_close(scores[:, 0], torch.einsum("qd,qd->q", queries, rows[found[:, 0]]))


@pytest.mark.parametrize("kind", ["flat", "ivf", "tree", "groups"])
@pytest.mark.parametrize("num", [0, 3, 70, 1_500])
def test_search_returns_nothing_newer_than_its_limit(kind: str, num: int) -> None:
    """Limits hold for each query apart, also where fewer chunks are on offer than asked for."""
    index = _filled(kind, _landmarks(max(num, 1))[:num])
    limits = torch.tensor([-1, 0, 5, 64, 1_000])
    scores, found = index.search(_landmarks(5), 8, limits)
    assert found.shape == scores.shape == (5, 8)
    for row, limit in enumerate(limits.tolist()):
        real = found[row][found[row] >= 0]
        assert len(real.unique()) == len(real)
        assert (real <= limit).all() and (real < num).all()
        assert torch.equal(scores[row] > float("-inf"), found[row] >= 0)
        if kind == "flat":
            assert len(real) == min(8, limit + 1, num)


def test_bounds_of_groups_never_miss_when_all_are_opened() -> None:
    """With as many probes as groups the bounded search is the flat one."""
    rows = _landmarks(700)
    queries = _landmarks(20)
    limits = torch.full((20,), 650)
    expected, _ = _filled("flat", rows).search(queries, 8, limits)
    found, _ = _filled("groups", rows, probes=11).search(queries, 8, limits)
    torch.testing.assert_close(found, expected)


def test_tree_opens_ever_fewer_of_its_landmarks() -> None:
    """What a search scores grows with the logarithm of the landmarks, not with their number."""
    scored = []
    for num in (1_000, 4_000, 16_000):
        index = build_index("tree", DIM, 4, torch.float32, torch.device("cpu"))
        index.add(_landmarks(num))
        scored.append(index.scored_a_query())
    assert scored[2] - scored[1] < 2 * max(scored[1] - scored[0], 256)
    assert scored[2] < 16_000 / 8


def test_unknown_index_is_refused() -> None:
    """The error names what there is."""
    with pytest.raises(ValueError, match="index: given 'hnsw'; allowed: flat, ivf, tree, groups"):
        build_index("hnsw", DIM, 4, torch.float32, torch.device("cpu"))
