"""Hindsight: labels of what to read, made from what comes later."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.subq.hindsight import hindsight_loss, overlap, rarity


def _ids() -> torch.Tensor:
    """Six chunks of four: common tokens 0 to 3; 9 stands in chunks 1 and 5, 8 in chunks 4 and 5."""
    ids = torch.arange(4).repeat(6)
    ids[5], ids[18], ids[21], ids[22] = 9, 8, 9, 8
    return ids[None]


def test_what_comes_back_from_far_is_wanted() -> None:
    """Chunk 5 wants chunk 1 for its rare token; not what its neighbour shows already, nor what is too near."""
    rare = torch.zeros(10)
    rare[8], rare[9] = 3.0, 2.0
    wanted = overlap(_ids(), rare, chunk=4, near=2)
    expected = torch.zeros(1, 6, 6)
    expected[0, 5, 1] = 2.0
    torch.testing.assert_close(wanted, expected)


def test_common_tokens_and_absent_ones_are_not_rare() -> None:
    """Only tokens that occur, and less often than e^-common, say something; the rarer the more."""
    counts = torch.tensor([1_000, 100, 10, 1, 0])
    found = rarity(counts, common=2.0)
    assert found[0] == 0 and found[4] == 0
    assert 0 < found[1] < found[2] < found[3]


def test_the_loss_is_least_where_the_wanted_chunk_is_asked_for() -> None:
    """Queries like the wanted landmark lose least, and the gradient turns a query towards it."""
    wanted = torch.zeros(1, 6, 6)
    wanted[0, 5, 1] = 4.0
    wanted[0, 4, 2] = 1.0  # below what counts
    landmarks = F.normalize(torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    queries = landmarks[:, [0, 0, 0, 0, 0, 3]].clone().requires_grad_()
    loss = hindsight_loss(queries, landmarks, wanted, 2, 10.0)
    loss.backward()
    assert queries.grad is not None
    assert float(queries.grad[0, :5].abs().sum()) == 0.0
    assert float((queries.grad[0, 5] * landmarks[0, 1]).sum()) < 0
    right = landmarks[:, [0, 0, 0, 0, 0, 1]]
    assert hindsight_loss(right, landmarks, wanted, 2, 10.0) < loss
    expected = -(right[0, 5] @ landmarks[0, :4].T * 10.0).log_softmax(0)[1]
    torch.testing.assert_close(hindsight_loss(right, landmarks, wanted, 2, 10.0), expected)


def test_a_text_without_repeats_costs_nothing() -> None:
    """No row counts: loss and gradient are zero and numbers."""
    queries = torch.randn(1, 3, 4, requires_grad=True)
    loss = hindsight_loss(queries, torch.randn(1, 3, 4), torch.zeros(1, 3, 3), 2, 5.0)
    loss.backward()
    assert queries.grad is not None
    assert float(loss.detach()) == pytest.approx(0.0) and bool((queries.grad == 0).all())
