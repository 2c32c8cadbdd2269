"""Dropping tokens from a cache: nothing looks at them again, and nothing else is touched."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from models.cache import RotatingCompressiveCache
from models.cache.full_layer import RotatingLayer
from models.cache.places import SharedRing
from models.cache.snapshot import _checksum, _metadata, load
from tests.models import tiny

METHODS = [
    {},
    {"heavy": 7},
    {"compressor": "drop"},
    {"key_frame": "within_block"},
    {"summaries": "in_place", "ring": 48, "rank": 2, "latent_blocks": 4},
]


def _read(count: int, **method: Any) -> RotatingCompressiveCache:
    cache = tiny.backbone().new_cache(tiny.budgets(**method))
    tiny.backbone().read(tiny.ids(count), cache)
    return cache


def _poison(cache: RotatingCompressiveCache, first: int, end: int) -> None:
    """Write noise wherever the memory of these stream positions lies."""
    for layer in cache.stored:
        positions = layer.positions()
        hit = (positions >= first) & (positions < end)
        if isinstance(layer, RotatingLayer):
            begin = layer.config.sinks + layer.blocks * layer.config.evict_block
            counts = [p - layer.config.sinks for p in range(max(first, begin), end)]
            slots = [count % layer.ring.capacity for count in counts]
            if isinstance(layer.ring, SharedRing) and counts:
                slots = layer.ring._slots(counts[0], len(counts)).tolist()
            layer.sinks.keys[:, first : max(first, min(end, layer.config.sinks))] = 9.0
            if layer.latents:
                there = layer._latent_positions()
                mask = (there >= first) & (there < end)
                order = layer.latents.order(layer.blocks)
                rows, at = layer.latents.key_rows, layer.latents._at(order)
                rows[at] = torch.where(mask[..., None], 9.0, rows[at])
            if layer.heavy:
                there = layer.heavy.positions[:, : layer._heavies]
                mask = (there >= first) & (there < end)
                layer.heavy.keys[:, : layer._heavies][mask] = 9.0
        else:
            held = layer.get_seq_length()
            slots = [p % layer.ring.capacity for p in range(max(first, layer.seen - held), end)]
        layer.ring.keys[:, slots] = 9.0
        layer.ring.values[:, slots] = -9.0
        assert hit.any() or not slots


@pytest.mark.parametrize("method", METHODS, ids=str)
@settings(deadline=None, max_examples=4)
@given(first=st.integers(0, 88), length=st.integers(1, 40), count=st.sampled_from([20, 57, 88, 121]))
def test_nothing_looks_at_dropped_tokens(method: dict[str, Any], first: int, length: int, count: int) -> None:
    """Noise in the place of dropped tokens changes no bit of what is asked afterwards."""
    cache = _read(count, **method)
    end = min(first + length, cache.tokens_computed)
    cache.drop(first, end)
    twin = cache.fork()
    if end > first:
        _poison(twin, first, end)
    asked = [tiny.backbone().logits(tiny.ids(9, 1), one) for one in (cache, twin)]
    assert torch.equal(*asked) and bool(torch.isfinite(asked[0]).all())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_is_dropped_is_zeroed_and_the_rest_stays(method: dict[str, Any]) -> None:
    """After a drop the pairs of other tokens are what they were, at the same places; its own are zero."""
    cache = _read(88, **method)
    before = [tuple(part.clone() for part in layer.visible()[:3]) for layer in cache.stored]
    parts = cache.drop(50, 71)
    if "compressor" in method:  # keeps no latents: tokens are in the ring or gone
        assert set(parts) == {"ring"}
    else:
        assert parts["latents"] > 0 and parts["ring"] > 0
    for layer, (keys, values, places) in zip(cache.stored, before, strict=True):
        now_keys, now_values, now_places, _ = layer.visible()
        positions = layer.positions().expand(keys.shape[0], -1)
        gone = (positions >= 50) & (positions < 71)
        assert torch.equal(now_places, places)
        assert torch.equal(now_keys[~gone], keys[~gone]) and torch.equal(now_values[~gone], values[~gone])
        assert not now_keys[gone].any() and not now_values[gone].any()


def test_an_answer_differs_once_its_tokens_are_dropped() -> None:
    """A drop is not without effect: the logits change, and another span's drop changes them otherwise."""
    cache = _read(88)
    asked = [tiny.backbone().logits(tiny.ids(9, 1), cache)]
    for span in ((60, 80), (30, 40)):
        other = cache.fork()
        other.drop(*span)
        asked.append(tiny.backbone().logits(tiny.ids(9, 1), other))
    assert not torch.equal(asked[0], asked[1]) and not torch.equal(asked[1], asked[2])


def test_waiting_tokens_leave_without_a_trace() -> None:
    """Tokens that were not computed yet are taken out as if they had never come."""
    ids = tiny.ids(87)
    cache = tiny.backbone().new_cache(tiny.budgets())
    tiny.backbone().read(ids, cache)
    assert cache.drop(82, 85) == {"pending": 3}
    twin = tiny.backbone().new_cache(tiny.budgets())
    tiny.backbone().read([*ids[:82], *ids[85:]], twin)
    assert cache.to_bytes() == twin.to_bytes() and cache.dropped == []


def test_dropped_spans_travel_and_are_forgotten_with_their_tokens() -> None:
    """A snapshot and a fork keep what was dropped; once nothing of it is held the span goes."""
    cache = _read(88)
    cache.drop(60, 80)
    restored = RotatingCompressiveCache.from_bytes(cache.to_bytes(), tiny.backbone())
    assert restored.dropped == cache.fork().dropped == [(60, 80)]
    assert restored.to_bytes() == cache.to_bytes()
    tiny.backbone().read(tiny.ids(200, 4), cache)
    cache.drop(280, 284)
    assert cache.dropped == [(280, 284)]


def test_replaced_content_is_the_others_in_the_own_memory() -> None:
    """A cache takes over another's content bit for bit, in the memory that it has."""
    cache, other = _read(88), _read(31)
    memory = [tensor.data_ptr() for tensor in cache.tensors().values()]
    cache.replace_by(other)
    assert cache.to_bytes() == other.to_bytes()
    assert [tensor.data_ptr() for tensor in cache.tensors().values()] == memory


def _as_format(data: bytes, number: int) -> bytes:
    """A snapshot as an older or newer version would have written it."""
    tensors = load(data)
    about = json.loads(_metadata(data)["dysra_cache"])
    del about["checksum"]
    about["format"] = number
    if number == 1:
        del about["counters"]["dropped"]
    about["checksum"] = _checksum(about, tensors)
    return save(tensors, {"dysra_cache": json.dumps(about, sort_keys=True)})


def test_snapshot_of_format_1_is_migrated_and_a_newer_one_refused() -> None:
    """What an earlier version wrote is read on; what a later one wrote is named and left alone."""
    data = _read(88).to_bytes()
    old = RotatingCompressiveCache.from_bytes(_as_format(data, 1), tiny.backbone())
    assert old.to_bytes() == data and old.dropped == []
    with pytest.raises(ValueError, match="format 3; this version reads formats 1 to 2"):
        RotatingCompressiveCache.from_bytes(_as_format(data, 3), tiny.backbone())
