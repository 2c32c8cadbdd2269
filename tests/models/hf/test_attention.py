"""Sliding windows read piece by piece are the whole's."""

from __future__ import annotations

import pytest
import torch

from models.hf.attention import attend, attend_windows, causal_mask


@pytest.mark.parametrize("tokens", [16, 17, 31, 40])
@pytest.mark.parametrize("before", [0, 3, 7, 8, 19])
def test_pieces_of_a_window_attend_as_the_whole(tokens: int, before: int) -> None:
    """Grouped heads, lengths that divide nothing, few or many pairs before the first query."""
    torch.manual_seed(tokens + before)
    window, dim = 8, 6
    query = torch.randn(1, 4, tokens, dim)
    key, value = torch.randn(2, 1, 2, before + tokens, dim)
    mask = causal_mask(tokens, before + tokens, window, query.device)
    expected = attend(query, key, value, mask, 0.4)
    torch.testing.assert_close(attend_windows(query, key, value, window, 0.4), expected, atol=1e-5, rtol=1e-5)
