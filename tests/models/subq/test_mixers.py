"""Mixers: chunked forms against the definition token by token, and state that is carried."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.subq.mixers import build_mixer
from models.subq.mixers.gated_linear import gated_linear_chunked, gated_linear_naive
from models.subq.mixers.sliding import sliding_naive
from models.subq.mixers.state_space import state_space, state_space_naive
from tests.models.subq.small import SMALL

MIXERS = ("sliding", "gated_linear", "state_space", "full")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", MIXERS)
@settings(max_examples=8, deadline=None)
@given(length=st.integers(1, 60), cut=st.integers(0, 60))
def test_two_segments_give_what_one_gives(name: str, length: int, cut: int) -> None:
    """A mixer's state is all that it needs of the past."""
    torch.manual_seed(3)
    mixer = build_mixer(name, SMALL).double()
    x = _random(2, length, SMALL.width)
    whole, end = mixer(x)
    cut = min(cut, length)
    state, parts = None, []
    for part in (x[:, :cut], x[:, cut:]):
        if part.shape[1]:
            y, state = mixer(part, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-6, rtol=1e-6)
    for found, expected in zip(state, end, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", MIXERS)
def test_no_token_sees_a_later_one(name: str) -> None:
    """What comes later changes nothing before."""
    mixer = build_mixer(name, SMALL)
    x = torch.randn(1, 50, SMALL.width)
    changed = x.clone()
    changed[:, 30:] = torch.randn(1, 20, SMALL.width)
    assert torch.equal(mixer(x)[0][:, :30], mixer(changed)[0][:, :30])


def test_sliding_window_is_attention_to_the_last_tokens() -> None:
    """Blocks and masks give the definition: each token sees the last 12, and zeros before the first."""
    mixer = build_mixer("sliding", SMALL).double()
    x = _random(1, 41, SMALL.width)
    q, k, v = mixer.project.split(x)
    from models.subq.mixers.sliding import rotary, turn

    cos, sin = rotary(torch.arange(41), SMALL.head_dim, SMALL.rotary_base)
    expected = sliding_naive(
        turn(q, cos, sin)[0], turn(k, cos, sin)[0], v[0], SMALL.window, mixer.project.scale
    )
    found, _ = mixer(x)
    torch.testing.assert_close(found[0], mixer.project.out(expected.flatten(1)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 15, 16, 50, 600])
def test_gated_linear_attention_in_chunks_is_the_recurrence(length: int) -> None:
    """Forward, state and gradients of the chunked form are those of the recurrence, at weak and strong gates."""
    q, k, v = (_random(2, length, 3, 8, seed=seed).requires_grad_() for seed in range(3))
    gate = (F.logsigmoid(_random(2, length, 3, 8, seed=4)) * 8).requires_grad_()
    state = _random(2, 3, 8, 8, seed=5)
    out, last = gated_linear_chunked(q, k, v, gate, state)
    expected, end = gated_linear_naive(q, k, v, gate, state)
    torch.testing.assert_close((out, last), (expected, end))
    weight = _random(*out.shape, seed=6)
    for found, wanted in zip(
        torch.autograd.grad((out * weight).sum() + last.sum(), (q, k, v, gate)),
        torch.autograd.grad((expected * weight).sum() + end.sum(), (q, k, v, gate)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("length", [1, 63, 64, 150])
def test_state_space_in_chunks_is_the_recurrence(length: int) -> None:
    """Forward, state and gradients of the chunked form are those of the recurrence."""
    x = _random(2, length, 3, 8).requires_grad_()
    b, c = (_random(2, length, 5, seed=seed).requires_grad_() for seed in (1, 2))
    gate = (-_random(2, length, 3, seed=3).abs()).requires_grad_()
    state = _random(2, 3, 5, 8, seed=4)
    out, last = state_space(x, b, c, gate, state)
    expected, end = state_space_naive(x, b, c, gate, state)
    torch.testing.assert_close((out, last), (expected, end))
    weight = _random(*out.shape, seed=6)
    for found, wanted in zip(
        torch.autograd.grad((out * weight).sum() + last.sum(), (x, b, c, gate)),
        torch.autograd.grad((expected * weight).sum() + end.sum(), (x, b, c, gate)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)
