"""Attention in two parts, what came before and the step itself, is masked attention."""

from __future__ import annotations

import pytest
import structlog
import torch

from models.hf import causal
from models.hf.attention import attend, causal_mask
from models.hf.causal import attend_causal, checked, unchecked


@pytest.mark.parametrize(("tokens", "before"), [(7, 0), (64, 1), (33, 100), (1, 20)])
def test_two_parts_are_masked_attention(tokens: int, before: int) -> None:
    """With and without earlier tokens, four heads on two key heads."""
    query = torch.randn(1, 4, tokens, 16)
    key, value = torch.randn(2, 1, 2, tokens + before, 16)
    wanted = attend(query, key, value, causal_mask(tokens, tokens + before, None, query.device), 0.3)
    torch.testing.assert_close(attend_causal(query, key, value, 0.3), wanted, rtol=1e-5, atol=1e-5)


def test_a_wrong_kernel_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked way is taken from then on."""
    monkeypatch.setattr(causal, "_found_good", {})
    query, (key, value) = torch.randn(1, 2, 9, 16), torch.randn(2, 1, 1, 12, 16)
    right = attend(query, key, value, causal_mask(9, 12, None, query.device), 0.3)
    assert unchecked(query)
    assert checked(query, key, value, 0.3, right) is not None and not unchecked(query)
    causal._found_good.clear()
    with structlog.testing.capture_logs() as logs:
        assert checked(query, key, value, 0.9, right) is None
    assert [log["event"] for log in logs] == ["fused_attention_differs"]
    assert causal._found_good == {("cpu", torch.float32, 16): False}


def test_an_absent_kernel_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and None tells to take the masked way."""
    monkeypatch.setattr(causal, "_found_good", {})

    def absent(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(causal, "_fused", absent)
    query, (key, value) = torch.randn(1, 2, 9, 16), torch.randn(2, 1, 1, 12, 16)
    with structlog.testing.capture_logs() as logs:
        assert checked(query, key, value, 0.3, None) is None
    assert [log["event"] for log in logs] == ["fused_attention_absent"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_reading_on_a_gpu_is_masked_attention() -> None:
    """In bf16 with Gemma's head width, a step of 2,048 after 3,076 tokens."""
    query = torch.randn(1, 4, 2048, 256, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 1, 5124, 256, device="cuda", dtype=torch.bfloat16)
    mask = causal_mask(2048, 5124, None, query.device)
    wanted = attend(query.float(), key.float(), value.float(), mask, 0.0625)
    with torch.no_grad():
        assert causal.can_serve(query)
        found = attend_causal(query, key, value, 0.0625).float()
    assert float((found - wanted).norm() / wanted.norm()) < 0.01
