"""The decode kernel over what sessions hold: in Triton's interpreter it gives the logits of unpacked latents."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from models.hf import static_factors
from models.hf.captured import CapturedSteps
from models.hf.session_decoding import SessionDecoding
from models.kernels.latent_decode import latent_decode
from tests.models import tiny


@pytest.mark.parametrize(
    "budgets",
    [
        pytest.param(
            {"summaries": "in_place", "ring": 48, "rank": 2, "latent_blocks": 3},
            id="in place",
            marks=pytest.mark.slow,  # 17 s in the interpreter
        ),
        pytest.param({"key_frame": "within_block", "value_rank": 6}, id="own, within block"),
    ],
)
def test_sessions_decode_by_the_kernel(
    device: str, monkeypatch: pytest.MonkeyPatch, budgets: dict[str, Any]
) -> None:
    """Two sessions of unequal length, over an eviction; on a GPU tests/models/hf/test_fused_latents.py does it."""
    if device != "cpu":
        pytest.skip("the kernel runs on the GPU by itself there")
    own = tiny.backbone(head_dim=32, query_pre_attn_scalar=32)
    monkeypatch.setattr(own, "steps", CapturedSteps(own, enabled=False))
    caches = []
    for tokens, seed in ((96, 15), (16, 16)):  # the ring of the first is full
        caches.append(own.new_cache(tiny.budgets(sinks=8, **budgets)))
        own.read(tiny.ids(tokens, seed), caches[-1])
    told = torch.tensor([tiny.ids(2, seed) for seed in (5, 6)])
    calls = []

    def by_kernel(*given: Any, **named: Any) -> Any:
        calls.append(named["latents"] is not None)
        return partial(latent_decode, implementation="fused")(*given, **named)

    monkeypatch.setattr(static_factors, "latent_decode", by_kernel)
    found = []
    for fused in (False, True):
        own.steps.fused_latents = fused
        forks = [cache.fork() for cache in caches]
        with SessionDecoding(own, forks) as decoding:
            assert decoding.fused == fused
            found.append(decoding.logits(told))
        layers: list[Any] = [cache.stored[1] for cache in (forks[0], caches[0])]
        assert layers[0].blocks > layers[1].blocks
    assert calls == [True] * 2 * 2  # both full layers, at every token
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)
