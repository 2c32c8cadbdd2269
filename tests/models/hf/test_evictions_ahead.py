"""While tokens are decoded into a cache the next eviction is under way, and nothing else is different."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from models.cache import full_layer
from models.cache.compressor import ComingEigenvectors
from models.cache.eviction import NextBlock
from models.cache.full_layer import RotatingLayer
from models.cache.rotating import RotatingCompressiveCache
from models.cache.svd import SvdCompressor
from models.hf import HfBackbone, HfConfig
from models.hf.session_decoding import SessionDecoding
from tests.models import tiny

FORMS: dict[str, dict[str, Any]] = {
    "latents": {},
    "within block, values of another rank": {"key_frame": "within_block", "value_rank": 6},
    "several blocks at once": {"summaries": "in_place", "ring": 48, "rank": 2, "latent_blocks": 4},
    "rounded, layers of their own": {"dtype": "bfloat16", "per_layer": {"3": {"ring": 32, "evict_block": 4}}},
    "barely a block": {"ring": 16, "read_block": 8},
}


@pytest.fixture
def backbone() -> Iterator[HfBackbone]:
    """The tiny backbone, which decodes in fixed shapes as a GPU's would, but not captured."""
    with tiny.in_fixed_shapes() as found:
        yield found


def _session(backbone: HfBackbone, tokens: int, seed: int, **budgets: Any) -> RotatingCompressiveCache:
    cache = backbone.new_cache(tiny.budgets(**budgets))
    backbone.read(tiny.ids(tokens, seed), cache)
    return cache


def _full(cache: RotatingCompressiveCache) -> list[RotatingLayer]:
    return [layer for layer in cache.stored if isinstance(layer, RotatingLayer)]


def _life(backbone: HfBackbone, budgets: dict[str, Any]) -> list[Any]:
    """Ids and bytes of unequal sessions: evictions, a withdrawal, another's content, a reset, snapshots between."""
    device = backbone.device
    caches = [_session(backbone, tokens, seed, **budgets) for tokens, seed in ((96, 15), (8, 16), (40, 17))]
    other = _session(backbone, 136, 23, **budgets)  # has let go as many blocks as the first then
    found: list[Any] = []

    def decode(decoding: SessionDecoding, count: int) -> None:
        found.append(decoding.run(torch.tensor([5, 6, 7], device=device), count).tolist())
        found.extend(cache.to_bytes() for cache in caches)

    with SessionDecoding(backbone, caches) as decoding:
        decode(decoding, 21)
        oldest = caches[0].tokens_computed - _full(caches[0])[0]._in_ring
        caches[0].drop(oldest + 1, oldest + 4)  # in the very block that leaves next
        decode(decoding, 21)
        caches[0].replace_by(other)
        decode(decoding, 21)
        caches[2].reset()
        decode(decoding, 37)
    restored = RotatingCompressiveCache.from_bytes(caches[0].to_bytes(), backbone)
    with SessionDecoding(backbone, [restored]) as decoding:
        found.append(decoding.run(torch.tensor([5], device=device), 30).tolist())
    found.append(restored.to_bytes())
    return found


@pytest.mark.parametrize("budgets", FORMS.values(), ids=FORMS.keys())
def test_ids_and_bytes_are_those_of_evictions_made_when_due(
    backbone: HfBackbone, monkeypatch: pytest.MonkeyPatch, budgets: dict[str, Any]
) -> None:
    """Bit for bit, at every moment of three unequal sessions side by side."""
    taken = _count_results(monkeypatch)
    ahead = _life(backbone, budgets)
    with_it = len(taken)
    monkeypatch.setattr(full_layer, "begun", lambda layer: None)
    when_due = _life(backbone, budgets)
    assert ahead == when_due
    # blocks that leave together are factored by coming eigenvectors in both ways
    assert with_it - (len(taken) - with_it) >= 20


def _count_results(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    taken: list[None] = []
    result = ComingEigenvectors.result

    def counted(self: ComingEigenvectors) -> torch.Tensor:
        taken.append(None)
        return result(self)

    monkeypatch.setattr(ComingEigenvectors, "result", counted)
    return taken


def test_tokens_read_one_by_one_have_it_too(backbone: HfBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fixed shapes: every eviction but the first finds its factors begun; the bytes are the same."""
    taken = _count_results(monkeypatch)
    cache = _session(backbone, 96, 14)
    twin, token = cache.fork(), torch.tensor([5])
    blocks = _full(cache)[0].blocks
    for _ in range(40):
        with torch.no_grad():
            backbone.model(**backbone._inputs(token, cache), logits_to_keep=1)
    evictions = sum(layer.blocks - blocks for layer in _full(cache))
    assert evictions >= 8 and evictions - 2 <= len(taken) <= evictions
    monkeypatch.setattr(full_layer, "begun", lambda layer: None)
    for _ in range(40):
        with torch.no_grad():
            backbone.model(**backbone._inputs(token, twin), logits_to_keep=1)
    assert cache.to_bytes() == twin.to_bytes()


def test_an_eviction_solves_nothing_when_it_falls_due(
    backbone: HfBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once one block is begun no factoring is left to decoding, and the cache has no byte more."""
    cache = _session(backbone, 96, 14)
    size = cache.nbytes

    def solves(self: SvdCompressor, keys: torch.Tensor, values: torch.Tensor) -> None:
        raise AssertionError("a block was factored while decoding waited")

    with SessionDecoding(backbone, [cache]) as decoding:
        decoding.run(torch.tensor([5]), 20)
        monkeypatch.setattr(SvdCompressor, "compress", solves)
        before = [layer.blocks for layer in _full(cache)]
        decoding.run(torch.tensor([5]), 40)
        assert all(layer.blocks >= was + 4 for layer, was in zip(_full(cache), before, strict=True))
        assert all(isinstance(layer._leaving, NextBlock) for layer in _full(cache))
        assert cache.nbytes == size
        cache.drop(cache.tokens_computed - 2, cache.tokens_computed)
        assert all(layer._leaving is None for layer in _full(cache))
        decoding.run(torch.tensor([5]), 1)  # begun anew, without waiting for another eviction
        assert all(isinstance(layer._leaving, NextBlock) for layer in _full(cache))


def test_closing_gives_up_what_was_begun(backbone: HfBackbone) -> None:
    """Nothing stays with the session, no matrix that waits is solved, and no thread is added a session."""
    caches = [_session(backbone, 96, seed) for seed in range(3)]
    with SessionDecoding(backbone, caches) as decoding:
        decoding.run(torch.tensor([5, 6, 7]), 20)
        begun = [layer._leaving for cache in caches for layer in _full(cache)]
        threads = _solvers()
    assert len(begun) == 6
    assert all(layer._leaving is None for cache in caches for layer in _full(cache))
    assert all(part.done() or part.running() for one in begun if one for part in one.vectors._parts)
    with SessionDecoding(backbone, caches) as decoding:
        decoding.run(torch.tensor([5, 6, 7]), 20)
        assert _solvers() == threads


def _solvers() -> set[str]:
    """The threads that factor; what else runs in this process begins and ends by itself."""
    return {each.name for each in threading.enumerate() if each.name.startswith("eigenvectors")}


@pytest.mark.parametrize("budgets", [{"heavy": 8}, {"compressor": "drop"}, {"latent_blocks": 0}], ids=str)
def test_what_depends_on_later_tokens_is_not_begun(backbone: HfBackbone, budgets: dict[str, Any]) -> None:
    """Heavy hitters are ranked by the ring as it is when they leave; without latents there is nothing to do."""
    cache = _session(backbone, 96, 14, **budgets)
    with SessionDecoding(backbone, [cache]) as decoding:
        decoding.run(torch.tensor([5]), 20)
        assert all(layer._leaving is None for layer in _full(cache))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_eviction_on_a_gpu_waits_for_nothing_but_the_host(tmp_path: Any) -> None:
    """The device is not waited for, neither by taking factors over nor by summing what was lost; bits are equal."""
    own = HfBackbone.load(HfConfig(model=str(tiny.save(tmp_path / "tiny")), device="cuda", prompt_block=32))
    with pytest.MonkeyPatch.context() as patch:
        ahead = _life(own, {})
        patch.setattr(full_layer, "begun", lambda layer: None)
        assert _life(own, {}) == ahead
    layer = _full(_session(own, 96, 14))[0]
    pair = torch.ones(2, 2, 1, 16, device="cuda")
    blocks = layer.blocks
    try:
        for count in range(40):
            torch.cuda.set_sync_debug_mode("error" if count >= 16 else "default")
            layer.make_room(1)
            layer.append(*pair)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert layer.blocks >= blocks + 4
