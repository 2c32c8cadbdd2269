"""A context held as a session holds it: the cache's own pairs, and a loss that reaches what made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import reader_latents
from models.cache.full_layer import RotatingLayer
from models.cache.heavy import HeavyStore
from models.cache.spec import LayerSpec
from models.compared.ours import Ours
from models.hf import HfBackbone, HfConfig
from models.hf.loading import layer_specs, load
from models.reader_latents import (
    Squeeze,
    choose,
    evicted_blocks,
    held_answer_loss,
    latent_answer_loss,
    leading_columns,
    read_context,
)
from models.reader_training import ReadingRows, add_lora, answer_loss, collate
from tests.models import tiny

CONTEXT = "the cat sat on the mat and the dog lay by the door while it rained all day long, " * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder."""
    config = tiny.config(max_position_embeddings=2048)
    return tiny.save(tmp_path_factory.mktemp("tiny"), model_config=config)


def loaded(folder: Path) -> tuple[Any, list[LayerSpec], Any]:
    """Its model, layers and tokenizer."""
    found = load(HfConfig(model=str(folder), adapter="none", device="cpu"))
    return found.model, layer_specs(found.model), found.tokenizer


def batch_of(tokenizer: Any, asked: list[tuple[str, str]]) -> Any:
    """Questions with answers, side by side."""
    rows = ReadingRows.of(
        [
            tuple(tokenizer.encode(part, add_special_tokens=False).ids for part in (question, answer))
            for question, answer in asked
        ]
    )  # fmt: skip
    return rows, collate(rows, np.arange(len(rows)), torch.device("cpu"))


def ids_of(tokenizer: Any, text: str) -> Tensor:
    """A context's ids, opened."""
    return torch.tensor(tokenizer.encode(text, add_special_tokens=True).ids)


class Constant:
    """A ranker that prefers every third token."""

    def score(self, index: int, given: Tensor) -> Tensor:
        """Scores [H, n]."""
        n = given.shape[1]
        return ((torch.arange(n) % 3 == 0).float() + torch.arange(n) / 10_000).expand(given.shape[0], -1)


def test_uncompressed_context_gives_the_plain_loss(folder: Path) -> None:
    """Held in full, context and question lose what one plain row of both loses; window layers too."""
    model, specs, tokenizer = loaded(folder)
    context = ids_of(tokenizer, CONTEXT[:120])
    rows, batch = batch_of(tokenizer, [("who sat", " cat"), ("where did it lie", " by the door")])
    ours, right = latent_answer_loss(model, specs, context, batch, Squeeze(form="full"))
    whole = ReadingRows.of(
        [
            ([*context.tolist(), *row[: rows.answer_starts[at]]], list(row[rows.answer_starts[at] :]))
            for at in range(2)
            for row in [rows.row(at)]
        ]
    )
    plain, also_right = answer_loss(model, collate(whole, np.arange(2), torch.device("cpu")))
    assert float(ours) == pytest.approx(float(plain), rel=1e-4)
    assert float(right) == float(also_right)


@pytest.mark.parametrize("keep", [0.5, 0.2, 0.1])
def test_latents_are_those_of_the_cache(folder: Path, keep: float) -> None:
    """Positions, places and pairs are those of a RotatingLayer that was given the context step by step."""
    model, specs, tokenizer = loaded(folder)
    context = ids_of(tokenizer, CONTEXT)
    for layer in read_context(model, specs, context):
        spec = layer.spec
        if spec.window is not None:
            continue
        assert layer.pair is not None
        keys, values = (pair.detach() for pair in layer.pair)
        kept = choose(spec, keys, values, Squeeze(form="latents", keep=keep))
        budget = int(keep * 2 * spec.num_kv_heads * spec.head_dim * 4 * len(context))
        cache = RotatingLayer(spec, Ours().config(spec, len(context), budget), torch.float32)
        for start in range(0, len(context), cache.config.read_block):
            part = slice(start, start + cache.config.read_block)
            cache.make_room(keys[:, part].shape[1])
            cache.append(keys[:, part], values[:, part])
        held_keys, held_values, places, next_place = cache.visible()
        assert cache.blocks == evicted_blocks(cache.config, len(context)) > 0
        assert torch.equal(kept.positions, cache.positions().expand(spec.num_kv_heads, -1))
        assert torch.equal(kept.places, places)
        assert kept.next_place == next_place
        for mine, theirs in zip(kept.rebuild(keys, values), (held_keys, held_values), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)
        assert sum(tensor.nbytes for tensor in cache.tensors().values()) <= budget


def test_hitters_are_the_best_ranked_and_stand_where_the_cache_puts_them(folder: Path) -> None:
    """Sinks, the best of what was evicted, and the ring; old ones stand behind the sinks by age."""
    _, specs, _ = loaded(folder)
    spec = next(spec for spec in specs if spec.window is None)
    chance = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 400, spec.head_dim, generator=chance) for _ in range(2))
    kept = choose(spec, keys, values, Squeeze(form="hitters", keep=0.1), Constant())  # type: ignore[arg-type]
    budget = int(0.1 * 2 * 2 * spec.head_dim * 4 * 400)
    config = Ours(scorer="ranker").config(replace(spec, dtype=torch.float32), 400, budget)
    gone = config.sinks + evicted_blocks(config, 400) * config.evict_block
    heavy = kept.positions[:, config.sinks : config.sinks + config.heavy]
    assert bool((heavy % 3 == 0).all()) and bool((heavy < gone).all()) and bool((heavy >= config.sinks).all())
    assert kept.positions[0, -1] == 399
    store = HeavyStore(spec, config, torch.float32)
    store.positions.copy_(heavy)
    shift = gone - config.sinks - config.heavy
    stands = store.places(config.heavy, config.sinks, shift)
    assert torch.equal(kept.places[:, config.sinks : config.sinks + config.heavy], stands)
    assert kept.next_place == 400 - shift
    assert kept.positions.shape[1] <= 0.1 * 400
    with pytest.raises(ValueError, match="ranker"):
        choose(spec, keys, values, Squeeze(form="hitters", keep=0.1))


def test_gradient_reaches_the_adapter_through_latents_alone(folder: Path) -> None:
    """The answer's loss has a gradient at every full layer's pairs of the context, which the adapter made."""
    model, specs, tokenizer = loaded(folder)
    model = add_lora(model, 4, 8, 0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    _, batch = batch_of(tokenizer, [("who", " cat")])
    layers = read_context(model, specs, ids_of(tokenizer, CONTEXT))
    held = [layer.held(Squeeze(form="latents", keep=0.1), None) for layer in layers]
    told = reader_latents._decode(model, held, batch.ids).square().sum()
    pairs = [layer.pair for layer in layers if layer.spec.window is None]
    for keys, values in pairs:  # type: ignore[misc]
        assert keys.requires_grad and values.requires_grad
        for given in torch.autograd.grad(told, (keys, values), retain_graph=True):
            assert float(given.abs().sum()) > 0
    trained = {
        name: p for name, p in model.named_parameters() if p.requires_grad and "self_attn.v_proj" in name
    }
    keys, values = pairs[0]  # type: ignore[misc]
    first = [p for name, p in trained.items() if "layers.0." in name]
    assert all(float(g.abs().sum()) > 0 for g in torch.autograd.grad(values.sum(), first, retain_graph=True))


def test_pairs_behind_latents_get_their_gradient(folder: Path) -> None:
    """What is held is linear in the context's pairs: its gradient is the projection of the pairs' own."""
    _, specs, _ = loaded(folder)
    spec = next(spec for spec in specs if spec.window is None)
    chance = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 400, spec.head_dim, generator=chance).requires_grad_() for _ in range(2))
    kept = choose(spec, keys, values, Squeeze(form="latents", keep=0.2))
    held, _ = kept.rebuild(keys, values)
    assert kept.rows is not None
    wanted = torch.randn(held.shape, generator=chance)
    (held * wanted).sum().backward()
    assert keys.grad is not None
    start = kept.first
    rows = kept.rows[0][:, 0]
    n = rows.shape[1]
    at = kept.positions[0, start : start + n]
    ours = keys.grad[:, at]
    assert torch.allclose(ours, rows @ (rows.transpose(-1, -2) @ wanted[:, start : start + n]), atol=1e-5)
    assert float(ours.abs().sum()) > 0


def test_reader_learns_to_answer_from_latents(folder: Path) -> None:
    """After 24 steps over contexts of which 80% of the bytes are gone, answers cost less than half."""
    model, specs, tokenizer = loaded(folder)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    chance = np.random.default_rng(0)
    costs = []
    for _ in range(24):
        thing = "abcd"[chance.integers(4)] * 3
        context = ids_of(tokenizer, f"the box holds {thing}. " + CONTEXT[: 90 + int(chance.integers(20))])
        _, batch = batch_of(tokenizer, [("holds", f" {thing}")])
        loss, _ = latent_answer_loss(model, specs, context, batch, Squeeze(form="latents", keep=0.2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        costs.append(float(loss.detach()))
    assert np.mean(costs[-5:]) < 0.5 * np.mean(costs[:3])


def test_agrees_with_the_backbone_over_a_cache(folder: Path) -> None:
    """The loss is the backbone's own score over the same compressed context, a token."""
    model, specs, tokenizer = loaded(folder)
    backbone = HfBackbone.load(HfConfig(model=str(folder), adapter="none", device="cpu"))
    context = ids_of(tokenizer, CONTEXT)
    rows, batch = batch_of(tokenizer, [("who sat there", " cat")])
    loss, _ = latent_answer_loss(model, specs, context, batch, Squeeze(form="latents", keep=0.2))
    cache = Ours().prepare(backbone).read(backbone, context.tolist(), 0.2)
    row = rows.row(0).tolist()
    start = int(rows.answer_starts[0])
    score = backbone.score(row[:start], row[start:], cache)
    assert float(loss) == pytest.approx(-score / (len(row) - start), rel=2e-3)


@pytest.mark.parametrize("wrong", [{"form": "zip"}, {"keep": 0.0}, {"keep": 1.5}])
def test_wrong_forms_and_shares_are_refused(wrong: dict[str, Any]) -> None:
    """Given and allowed are named."""
    with pytest.raises(ValueError, match="allowed"):
        Squeeze(**wrong)


@pytest.mark.parametrize(("rank", "fall"), [(4, 0.5), (16, 0.1), (16, 0.0), (24, 0.02)])
def test_columns_found_by_iteration_leave_out_what_the_exact_ones_do(rank: int, fall: float) -> None:
    """Orthonormal to 1e-4; what is left out of a block is that of exact ones to 2%; lower ranks stay finite."""
    chance = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(3, 2, 64, 64, generator=chance))[0] for _ in range(2))
    sizes = torch.exp(-fall * torch.arange(64.0)) if fall else torch.cat((torch.ones(8), torch.zeros(56)))
    blocks = left @ (sizes[:, None] * right)
    found, exact = leading_columns(blocks, rank), reader_latents._subspace(blocks, rank)
    assert found.isfinite().all()

    def lost(rows: Tensor) -> float:
        return float((blocks - rows @ (rows.transpose(-1, -2) @ blocks)).norm())

    if fall:
        inner = found.transpose(-1, -2) @ found
        assert torch.allclose(inner, torch.eye(rank).expand_as(inner), atol=1e-4)
        assert lost(found) <= 1.02 * lost(exact) + 1e-5
    else:
        assert lost(found) <= 1e-3 * float(blocks.norm())


def test_a_context_read_once_is_held_in_several_ways(folder: Path) -> None:
    """Each form over the same reading gives the loss of a reading of its own."""
    model, specs, tokenizer = loaded(folder)
    _, questions = batch_of(tokenizer, [("what sat", " cat"), ("what lay", " dog")])
    ids = ids_of(tokenizer, CONTEXT)
    with torch.no_grad():
        layers = read_context(model, specs, ids)
        for squeeze in (Squeeze(keep=0.2), Squeeze(form="full", keep=1.0), Squeeze(keep=0.4)):
            once = held_answer_loss(model, layers, questions, squeeze)[0]
            alone = latent_answer_loss(model, specs, ids, questions, squeeze)[0]
            assert float(once) == pytest.approx(float(alone), rel=1e-6)


@pytest.mark.parametrize("form", ["full", "latents"])
def test_half_precision_as_on_a_gpu_gives_a_gradient(folder: Path, form: str) -> None:
    """Under autocast to bf16 the loss is near the float32 one, and the adapter has a finite gradient."""
    model, specs, tokenizer = loaded(folder)
    adapted = add_lora(model, 4, 8, 0.0).eval()
    _, questions = batch_of(tokenizer, [("what sat", " cat"), ("what lay", " dog")])
    ids = ids_of(tokenizer, CONTEXT)
    squeeze = Squeeze(form=form, keep=0.2 if form != "full" else 1.0)
    exact = float(latent_answer_loss(adapted, specs, ids, questions, squeeze)[0].detach())
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = latent_answer_loss(adapted, specs, ids, questions, squeeze)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(exact, rel=0.1)
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
