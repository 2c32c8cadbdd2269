"""Decoding in fixed shapes gives what decoding in growing ones gives: from views, into caches, over evictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import torch
from torch import Tensor

from models.cache.full_layer import RotatingLayer
from models.cache.rotating import RotatingCompressiveCache
from models.hf import HfBackbone, HfConfig
from models.hf.captured import MOST_CHANGES, CapturedSteps, DecodeStep
from models.hf.norms import fuse, unfuse
from models.hf.session_decoding import SessionDecoding
from models.hf.static_memory import StaticKind, StaticMemory, rounded, slots_of
from models.rotary import RotaryTable
from tests.models import tiny


@pytest.fixture
def backbone() -> Iterator[HfBackbone]:
    """The tiny backbone, which decodes in fixed shapes as a GPU's would, but not captured."""
    with tiny.in_fixed_shapes() as found:
        yield found


def _plainly(backbone: HfBackbone) -> None:
    backbone.steps.enabled = False


def _read_one_by_one(
    backbone: HfBackbone, cache: RotatingCompressiveCache, token: int, count: int
) -> tuple[list[int], Tensor]:
    """Greedy ids and all logits, each token read through the cache's own update."""
    found, logits = [], []
    for _ in range(count):
        with torch.no_grad():
            ids = torch.tensor([token], device=backbone.device)
            out = backbone.model(**backbone._inputs(ids, cache), logits_to_keep=1).logits[0, -1]
        token = int(out.argmax())
        found.append(token)
        logits.append(out)
    return found, torch.stack(logits)


def _session(backbone: HfBackbone, tokens: int, seed: int, **budgets: object) -> RotatingCompressiveCache:
    cache = backbone.new_cache(tiny.budgets(**budgets))
    backbone.read(tiny.ids(tokens, seed), cache)
    assert not cache.pending
    return cache


def test_static_step_gives_the_growing_views_logits(backbone: HfBackbone) -> None:
    """To 1e-4, token by token, with the window passing over the prompt and latents in the cache."""
    cache = _session(backbone, 96, 1)
    ids, told = tiny.ids(20, 2), tiny.ids(24, 3)
    view, prompt = backbone._open(ids, cache, len(told))
    backbone._forward(prompt, view, 0)
    memory = StaticMemory(backbone.specs, 1, slots_of(view.views, len(told)), 256)
    step = DecodeStep(backbone, memory, capture=False)
    memory.lay_view(0, view)
    for token in told:
        wanted = backbone._forward([token], view, 1)
        assert wanted is not None
        torch.testing.assert_close(step.after(token), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_answers_are_the_plain_ways(backbone: HfBackbone, sampled: bool) -> None:
    """With and without a session, twice from the same step, also where an answer before was abandoned."""
    from models.backbone import Sampling

    cache = _session(backbone, 96, 4)
    sampling = Sampling(temperature=1.0, seed=5) if sampled else None
    asked = [(tiny.ids(9, 6), cache), (tiny.ids(40, 7), None), (tiny.ids(9, 6), cache)]
    abandoned = backbone.generate(tiny.ids(9, 8), cache, 30)
    next(abandoned)
    abandoned.close()
    found = [list(backbone.generate(ids, of, 30, sampling=sampling)) for ids, of in asked]
    assert backbone.steps._free
    _plainly(backbone)
    assert [list(backbone.generate(ids, of, 30, sampling=sampling)) for ids, of in asked] == found


def test_two_answers_at_once_do_not_share_a_step(backbone: HfBackbone) -> None:
    """Their tokens, taken in turn, are those of each alone."""
    prompts = [tiny.ids(12, 10), tiny.ids(12, 11)]
    alone = [list(backbone.generate(ids, None, 20)) for ids in prompts]
    running = [backbone.generate(ids, None, 20) for ids in prompts]
    found: list[list[int]] = [[], []]
    for _ in range(20):
        for at, one in enumerate(running):
            found[at] += [token for token in [next(one, None)] if token is not None]
    assert found == alone


def test_withdrawn_tokens_are_not_looked_at(backbone: HfBackbone) -> None:
    """Neither raw nor as latents: the plain way's logits after a drop, and other ones than before it."""
    cache = _session(backbone, 96, 12)
    before = backbone.logits(tiny.ids(5, 13), cache)[-1:]
    cache.drop(60, 92)
    view, prompt = backbone._open(tiny.ids(4, 13), cache, 8)
    backbone._forward(prompt, view, 0)
    with backbone.steps.lent(view, 8) as step:
        assert step is not None
        found = step.after(tiny.ids(5, 13)[-1]).clone()
    wanted = backbone.logits(tiny.ids(5, 13), cache)[-1:]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert float((wanted - before).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "budgets",
    [
        {},
        {"heavy": 8},
        {"compressor": "drop"},
        {"latent_blocks": 0},
        {"per_layer": {"3": {"ring": 32, "evict_block": 4}}},
        {"key_frame": "within_block"},
        {"summaries": "in_place", "ring": 48, "rank": 2, "latent_blocks": 4},
    ],
    ids=["latents", "heavy", "window", "no latents", "per layer", "within block", "in place"],
)
@pytest.mark.parametrize("read", [8, 96], ids=["young", "old"])
def test_decoding_into_a_cache_is_reading_one_by_one(
    backbone: HfBackbone, read: int, budgets: dict[str, object]
) -> None:
    """The same ids and the same memory after four evictions and more (36 tokens do where the ring is full)."""
    count = 60 if read == 8 else 36
    cache = _session(backbone, read, 14, **budgets)
    twin = cache.fork()
    blocks = twin.stored[1].blocks
    wanted, _ = _read_one_by_one(backbone, twin, 5, count)
    with SessionDecoding(backbone, [cache]) as decoding:
        found = decoding.run(torch.tensor([5]), count)
    assert found[0].tolist() == wanted
    assert twin.stored[1].blocks >= blocks + 4
    assert cache.counters() == twin.counters()
    # what is read of it, as an eigenvector's sign is nobody's promise
    for layer, other in zip(cache.stored, twin.stored, strict=True):
        # tokens that repeat tie: which of them stays is not told by scores, and later layers feel it
        allowed = 5e-3 if cache.config.heavy else 2e-4
        if isinstance(layer, RotatingLayer) and layer.heavy:
            assert isinstance(other, RotatingLayer) and other.heavy
            mine_kept, wanted_kept = (each.heavy.scores.sort(dim=1).values for each in (layer, other))
            torch.testing.assert_close(mine_kept, wanted_kept, rtol=0, atol=allowed)
            continue
        for mine, wanted_part in zip(layer.visible(), other.visible(), strict=True):
            torch.testing.assert_close(mine, wanted_part, rtol=0, atol=allowed)


def test_told_tokens_give_the_plain_ways_logits(backbone: HfBackbone) -> None:
    """Of every token, over evictions, whatever is likeliest; the cache then holds them all."""
    cache = _session(backbone, 96, 21)
    twin, told = cache.fork(), tiny.ids(30, 22)
    wanted = []
    for token in told:
        with torch.no_grad():
            ids = torch.tensor([token])
            wanted.append(backbone.model(**backbone._inputs(ids, twin), logits_to_keep=1).logits[0, -1])
    with SessionDecoding(backbone, [cache]) as decoding:
        found = decoding.logits(torch.tensor([told]))
    torch.testing.assert_close(found[0], torch.stack(wanted), rtol=0, atol=1e-4)
    assert cache.counters() == twin.counters()


def test_unequal_sessions_decode_side_by_side(backbone: HfBackbone) -> None:
    """Each as if alone, though their evictions fall due at different tokens."""
    caches = [_session(backbone, tokens, seed) for tokens, seed in ((96, 15), (8, 16), (40, 17))]
    twins = [cache.fork() for cache in caches]
    with SessionDecoding(backbone, caches) as decoding:
        first = decoding.run(torch.tensor([5, 6, 7]), 25)
        second = decoding.run(first[:, -1], 25)
    together = torch.cat((first, second), dim=1).tolist()
    for twin, token, found in zip(twins, (5, 6, 7), together, strict=True):
        assert _read_one_by_one(backbone, twin, token, 50)[0] == found


def test_a_restored_session_goes_on_alike(backbone: HfBackbone) -> None:
    """A snapshot in the middle of decoding, and a fork, go on with the tokens of the session itself."""
    cache = _session(backbone, 96, 18)
    with SessionDecoding(backbone, [cache]) as decoding:
        begun = decoding.run(torch.tensor([9]), 21)
    copies = [cache.fork(), RotatingCompressiveCache.from_bytes(cache.to_bytes(), backbone)]
    found = []
    for each in (cache, *copies):
        with SessionDecoding(backbone, [each]) as decoding:
            found.append(decoding.run(begun[:, -1], 30).tolist())
    assert found[0] == found[1] == found[2]


def test_what_cannot_be_decoded_so_is_refused(backbone: HfBackbone) -> None:
    """With what was given and what to do instead."""
    waiting = backbone.new_cache(tiny.budgets())
    backbone.read(tiny.ids(11), waiting)
    with pytest.raises(ValueError, match="3 tokens that wait"):
        SessionDecoding(backbone, [waiting])
    learning = _session(backbone, 16, 0, compressor="weighted_svd")
    with pytest.raises(ValueError, match="learns from every query"):
        SessionDecoding(backbone, [learning])
    with pytest.raises(ValueError, match="different configurations"):
        SessionDecoding(backbone, [_session(backbone, 8, 0), _session(backbone, 8, 0, ring=40)])
    with pytest.raises(ValueError, match="no cache"):
        SessionDecoding(backbone, [])
    with pytest.raises(ValueError, match="a token for each of 1 sessions"):
        SessionDecoding(backbone, [_session(backbone, 8, 0)]).run(torch.tensor([1, 2]), 3)
    with pytest.raises(ValueError, match=r"shape \[2\]; wanted \[1, count\]"):
        SessionDecoding(backbone, [_session(backbone, 8, 0)]).logits(torch.tensor([1, 2]))


def test_a_model_that_cannot_be_captured_answers_the_plain_way(
    backbone: HfBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, and the answer is the same."""
    wanted = list(backbone.generate(tiny.ids(9), None, 12))
    backbone.steps = CapturedSteps(backbone, enabled=True)

    def fails(self: DecodeStep, device: torch.device) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(DecodeStep, "_capture", fails)
    with structlog.testing.capture_logs() as logs:
        assert [list(backbone.generate(tiny.ids(9), None, 12)) for _ in range(2)] == [wanted, wanted]
    assert [log["event"] for log in logs] == ["decoding_not_captured"]


def test_steps_are_forgotten_when_weights_move(tmp_path: Path) -> None:
    """A graph would read the old ones; a model that is trained on and on is captured no more."""
    folder = tiny.save(tmp_path / "tiny")
    own = HfBackbone.load(HfConfig(model=str(folder), device="cpu", prompt_block=32))
    own.steps = CapturedSteps(own, enabled=True, capture=False)
    list(own.generate(tiny.ids(9), None, 12))
    _, kept = own.steps._free[0]
    list(own.generate(tiny.ids(9), None, 12))
    assert own.steps._free[0][1] is kept
    weight = own.model.get_decoder().layers[0].mlp.up_proj
    for change in range(MOST_CHANGES + 1):
        weight.weight = torch.nn.Parameter(weight.weight.detach() * 0.5, requires_grad=False)
        list(own.generate(tiny.ids(9), None, 12))
        assert all(step is not kept for _, step in own.steps._free)
        assert own.steps.enabled == (change < MOST_CHANGES)


def test_fused_norms_are_the_models_own(tmp_path: Path) -> None:
    """Logits agree to 1e-5, gradients go through the model's own code, and it can be undone."""
    folder = tiny.save(tmp_path / "tiny")
    own = HfBackbone.load(HfConfig(model=str(folder), device="cpu"))
    with torch.no_grad():
        for module in own.model.modules():
            if type(module).__name__ == "Gemma3RMSNorm":
                module.weight.normal_(0.0, 0.3)
    wanted = own.logits(tiny.ids(30))
    assert fuse(own.model) == 4 * 6 + 1
    assert fuse(own.model) == 0
    torch.testing.assert_close(own.logits(tiny.ids(30)), wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        own.model.get_decoder().norm.weight.add_(1.0)
    changed = own.logits(tiny.ids(30))
    unfuse(own.model)
    torch.testing.assert_close(own.logits(tiny.ids(30)), changed, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed, wanted)


@pytest.mark.parametrize("turned", [16, 6], ids=["whole", "part"])
def test_turning_in_fixed_shapes_is_the_tables(turned: int) -> None:
    """Also where only some of the dimensions are turned."""

    def angles(places: Tensor) -> tuple[Tensor, Tensor]:
        each = places[..., None] / 7.0 ** torch.arange(turned // 2)
        return torch.cat((each, each), -1).cos(), torch.cat((each, each), -1).sin()

    table = RotaryTable(angles, device=torch.device("cpu"))
    kind = StaticKind([replace(tiny.backbone().specs[1], rotary=table)], 2, 8, 20, 0)
    held = torch.zeros(2, 3, 16)
    for row, place in enumerate((3, 11)):
        kind.lay(0, row, (held, held), None, place)
    kind.prepare(torch.tensor([5]))
    x = torch.randn(2, 2, 1, 16)
    wanted = table.turn(x, torch.tensor([8, 16])[:, None, None])
    torch.testing.assert_close(kind._turned(0, x), wanted)


def test_what_does_not_fit_is_told() -> None:
    """With both sizes."""
    kind = StaticKind([tiny.backbone().specs[1]], 1, 8, 20, 0)
    held = torch.zeros(2, 8, 16)
    with pytest.raises(ValueError, match="8 pairs up to place 3 do not fit into 8 slots and 20 places"):
        kind.lay(0, 0, (held, held), None, 3)


def test_slots_come_in_few_sizes() -> None:
    """Powers of two from 256, then multiples of 4,096: so that one graph serves many answers."""
    assert [rounded(n) for n in (1, 256, 257, 3100, 4096, 4097, 9000)] == [
        256,
        256,
        512,
        4096,
        4096,
        8192,
        12288,
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_captured_decoding_on_a_gpu_is_the_plain_way(tmp_path: Path) -> None:
    """Answers, decoding over evictions, a fork, a restored session and unequal rows: the eager path's ids."""
    folder = tiny.save(tmp_path / "tiny")
    own = HfBackbone.load(HfConfig(model=str(folder), device="cuda", prompt_block=32))
    sessions = [_session(own, tokens, seed) for tokens, seed in ((96, 15), (8, 16), (40, 17))]
    answers = [list(own.generate(tiny.ids(9, 6), cache, 30)) for cache in (sessions[0], None, sessions[2])]
    assert own.steps._free and all(step.captured for _, step in own.steps._free)
    own.steps.enabled = False
    assert [
        list(own.generate(tiny.ids(9, 6), cache, 30)) for cache in (sessions[0], None, sessions[2])
    ] == answers
    own.steps.enabled = True
    twins = [cache.fork() for cache in sessions]
    restored = RotatingCompressiveCache.from_bytes(sessions[0].to_bytes(), own)
    with SessionDecoding(own, sessions) as decoding:
        assert decoding.step.captured
        found = decoding.run(torch.tensor([5, 6, 7], device="cuda"), 60).tolist()
    for twin, token, ids in zip(twins, (5, 6, 7), found, strict=True):
        assert _read_one_by_one(own, twin, token, 60)[0] == ids
    with SessionDecoding(own, [restored]) as decoding:
        assert decoding.run(torch.tensor([5], device="cuda"), 60)[0].tolist() == found[0]
