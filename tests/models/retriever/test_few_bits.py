"""models/retriever/few_bits.py: codes come back as they were, and what is lost is half a step of each group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retriever.few_bits import from_few_bits, in_few_bits, packed, unpacked
from models.retriever.pair_base import from_eight_bits, in_eight_bits


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(2, 8), group=st.sampled_from([1, 4, 32]), rows=st.integers(1, 9), seed=st.integers(0, 99),
    size=st.sampled_from([0.0, 1e-3, 1.0, 300.0]),
)  # fmt: skip
def test_no_value_is_off_by_more_than_half_a_step(
    bits: int, group: int, rows: int, seed: int, size: float
) -> None:
    """Of its group's scale; zeros stay zeros, and the bytes are those of the bits."""
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, 32)).astype(np.float32) * size)
    codes, scales = packed(matrix, bits, group)
    assert len(codes) == -(-rows * 32 * bits // 8)
    found = unpacked(codes, scales, torch.tensor([bits, group, rows, 32]))
    step = scales.float().reshape(-1, 1)
    # a scale of half precision may leave the largest value a little outside, and has steps of 6e-8 near nothing
    off = (found - matrix).reshape(-1, group).abs()
    assert bool((off <= step * (0.5 + 2.0**-10 * 2 ** (bits - 1)) + 6e-8 * 2 ** (bits - 1)).all())
    if not size:
        assert not found.any()


def test_a_state_comes_back_whole_with_words_in_four_bits_and_layers_in_six() -> None:
    """Vectors and narrow matrices to the bit; through the loader of 8 bits too, which knows both forms."""
    torch.manual_seed(0)
    state = {
        "bert.embeddings.word_embeddings.weight": torch.randn(50, 64), "bert.layer.weight": torch.randn(64, 128),
        "bert.layer.bias": torch.randn(64), "head.weight": torch.randn(1, 128), "narrow.weight": torch.randn(4, 30),
    }  # fmt: skip
    small = in_few_bits(state)
    found = from_few_bits(small)
    assert set(found) == set(state)
    for name in ("bert.layer.bias", "head.weight", "narrow.weight"):
        assert torch.equal(found[name], state[name])
    words, layer = (found[name] - state[name] for name in list(state)[:2])
    assert 0.05 < float(words.abs().mean()) < 0.12
    assert 0.01 < float(layer.abs().mean()) < 0.03
    assert small["bert.layer.weight:codes"].numel() == 64 * 128 * 6 // 8
    through = from_eight_bits(small)
    assert all(torch.equal(through[name], found[name]) for name in found)
    assert set(from_eight_bits(in_eight_bits(state))) == set(state)


def test_what_does_not_fit_is_refused() -> None:
    """Nine bits; a group that does not divide a row."""
    with pytest.raises(ValueError, match="bits: given 9"):
        packed(torch.zeros(2, 32), 9, 32)
    with pytest.raises(ValueError, match="group: given 64; allowed: what divides 96"):
        packed(torch.zeros(2, 96), 4, 64)
