"""Our own cache among the compared methods: its bytes, its ranker, and what enters it at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.cache.learned import LearnedWeights
from models.cache.ranker import LayerRanker, Ranker, base_identity, context_features
from models.compared import method, ours
from models.compared.base import budget_of
from models.compared.trace import read_exactly
from models.hf.backbone import LEARNED_TYPES
from tests.models import tiny
from tests.models.compared.tiny_context import ready, trace


def test_ours_is_the_rotating_cache_of_its_derived_budgets() -> None:
    """The bytes of the layers are those that the cache allocates; streaming holds as few."""
    backbone, ids = tiny.backbone(), [1, *tiny.ids(249)]
    long = read_exactly(backbone, ids)
    for name in ("ours_latents", "ours_question_bank"):
        for keep in (0.5, 0.25):
            memory = ready(name).memory(long, budget_of(long, keep))
            assert 0.5 * keep < memory.nbytes / long.full_bytes <= keep
            assert sum(t.nbytes for t in memory.held[0].layer.tensors().values()) == memory.held[0].nbytes  # type: ignore[attr-defined]
        streaming = dataclasses.replace(ready(name), streaming=True).read(backbone, ids, 0.5)
        parts = streaming.nbytes_by_part()
        assert streaming.nbytes - parts["sliding"] - parts["pending"] <= 0.5 * long.full_bytes
        assert streaming.tokens_seen == 250


def tiny_ranker() -> Ranker:
    """Random networks for the tiny model."""
    torch.manual_seed(5)
    layers = {layer.spec.index: LayerRanker(2, 2 * 16 + 7).eval() for layer in trace().layers}
    for layer in layers.values():
        layer.requires_grad_(False)
    return Ranker(layers, base_identity(tiny.backbone().identity), {})


def test_the_learned_ranker_keeps_what_its_network_scores_highest() -> None:
    """Scores of the networks for the context's features, as they are."""
    known = tiny_ranker()
    layers = known.layers
    ready = method("ranker", known=known).prepare(tiny.backbone())
    for layer in trace().layers:
        given = context_features(layer.spec, layer.keys, layer.values)
        with torch.no_grad():
            torch.testing.assert_close(ready.score(layer), layers[layer.spec.index](given))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_our_ring_takes_its_share_of_the_bytes(share: float) -> None:
    """Of the pairs that the budget holds; the rest is for hitters or latents."""
    spec = trace().layers[0].spec
    made = method("ours_latents", raw_share=share)
    pair = 2 * spec.num_kv_heads * spec.head_dim * 4
    config = made.config(spec, 10_000, 2_000 * pair + 48)
    assert config.ring == int(2_000 * share)


def tiny_codes(kind: str) -> LearnedWeights:
    """A learned compressor of the tiny model as it begins, but for directions of its own."""
    torch.manual_seed(6)
    layer_type = LEARNED_TYPES[kind].layer_type
    layers = {}
    for layer in trace().layers:
        layers[layer.spec.index] = layer_type(2, layer.spec.head_dim, 12)
        layers[layer.spec.index].start(torch.randn(2, 60, 16), torch.randn(2, 60, 16))  # type: ignore[operator]
    return LearnedWeights(kind, layers, base_identity(tiny.backbone().identity), {})


AT_ONCE = [
    "ours_latents",
    "ours_weighted",
    "ours_projection",
    "ours_autoencoder",
    "ours_question_bank",
    "ours_ranker",
]


@pytest.mark.parametrize("name", AT_ONCE)
@pytest.mark.parametrize("keep", [0.7, 0.4, 0.2])
def test_our_cache_filled_at_once_is_the_one_read_step_by_step(
    name: str, keep: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, the same pairs at the same places, the same latents; heavy hitters in any slot."""
    backbone = tiny.backbone()
    given = read_exactly(backbone, [1, *tiny.ids(601)])
    maker = method(name)
    if name == "ours_ranker":
        maker = dataclasses.replace(maker, known=tiny_ranker())
    if maker.compressor in LEARNED_TYPES:
        maker = dataclasses.replace(maker, learned=tiny_codes(maker.compressor))
    maker = maker.prepare(backbone)
    fast = maker.memory(given, int(given.full_bytes * keep))
    monkeypatch.setattr(ours, "can_fill", lambda layer: False)
    slow = maker.memory(given, int(given.full_bytes * keep))
    for quick, plain in zip(fast.held, slow.held, strict=True):
        assert quick.nbytes == plain.nbytes and plain.layer.blocks > 3
        assert quick.layer.counters() == plain.layer.counters()
        ways = [layer.layer.visible() for layer in (quick, plain)]
        orders = [places.argsort(dim=1) for _, _, places, _ in ways]
        for at in (0, 1):
            found, wanted = (
                way[at].gather(1, order[..., None].expand_as(way[at]))
                for way, order in zip(ways, orders, strict=True)
            )
            torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
        assert ways[0][3] == ways[1][3]
        torch.testing.assert_close(ways[0][2].sort(dim=1).values, ways[1][2].sort(dim=1).values)
