"""Snapshots: equal bytes for equal content, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cache import RotatingCompressiveCache
from tests.models import tiny


def _snapshot() -> bytes:
    cache = tiny.backbone().new_cache(tiny.budgets(heavy=6))
    tiny.backbone().read(tiny.ids(101), cache)
    return cache.to_bytes()


def test_round_trip_keeps_bytes_and_answers() -> None:
    """A restored cache packs to the same bytes and continues with the same logits, bit for bit."""
    cache = tiny.backbone().new_cache(tiny.budgets(heavy=6))
    tiny.backbone().read(tiny.ids(101), cache)
    restored = RotatingCompressiveCache.from_bytes(cache.to_bytes(), tiny.backbone(), cache.config)
    assert restored.to_bytes() == cache.to_bytes() == cache.to_bytes()
    assert restored.tokens_seen == 101 and restored.pending == cache.pending
    expected = tiny.backbone().logits(tiny.ids(9, 1), cache)
    assert torch.equal(expected, tiny.backbone().logits(tiny.ids(9, 1), restored))


def test_another_model_is_refused_with_both_names() -> None:
    """Keys of one model mean nothing to another."""
    other = tiny.backbone(seed=1)
    with pytest.raises(ValueError, match="made with model") as caught:
        RotatingCompressiveCache.from_bytes(_snapshot(), other)
    assert tiny.backbone().identity in str(caught.value) and other.identity in str(caught.value)


def test_other_budgets_are_refused_with_both_values() -> None:
    """An operator who changed the budgets learns which."""
    with pytest.raises(
        ValueError, match=r"ring 24 in the snapshot, 32 configured, rank 4 in .*, 3 configured"
    ):
        RotatingCompressiveCache.from_bytes(
            _snapshot(), tiny.backbone(), tiny.budgets(heavy=6, ring=32, rank=3)
        )


def test_another_dtype_is_refused_with_both_names(tmp_path: Path) -> None:
    """The same weights in bfloat16 compute other keys."""
    from models.hf import HfBackbone, HfConfig

    folder = tiny.save(tmp_path / "tiny")
    narrow = HfBackbone.load(HfConfig(model=str(folder), device="cpu", dtype="bfloat16"))
    assert narrow.identity == tiny.backbone().identity
    with pytest.raises(
        ValueError, match=r"made in torch\.float32, this backbone computes in torch\.bfloat16"
    ):
        RotatingCompressiveCache.from_bytes(_snapshot(), narrow)


def test_a_cache_of_another_model_is_refused_by_read_and_generate() -> None:
    """A mix-up of sessions is named before it does harm."""
    cache = tiny.backbone().new_cache(tiny.budgets())
    other = tiny.backbone(seed=1)
    for use in (lambda: other.read([5], cache), lambda: other.generate([5], cache)):
        with pytest.raises(ValueError, match="the cache belongs to model"):
            use()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_is_always_found(data: st.DataObject) -> None:
    """Any changed byte or cut end is refused; nothing damaged is ever continued."""
    whole = _damaged_source()
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        broken = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    with pytest.raises(ValueError, match=r"snapshot"):
        RotatingCompressiveCache.from_bytes(broken, tiny.backbone())


_SOURCE: list[bytes] = []


def _damaged_source() -> bytes:
    if not _SOURCE:
        _SOURCE.append(_snapshot())
    return _SOURCE[0]
