"""The check of two ways of decoding: it holds where they differ by rounding, and sees a place or a block amiss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.bench import decode_agreement
from infra.bench.session_bytes_decode import decode, decode_captured
from models.hf import HfBackbone, HfConfig
from models.hf.captured import CapturedSteps, DecodeStep
from models.hf.session_decoding import SessionDecoding
from models.hf.static_factors import FactoredKind
from models.hf.static_memory import StaticKind
from tests.models import tiny

COUNT = 24


def _checked(narrow: HfBackbone, wide: HfBackbone) -> dict[str, Any]:
    config = tiny.budgets()
    cache = narrow.new_cache(config)
    narrow.read(tiny.ids(96, 3), cache)
    return decode_agreement.check(narrow, wide, cache, config, 5, COUNT)


def _pair(folder: Path, device: str) -> tuple[HfBackbone, HfBackbone]:
    saved = str(tiny.save(folder / "tiny"))
    narrow, wide = (
        HfBackbone.load(HfConfig(model=saved, device=device, dtype=dtype, prompt_block=32))
        for dtype in ("bfloat16", "float32")
    )
    return narrow, wide


def test_two_ways_in_float32_are_one() -> None:
    """Over three evictions, all ids and logits; nothing is said of a narrower type."""
    own = tiny.backbone()
    found = _checked(own, own)
    assert found["ok"] and found["ids_agreeing"] == COUNT and found["float32"]["parts"] == []
    assert len(found["blocks_left_at"]) == COUNT // 8 and "narrow" not in found
    assert found["fused"]["max_logit_difference"] < 1e-4 and found["fused"]["same_likeliest"] == COUNT


def test_bfloat16_differs_by_rounding(tmp_path: Path) -> None:
    """Neither way is farther from float32 over the same cache; the float32 ways agree."""
    found = _checked(*_pair(tmp_path, "cpu"))
    assert found["ok"]
    far = found["from_float32_rms"]
    assert set(far) == {"eager", "fixed", "fused"} and all(0 < value < 0.2 for value in far.values())
    assert found["float32"]["max_logit_difference"] < 1e-4 < found["narrow"]["max_logit_difference"]


def test_a_place_amiss_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that are decoded one place farther on."""
    lay = StaticKind.lay

    def farther(self: StaticKind, at: int, row: int, pairs: Any, allowed: Any, place: int) -> None:
        lay(self, at, row, pairs, allowed, place + 1)

    monkeypatch.setattr(StaticKind, "lay", farther)
    own = tiny.backbone()
    found = _checked(own, own)
    assert not found["ok"] and found["float32"]["max_logit_difference"] > decode_agreement.FLOAT32_BOUND


def test_factors_amiss_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where latents are read as factors: the other ways still agree."""
    lay = FactoredKind.lay_factors

    def farther(self: FactoredKind, layer: int, row: int, factors: Any) -> None:
        lay(self, layer, row, replace(factors, place=factors.place + 1))

    monkeypatch.setattr(FactoredKind, "lay_factors", farther)
    own = tiny.backbone()
    found = _checked(own, own)
    assert not found["ok"] and found["float32"]["max_logit_difference"] < decode_agreement.FLOAT32_BOUND
    assert found["fused"]["max_logit_difference"] > decode_agreement.FLOAT32_BOUND


def test_a_model_the_kernel_cannot_read_is_judged_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the bounds of the other ways decide."""
    monkeypatch.setattr("models.hf.captured.not_covered", lambda *_: "heads are 16 wide")
    own = tiny.backbone()
    found = _checked(own, own)
    assert found["ok"] and found["fused"] is None


def test_both_captured_ways_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its buffers, and the switch is afterwards as it was; here the steps only count as captured."""
    own = tiny.backbone()
    monkeypatch.setattr(own, "steps", CapturedSteps(own, enabled=True, capture=False))
    monkeypatch.setattr(DecodeStep, "captured", True)
    cache = own.new_cache(tiny.budgets(ring=32, evict_block=16, latent_blocks=16, read_block=16))
    own.read(tiny.ids(16 * 20, 3), cache)
    _, _, ids = decode(own, cache, 3)
    found = decode_captured(own, cache, 4, ids)
    for name in ("captured", "fused"):
        assert found[name] == 4 and found[f"{name}_ids_agreeing"] == 3 and found[f"{name}_ms"] > 0
    assert found["fused_buffer_bytes"] < found["captured_buffer_bytes"]
    assert not own.steps.fused_latents
    monkeypatch.setattr("models.hf.captured.not_covered", lambda *_: "heads are 16 wide")
    assert not any(name.startswith("fused") for name in decode_captured(own, cache, 4, ids))


def test_a_late_eviction_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents that are laid out a step late."""
    begin = SessionDecoding._open

    def late(self: SessionDecoding) -> int:
        before = [layer.visible() for layer in self._caches[0].stored]
        free = begin(self)
        for layer, held in zip(self._caches[0].stored, before, strict=True):
            layer.visible = lambda held=held: held  # type: ignore[method-assign]
        self.step.memory.lay_cache(0, self._caches[0])
        for layer in self._caches[0].stored:
            del layer.visible
        return free

    monkeypatch.setattr(SessionDecoding, "_open", late)
    own = tiny.backbone()
    assert not _checked(own, own)["ok"]


def test_parts_tell_their_margins() -> None:
    """The step, both ids, each way's distance of its two best, and how far the two moved against each other."""
    one = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.5, 0.0]])
    other = torch.tensor([[0.0, 3.0, 1.0], [2.5, 2.25, 0.0]])
    found = decode_agreement.compare(one, other)
    assert found["same_likeliest"] == 1 and found["max_logit_difference"] == 0.5
    assert found["parts"] == [
        {"step": 1, "ids": [1, 0], "margins": [0.5, 0.25], "moved": 0.75, "max_logit_difference": 0.5}
    ]


def test_the_command_ends_with_what_it_found(tmp_path: Path) -> None:
    """0 where all holds, and a row a length; lengths that are no whole steps are refused."""
    saved, out = str(tiny.save(tmp_path / "tiny")), tmp_path / "out" / "agreement.json"
    budgets = json.dumps(
        {"sinks": 2, "ring": 24, "evict_block": 8, "rank": 4, "latent_blocks": 3, "read_block": 8}
    )
    told = ["--out", str(out), "--model", saved, "--device", "cpu", "--read-block", "8", "--cache", budgets]
    assert decode_agreement.main([*told, "--count", "24", "--tokens", "16", "48"]) == 0
    found = json.loads(out.read_text())
    assert [row["tokens"] for row in found["rows"]] == [16, 48] and found["ok"]
    with pytest.raises(SystemExit):
        decode_agreement.main([*told, "--tokens", "100"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_captured_decoding_differs_by_rounding_on_a_gpu(tmp_path: Path, dtype: str) -> None:
    """Captured, with evictions between the graphs' steps."""
    narrow, wide = _pair(tmp_path, "cuda")
    found = _checked(narrow if dtype == "bfloat16" else wide, wide)
    assert found["captured"] and found["ok"], json.dumps(found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_latents_are_read_as_factors_on_a_gpu(tmp_path: Path) -> None:
    """By the kernel, whose heads must be 32 wide at least, and timed beside the other way."""
    saved = str(tiny.save(tmp_path / "tiny", model_config=tiny.config(head_dim=32, query_pre_attn_scalar=32)))
    own = HfBackbone.load(HfConfig(model=saved, device="cuda", dtype="float32", prompt_block=32))
    found = _checked(own, own)
    assert found["captured"] and found["ok"] and found["fused"], json.dumps(found)
    cache = own.new_cache(tiny.budgets())
    own.read(tiny.ids(96, 3), cache)
    times = decode_captured(own, cache, 20, decode(own, cache, 10)[2])
    assert times["captured_ms"] > 0 and times["fused_ms"] > 0
