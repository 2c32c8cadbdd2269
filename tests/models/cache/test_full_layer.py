"""The rotating layer against the plain restatement in reference.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cache import CacheConfig
from models.cache.full_layer import RotatingLayer
from tests.models import tiny
from tests.models.cache.reference import ReferenceHead


@st.composite
def _configs(draw: st.DrawFn) -> CacheConfig:
    evict = draw(st.integers(3, 8))
    read = draw(st.integers(2, 9))
    heavy_per_block = draw(st.integers(1, evict - 1))
    heavy = draw(st.sampled_from([0, heavy_per_block, 2 * heavy_per_block + 1, 20]))
    heavy = heavy if heavy >= heavy_per_block else 0
    return CacheConfig(
        sinks=draw(st.integers(0, read)),
        ring=read + evict + draw(st.integers(0, 15)),
        evict_block=evict,
        rank=evict - (heavy_per_block if heavy else 0),  # lossless: the pairs can be compared
        latent_blocks=draw(st.integers(0, 4)),
        compressor=draw(st.sampled_from(["svd", "drop"])),
        heavy=heavy,
        heavy_per_block=heavy_per_block,
        heavy_keep=draw(st.sampled_from(["weakest", "oldest"])),
        read_block=read,
    )


@settings(deadline=None, max_examples=60)
@given(config=_configs(), steps=st.integers(0, 18), seed=st.integers(0, 1000))
def test_layer_holds_what_the_restatement_holds(config: CacheConfig, steps: int, seed: int) -> None:
    """Sinks, heavy hitters, latents and ring: the same tokens, pairs and places, for every KV head."""
    torch.manual_seed(seed)
    spec = tiny.backbone().specs[1]
    layer = RotatingLayer(spec, config, torch.float32)
    heads = [ReferenceHead(spec, config) for _ in range(2)]
    size = layer.tensors()
    memory = {name: tensor.data_ptr() for name, tensor in size.items()}
    for _ in range(steps):
        keys, values = torch.randn(2, 2, config.read_block, 16)
        layer.make_room(config.read_block)
        layer.append(keys, values)
        for head, k, v in zip(heads, keys, values, strict=True):
            head.step(k, v)
    found_keys, found_values, places, next_place = layer.visible()
    for i, head in enumerate(heads):
        held = head.held()
        expected = dict(held.values())
        assert len(expected) == len(held), "two tokens on one place"
        assert sorted(places[i].tolist()) == sorted(expected)
        assert next_place == (max(held[head.seen - 1][0], 0) + 1 if head.seen else 0)
        for at, place in enumerate(places[i].tolist()):
            torch.testing.assert_close(found_keys[i, at], expected[place].key, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found_values[i, at], expected[place].value, atol=1e-4, rtol=1e-4)
    assert memory == {name: tensor.data_ptr() for name, tensor in layer.tensors().items()}


def test_places_never_exceed_the_budgets() -> None:
    """However long the stream, no place is beyond what the cache can hold."""
    config = tiny.budgets(heavy=6)
    layer = RotatingLayer(tiny.backbone().specs[1], config, torch.float32)
    bound = config.sinks + config.heavy + config.latent_blocks * config.evict_block + config.ring
    for _ in range(60):
        layer.make_room(8)
        layer.append(*torch.randn(2, 2, 8, 16))
        places, next_place = layer.visible()[2:]
        assert int(places.min()) >= 0 and int(places.max()) < next_place <= bound


@pytest.mark.parametrize("scorer", ["key_difference", "key_norm", "attention_mass"])
def test_heavy_hitters_are_the_best_scored_of_their_block(scorer: str) -> None:
    """A key that a score must love stays raw when its block leaves the ring."""
    spec = tiny.backbone().specs[1]
    config = tiny.budgets(heavy=4, heavy_scorer=scorer, compressor="drop")
    layer = RotatingLayer(spec, config, torch.float32)
    base = torch.ones(16)
    slow = torch.tensor([0.0] * 7 + [1.0]).repeat(2)  # the pair that turns least
    keys = base + 0.05 * torch.randn(2, 40, 16)
    special = 5  # in the first block to leave: sinks are 0 and 1
    keys[:, special] = {"key_difference": -base, "key_norm": 0.1 * base, "attention_mass": base + 20 * slow}[
        scorer
    ]
    for start in range(0, 40, 8):
        layer.make_room(8)
        layer.append(keys[:, start : start + 8], torch.randn(2, 8, 16))
        layer.observe(base + 0.05 * torch.randn(4, 8, 16))
    assert layer.blocks >= 1
    held = layer.heavy.positions[:, :2]  # type: ignore[union-attr]
    assert all(special in head.tolist() for head in held)


def test_statistics_add_up_over_blocks() -> None:
    """Lost shares are lost energy over energy of all evicted blocks, keys and values apart."""
    layer = RotatingLayer(tiny.backbone().specs[1], tiny.budgets(rank=2), torch.float32)
    blocks = []
    for _ in range(8):
        keys, values = torch.randn(2, 2, 8, 16)
        layer.make_room(8)
        layer.append(keys, values)
        blocks.append(keys)
    from models.cache.full_layer import stats_of

    stats = stats_of(layer)
    stream = torch.cat(blocks, 1)[:, 2:]
    evicted = stream[:, : layer.blocks * 8].reshape(2, layer.blocks, 8, 16)
    spectrum = torch.linalg.svdvals(evicted).square()
    assert stats["evicted_blocks"] == layer.blocks > 2
    assert stats["key_lost_share"] == pytest.approx(float(spectrum[..., 2:].sum() / spectrum.sum()), rel=1e-4)
    assert 0 < stats["value_lost_share"] < 1 and stats["value_worst_row"] > 0
