"""Summaries in the raw pairs' place: which places are taken, what is held, and that no byte more is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cache import CacheConfig
from models.cache.full_layer import RotatingLayer
from models.cache.places import OwnPlaces, SharedPlaces, raw_tokens
from tests.models import tiny
from tests.models.cache.reference import ReferenceHead

DIM = 16


def _config(**changes: Any) -> CacheConfig:
    fields: dict[str, Any] = {"summaries": "in_place", "ring": 48, "rank": 2, "latent_blocks": 4}
    return tiny.budgets(**{**fields, **changes})


def _layer(config: CacheConfig) -> RotatingLayer:
    return RotatingLayer(tiny.backbone().specs[1], config, torch.float32)


def _grow(layer: RotatingLayer, pairs: torch.Tensor) -> None:
    """Feed `pairs [2, H, n, d]` in steps of the layer's `read_block`."""
    size = layer.config.read_block
    for start in range(0, pairs.shape[2], size):
        keys, values = pairs[:, :, start : start + size]
        layer.make_room(keys.shape[1])
        layer.append(keys, values)


@st.composite
def _shared(draw: st.DrawFn) -> CacheConfig:
    rank = draw(st.integers(1, 2))
    evict = draw(st.integers(6, 8))
    each = evict * DIM // (rank * (evict + DIM))
    taken = draw(st.integers(1, 3))
    read = draw(st.integers(2, 9))
    spare = -(-read // evict) + each + draw(st.integers(0, 2))
    blocks = max(taken * each, taken + spare)
    return _config(
        rank=rank, evict_block=evict, read_block=read, ring=blocks * evict, latent_blocks=taken * each
    )


@settings(deadline=None, max_examples=60)
@given(config=_shared())
def test_no_two_share_a_place(config: CacheConfig) -> None:
    """At every moment the raw blocks held, one that is being filled among them, and the summaries stand apart."""
    places = SharedPlaces(config, DIM)
    evicted = 0
    for end in range(1, 6 * places.blocks):  # one more raw block
        while end - evicted > places.capacity(evicted) // places.block:
            evicted += places.step(evicted)
        raw = places.of(torch.arange(evicted, end)).tolist()
        summaries = -(-min(evicted, config.latent_blocks) // places.each)
        taken = [places.each * at for at in range(summaries)]
        assert len({*raw, *taken}) == len(raw) + len(taken)
        assert all(0 <= place < places.blocks for place in (*raw, *taken))


@settings(deadline=None, max_examples=40)
@given(config=_shared(), steps=st.integers(0, 30), seed=st.integers(0, 1000))
def test_layer_holds_what_the_restatement_holds(config: CacheConfig, steps: int, seed: int) -> None:
    """The same tokens, pairs and places as plain lists; pairs are of so low a rank that nothing is lost."""
    torch.manual_seed(seed)
    layer = _layer(config)
    heads = [ReferenceHead(layer.spec, config) for _ in range(2)]
    within = torch.randn(2, 2, config.rank, DIM)
    pairs = torch.randn(2, 2, steps * config.read_block, config.rank) @ within
    _grow(layer, pairs)
    for start in range(0, pairs.shape[2], config.read_block):
        for head, keys, values in zip(heads, *pairs[:, :, start : start + config.read_block], strict=True):
            head.step(keys, values)
    keys, values, places, next_place = layer.visible()
    for at, head in enumerate(heads):
        held = dict(head.held().values())
        assert sorted(places[at].tolist()) == sorted(held)
        assert next_place == (head.held()[head.seen - 1][0] + 1 if head.seen else 0)
        for i, place in enumerate(places[at].tolist()):
            torch.testing.assert_close(keys[at, i], held[place].key, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(values[at, i], held[place].value, atol=1e-3, rtol=1e-3)


def test_young_streams_hold_more_raw_pairs_at_the_same_bytes() -> None:
    """Beside a ring of its own for 4 summaries: equal bytes of pairs, more raw ones early, the same in the end."""
    shared, own = _layer(_config()), _layer(tiny.budgets(ring=32, rank=2, latent_blocks=4))
    pairs = torch.randn(2, 2, 400, DIM)
    of_pairs = [
        sum(
            t.nbytes
            for name, t in layer.tensors().items()
            if name.startswith(("ring", "latents.key", "latents.value"))
        )
        for layer in (shared, own)
    ]
    # a place holds two summaries of 96 numbers in 128
    assert of_pairs[0] == 2 * 2 * 48 * DIM * 4 and of_pairs[1] == of_pairs[0] - 2 * 2 * 2 * (128 - 96) * 4
    _grow(shared, pairs[:, :, :48])
    _grow(own, pairs[:, :, :48])
    assert (shared.blocks, own.blocks) == (0, 2)
    _grow(shared, pairs[:, :, 48:])
    _grow(own, pairs[:, :, 48:])
    assert shared.blocks == own.blocks > 40 and raw_tokens(shared.config, DIM) == 32
    for mine, wanted in zip(shared.visible(), own.visible(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


def test_own_places_are_one_long_ring() -> None:
    """Whatever has left."""
    places = OwnPlaces(tiny.budgets())
    assert {places.capacity(n) for n in (0, 1, 50)} == {24} and places.step(3) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": 4}, "a summary takes 96 numbers of the 128"),
        ({"latent_blocks": 3}, "latent_blocks is 3; 2 summaries fit"),
        ({"ring": 32}, r"16 raw pairs are left, and read_block 8 \+ 2 blocks of 8 = 24"),
        ({"ring": 40, "latent_blocks": 6}, "at least latent_blocks x evict_block = 48"),
        ({"ring": 47}, "ring is 47 .* multiple of evict_block 8"),
        ({"compressor": "drop"}, "in_place with compressor drop"),
        ({"latent_blocks": 0}, "in_place with compressor svd and latent_blocks 0"),
        ({"summaries": "beside"}, "summaries is 'beside'; allowed: own, in_place"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_budgets_that_cannot_share_name_both_sides(changes: dict[str, Any], says: str) -> None:
    """What was given and what is needed, when the configuration or the layer is made."""
    with pytest.raises(ValueError, match=says):
        _layer(_config(**changes))
