"""Decoding over latents as factors gives what decoding over unpacked ones gives; what cannot be so is said once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor

from models.cache.factors import factors_of
from models.cache.full_layer import RotatingLayer
from models.cache.rotating import RotatingCompressiveCache
from models.hf import HfBackbone, HfConfig, static_memory
from models.hf.captured import CapturedSteps
from models.hf.chunk_kv import encode_chunk, view_with_chunks
from models.hf.session_decoding import SessionDecoding
from models.hf.static_factors import FactoredKind, not_covered, shapes_of
from models.rotary import RotaryTable
from tests.models import tiny

BUDGETS: dict[str, dict[str, Any]] = {
    "own": {},
    "in place": {"summaries": "in_place", "ring": 48, "rank": 2, "latent_blocks": 4},
    "heavy": {"heavy": 8},
    "within block": {"key_frame": "within_block"},
    "per layer": {"per_layer": {"3": {"ring": 32, "evict_block": 4, "rank": 3, "latent_blocks": 5}}},
    "one layer without": {"value_rank": 6, "per_layer": {"3": {"latent_blocks": 0}}},
}
COUNT = 34  # four blocks leave a full ring


@pytest.fixture
def backbone() -> Iterator[HfBackbone]:
    """The tiny backbone, which decodes in fixed shapes as a GPU's would, but not captured."""
    found = tiny.backbone()
    before = found.steps
    found.steps = CapturedSteps(found, enabled=True, capture=False, fused_latents=True)
    yield found
    found.steps = before


def _session(backbone: HfBackbone, tokens: int, seed: int, **budgets: object) -> RotatingCompressiveCache:
    cache = backbone.new_cache(tiny.budgets(**budgets))
    backbone.read(tiny.ids(tokens, seed), cache)
    assert not cache.pending
    return cache


def _told(
    backbone: HfBackbone, caches: list[RotatingCompressiveCache], told: Tensor, *, fused: bool
) -> tuple[Tensor, list[RotatingCompressiveCache]]:
    """The logits after each of `told [B, n]`, and the caches then; `fused` must be what happens."""
    backbone.steps.fused_latents = fused
    forks = [cache.fork() for cache in caches]
    with SessionDecoding(backbone, forks) as decoding:
        assert decoding.fused == fused
        return decoding.logits(told), forks


def _unequal(backbone: HfBackbone, **budgets: object) -> tuple[list[RotatingCompressiveCache], Tensor]:
    """Three sessions, one of them without any latents yet, and what they are told."""
    caches = [_session(backbone, tokens, seed, **budgets) for tokens, seed in ((96, 15), (8, 16), (40, 17))]
    return caches, torch.tensor([tiny.ids(COUNT, seed) for seed in (5, 6, 7)])


@lru_cache
def _unpacked(
    name: str,
) -> tuple[list[RotatingCompressiveCache], Tensor, Tensor, list[RotatingCompressiveCache]]:
    """Unequal sessions, what they are told, and the logits and caches with latents unpacked: once for all tests."""
    caches, told = _unequal(tiny.backbone(), **BUDGETS[name])
    return caches, told, *_told(tiny.backbone(), caches, told, fused=False)


@pytest.mark.parametrize("name", BUDGETS)
def test_factors_give_the_unpacked_ones_logits(backbone: HfBackbone, name: str) -> None:
    """Of unequal sessions side by side, over four evictions and more; the caches then hold the same."""
    caches, told, wanted, plain = _unpacked(name)
    found, forks = _told(backbone, caches, told, fused=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert forks[0].stored[1].blocks >= caches[0].stored[1].blocks + 4
    for cache, fork, twin in zip(caches, forks, plain, strict=True):
        assert fork.counters() == twin.counters()
        if not cache.config.heavy:  # tokens that repeat tie: which of them stays is not told by scores
            for mine, other in zip(fork.stored, twin.stored, strict=True):
                for part, wanted_part in zip(mine.visible(), other.visible(), strict=True):
                    torch.testing.assert_close(part, wanted_part, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["own", "in place"])
@pytest.mark.parametrize("amiss", ["blocks", "tokens", "places"])
def test_factors_amiss_are_seen(
    backbone: HfBackbone, monkeypatch: pytest.MonkeyPatch, name: str, amiss: str
) -> None:
    """Blocks in the wrong order, tokens of a block in the wrong order, and latents one place farther."""

    def wrong(layer: RotatingLayer) -> Any:
        held = factors_of(layer)
        assert held is not None
        if amiss == "places":
            return replace(held, place=held.place + 1)
        at = 1 if amiss == "blocks" else 2
        rows, values = held.key_rows.flip(at), held.value_rows.flip(at)
        bases = held.key_basis, held.value_basis
        if amiss == "blocks":
            bases = held.key_basis.flip(1), held.value_basis.flip(1)
        return replace(held, key_rows=rows, value_rows=values, key_basis=bases[0], value_basis=bases[1])

    caches, told, wanted, _ = _unpacked(name)
    monkeypatch.setattr(static_memory, "factors_of", wrong)
    found, _ = _told(backbone, caches, told, fused=True)
    assert float((found - wanted).abs().max()) > 1e-2


@pytest.mark.parametrize("name", BUDGETS)
def test_answers_are_the_unpacked_ways(backbone: HfBackbone, name: str) -> None:
    """Of a session's view, while the cache reads on, and where tokens were withdrawn; without a session too."""
    cache = _session(backbone, 96, 4, **BUDGETS[name])
    hidden = cache.fork()
    hidden.drop(60, 85)
    told = tiny.ids(20, 6)
    for each in (cache, hidden, None):
        after = []
        for fused in (False, True):
            backbone.steps.fused_latents = fused
            source = None if each is None else each.fork()
            view, prompt = backbone._open(tiny.ids(9, 3), source, len(told))
            backbone._forward(prompt, view, 0)
            if source is not None:  # the view is as the cache was
                backbone.read(tiny.ids(32, 8), source)
            with backbone.steps.lent(view, len(told)) as step:
                assert step is not None
                kinds = {type(kind) for kind in step.memory.kinds}
                assert (FactoredKind in kinds) == (fused and each is not None)
                after.append(torch.cat([step.after(token).clone() for token in told]))
        torch.testing.assert_close(after[1], after[0], rtol=0, atol=1e-4)


def test_chosen_chunks_stand_behind_factors(backbone: HfBackbone) -> None:
    """Chunks put behind a session's view, then a question: every token's logits as with latents unpacked."""
    cache, told, after = _session(backbone, 96, 4), tiny.ids(20, 6), []
    chunks = [encode_chunk(backbone, tiny.ids(count, count)) for count in (5, 9)]
    for fused in (False, True):
        backbone.steps.fused_latents = fused
        view = view_with_chunks(backbone, cache, chunks, 40)
        backbone._forward(tiny.ids(7, 3), view, 0)
        with backbone.steps.lent(view, len(told)) as step:
            assert step is not None and any(isinstance(k, FactoredKind) for k in step.memory.kinds) == fused
            after.append(torch.cat([step.after(token).clone() for token in told]))
    torch.testing.assert_close(after[1], after[0], rtol=0, atol=1e-4)


def test_a_step_forgets_who_it_served(backbone: HfBackbone) -> None:
    """A young session's logits from the step that served an old one, whose latents are more."""
    old, young = _session(backbone, 96, 4), _session(backbone, 32, 3)
    told = torch.tensor([tiny.ids(5, 6)])
    wanted, _ = _told(backbone, [young], told, fused=False)
    _told(backbone, [old], told, fused=True)
    found, _ = _told(backbone, [young], told, fused=True)
    assert sum(key.shapes is not None for key, _ in backbone.steps._free) == 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_latents_take_no_slots(backbone: HfBackbone) -> None:
    """Sixteen blocks of 64 tokens: an answer's and a session's buffers are smaller than unpacked ones."""
    budgets = {"ring": 128, "evict_block": 64, "latent_blocks": 16, "read_block": 64}
    cache = _session(backbone, 64 * 20, 2, **budgets)
    view, _ = backbone._open(tiny.ids(4, 3), cache, 8)
    found = []
    for fused in (True, False):
        backbone.steps.fused_latents = fused
        with SessionDecoding(backbone, [cache]) as decoding, backbone.steps.lent(view, 8) as step:
            assert step is not None
            full = [memory.kinds[1].slots for memory in (decoding.step.memory, step.memory)]
            found.append((full, decoding.step.memory.nbytes))
    assert found[0][0] == [256, 256] and found[1][0] == [2048, 2048]
    assert found[0][1] < found[1][1] / 2


def test_withdrawing_in_the_middle_is_refused_where_a_block_has_one_place(backbone: HfBackbone) -> None:
    """A block cannot be hidden in part then; a decoding begun after it can."""
    cache = _session(backbone, 96, 4, **BUDGETS["within block"])
    decoding = SessionDecoding(backbone, [cache])
    decoding.run(torch.tensor([5]), 3)
    cache.drop(80, 85)
    with pytest.raises(ValueError, match="withdrawn since the memory was made"):
        decoding.run(torch.tensor([5]), 3)
    decoding.close()
    told = torch.tensor([tiny.ids(20, 6)])
    wanted, _ = _told(backbone, [cache], told, fused=False)
    found, _ = _told(backbone, [cache], told, fused=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_what_the_kernel_cannot_read_is_unpacked(
    backbone: HfBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is logged once, and ids are those without the switch."""
    cache = _session(backbone, 96, 4)
    ids = []
    monkeypatch.setattr("models.hf.captured.not_covered", lambda *_: "heads are 16 wide; allowed: 32")
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            with SessionDecoding(backbone, [cache.fork()]) as decoding:
                assert not decoding.fused
                ids.append(decoding.run(torch.tensor([5]), 20).tolist())
            ids.append([list(backbone.generate(tiny.ids(9, 6), cache, 20))])
    assert [(log["event"], log["reason"]) for log in logs if log["log_level"] == "warning"] == [
        ("latents_not_fused", "heads are 16 wide; allowed: 32")
    ]
    assert ids[:2] == ids[2:]


def test_a_kernel_that_fails_is_not_tried_again(
    backbone: HfBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises (Triton has errors of its own), while the step is made."""

    class OutOfResourcesError(Exception):
        pass

    def fails(self: FactoredKind, *_: Any) -> None:
        raise OutOfResourcesError("out of resource: shared memory")

    monkeypatch.setattr(FactoredKind, "__init__", fails)
    cache = _session(backbone, 96, 4)
    with structlog.testing.capture_logs() as logs:
        found = list(backbone.generate(tiny.ids(9, 6), cache, 20))
        with SessionDecoding(backbone, [cache.fork()]) as decoding:
            assert not decoding.fused
    assert [log["event"] for log in logs] == ["latents_not_fused"]
    assert backbone.steps.enabled and "shared memory" in logs[0]["reason"]
    assert list(backbone.generate(tiny.ids(9, 6), cache, 20)) == found


def test_what_is_covered() -> None:
    """Each limit names what was found and what is allowed; on a CPU the plain form takes all widths and ranks."""
    specs = tiny.backbone().specs
    shapes = shapes_of(tiny.backbone().new_cache(tiny.budgets()).stored)
    assert [index for index, _ in shapes] == [1, 3]
    assert shapes[0][1] == (3, 8, 4, 4, 8)
    assert not_covered(specs, shapes, None) is None
    assert "softcap 50.0" in str(not_covered(specs, shapes, 50.0))

    def on_gpu(**changes: Any) -> str:
        found = [replace(spec, device=torch.device("cuda"), **{"head_dim": 32, **changes}) for spec in specs]
        table = RotaryTable(_angles(found[1].head_dim // 2), device=torch.device("cpu"))
        return str(not_covered([replace(spec, rotary=table) for spec in found], wide, None))

    wide = shapes
    assert on_gpu() == "None"
    assert "heads are 16 wide; allowed: 32, 64, 128, 256" in on_gpu(head_dim=16)
    assert "numbers are torch.float64" in on_gpu(dtype=torch.float64)
    assert "200 heads share a key head; allowed: up to 128" in on_gpu(num_heads=400)
    wide = ((1, shapes[0][1]._replace(key_rank=200)),)
    assert "latents have rank 200; allowed: up to 128" in on_gpu()
    part = RotaryTable(_angles(6), device=torch.device("cpu"))
    found = not_covered([replace(spec, rotary=part) for spec in specs], shapes, None)
    assert "12 of 16 dimensions of a head are turned" in str(found)


def _angles(f: int) -> Any:
    def angles(places: Tensor) -> tuple[Tensor, Tensor]:
        each = places[..., None] / 7.0 ** torch.arange(f)
        return torch.cat((each, each), -1).cos(), torch.cat((each, each), -1).sin()

    return angles


def test_the_switch_is_checked() -> None:
    """Off unless asked for; a text is no truth value."""
    assert not HfConfig().fused_latents
    with pytest.raises(ValueError, match="fused_latents is 'no'; allowed: true, false"):
        HfConfig(fused_latents="no")  # type: ignore[arg-type]


def test_the_switch_reaches_the_steps(tmp_path: Path) -> None:
    """From the configuration to a session's decoding, on a CPU by the kernel's plain form."""
    folder = tiny.save(tmp_path / "tiny")
    own = HfBackbone.load(HfConfig(model=str(folder), device="cpu", fused_latents=True))
    with SessionDecoding(own, [_session(own, 96, 4)]) as decoding:
        assert decoding.fused and any(isinstance(kind, FactoredKind) for kind in decoding.step.memory.kinds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", BUDGETS)
def test_captured_factors_are_the_unpacked_way_on_a_gpu(tmp_path: Path, name: str) -> None:
    """As on the CPU, by the kernel in a CUDA graph: sessions side by side over evictions, and an answer."""
    wide = tiny.config(head_dim=32, query_pre_attn_scalar=32)
    folder = tiny.save(tmp_path / "tiny", model_config=wide)
    own = HfBackbone.load(HfConfig(model=str(folder), device="cuda", prompt_block=32, fused_latents=True))
    budgets = dict(BUDGETS[name])
    if name == "in place":
        budgets["latent_blocks"] = 3  # as many fit into a block's place at this width
    caches, told = _unequal(own, **budgets)
    for rows in (3, 1):  # alone, a session's key heads have one place between them
        wanted, _ = _told(own, caches[:rows], told[:rows], fused=False)
        found, _ = _told(own, caches[:rows], told[:rows], fused=True)
        assert own.steps.enabled and own.steps.fused_latents
        # tokens that repeat tie as heavy hitters, and which of them stays is not told by scores
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-3 if name == "heavy" else 2e-4)
    answers = []
    for fused in (True, False):
        own.steps.fused_latents = fused
        answers.append(list(own.generate(tiny.ids(9, 6), caches[0], 30)))
    assert answers[0] == answers[1]
