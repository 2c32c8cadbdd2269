"""Latents: read without unpacking, they give what unpacking gives."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.cache.latents import LatentRing, scores_before_rotary, scores_within_block, weighted_values
from models.rotary import RotaryTable
from tests.models import tiny

CPU = torch.device("cpu")


def _factors(
    blocks: int = 3, tokens: int = 7, rank: int = 4, dim: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, blocks, tokens, rank), torch.randn(2, blocks, rank, dim)


def _rotary() -> RotaryTable:
    rotary = tiny.backbone().specs[1].rotary
    rotary.reserve(1000)
    return rotary


def test_scores_of_keys_before_rotary_need_no_unpacking() -> None:
    """Every token turned by its own place: the sum over frequencies equals turn(U B) · q."""
    rows, basis = _factors()
    places = torch.randperm(600)[: 2 * 3 * 7].reshape(2, 3, 7)
    queries = _rotary().turn(torch.randn(2, 5, 16), torch.arange(700, 705))
    unpacked = _rotary().turn((rows @ basis).flatten(1, 2), places.flatten(1))
    expected = queries @ unpacked.transpose(-1, -2)
    torch.testing.assert_close(scores_before_rotary(queries, rows, basis, places, _rotary()), expected)


def test_scores_of_keys_in_the_block_s_frame_need_no_unpacking() -> None:
    """A block turned as one: the query is turned back instead, `((R⁻¹ q) Bᵀ) Uᵀ`."""
    rows, basis = _factors()
    starts = torch.tensor([10, 17, 24])
    queries = _rotary().turn(torch.randn(2, 5, 16), torch.arange(700, 705))
    places = starts[None, :, None].expand(2, -1, 7).flatten(1)
    unpacked = _rotary().turn((rows @ basis).flatten(1, 2), places)
    expected = queries @ unpacked.transpose(-1, -2)
    torch.testing.assert_close(scores_within_block(queries, rows, basis, starts, _rotary()), expected)


def test_values_are_weighted_without_unpacking() -> None:
    """`(p U) B` equals `p (U B)`, summed over blocks."""
    rows, basis = _factors()
    weights = torch.rand(2, 5, 21)
    expected = weights @ (rows @ basis).flatten(1, 2)
    torch.testing.assert_close(weighted_values(weights, rows, basis), expected)


def test_one_softmax_over_raw_pairs_and_factored_latents() -> None:
    """Scores from factors beside raw scores, one softmax, values from factors: the unpacked attention."""
    rows, basis = _factors()
    value_rows, value_basis = _factors()
    rotary = _rotary()
    places = torch.arange(21).reshape(1, 3, 7).expand(2, -1, -1)
    raw_keys, raw_values = torch.randn(2, 2, 9, 16)
    queries = rotary.turn(torch.randn(2, 5, 16), torch.arange(40, 45))
    turned = rotary.turn(raw_keys, torch.arange(21, 30))
    scores = (scores_before_rotary(queries, rows, basis, places, rotary), queries @ turned.transpose(-1, -2))
    weights = torch.cat(scores, dim=-1).mul(0.25).softmax(-1)
    ours = weighted_values(weights[..., :21], value_rows, value_basis) + weights[..., 21:] @ raw_values
    keys = rotary.turn(torch.cat(((rows @ basis).flatten(1, 2), raw_keys), 1), torch.arange(30))
    values = torch.cat(((value_rows @ value_basis).flatten(1, 2), raw_values), 1)
    expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=0.25)
    torch.testing.assert_close(ours, expected)


@given(capacity=st.integers(1, 5), blocks=st.integers(0, 14))
def test_latent_ring_is_first_in_first_out(capacity: int, blocks: int) -> None:
    """After any number of evictions the newest blocks are held, oldest first."""
    ring = LatentRing(1, capacity, 2, (1, 1), 3, torch.float32, CPU)
    for block in range(blocks):
        rows, basis = torch.full((1, 2, 1), float(block)), torch.ones(1, 1, 3)
        ring.write(block, (rows, basis), (rows, basis), torch.tensor([[0, 1]]))
    keys, values, offsets = ring.unpack(ring.order(blocks))
    expected = [float(b) for b in range(max(0, blocks - capacity), blocks) for _ in range(2)]
    assert keys[0, :, 0].tolist() == values[0, :, 2].tolist() == expected
    assert offsets.shape == (1, min(blocks, capacity), 2)
