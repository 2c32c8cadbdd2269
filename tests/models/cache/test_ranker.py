"""The learned ranker: features, files, its own loss, and its place in cache and methods."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from infra.training.ranker import RankerTraining, train
from infra.training.ranker_traces import Context, record
from models.cache.ranker import (
    LayerRanker,
    Places,
    Ranker,
    base_identity,
    context_features,
    features,
    kept_mass,
    log_rank_loss,
)
from models.compared import method
from models.compared.base import budget_of
from models.compared.trace import read_exactly
from tests.models import tiny


def untrained(weights_of: str | None = None) -> Ranker:
    """Random networks for the tiny model."""
    specs = [spec for spec in tiny.backbone().specs if spec.window is None]
    layers = {spec.index: LayerRanker(2, 2 * spec.head_dim + 7, hidden=8) for spec in specs}
    return Ranker(layers, weights_of or base_identity(tiny.backbone().identity), {"made": "by a test"})


def test_features_are_those_of_the_docstring() -> None:
    """Key, value, log lengths, cosines to the means, place; without a place three unknowns."""
    key, value = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])
    mean = torch.tensor([[[1.0, 0.0]]])
    row = features(key, value, mean, key.flip(-1), mean, Places(torch.tensor([4]), 20))[0, 0]
    wanted = [3, 4, 0, 2, 5, 2, 0.6, 0.8, 5, 16, 0.2]
    for at in (4, 5, 8, 9):
        wanted[at] = float(torch.tensor(float(wanted[at])).log())
    torch.testing.assert_close(row, torch.tensor(wanted, dtype=torch.float32))
    blind = features(key, value, mean, key.flip(-1), mean, None)[0, 0]
    torch.testing.assert_close(blind[:8], row[:8])
    assert bool(blind[8:].isnan().all())


def test_unknown_places_count_as_average_ones() -> None:
    """The network then scores as if the standardised feature were 0, and never gives NaN."""
    layer = LayerRanker(1, 9, hidden=4)
    samples = torch.randn(1, 50, 9) + 3
    samples[..., 0] = 1.5  # never changes
    layer.standardise(samples)
    known, unknown = samples[:, :3].clone(), samples[:, :3].clone()
    known[..., -3:] = layer.mean[..., -3:]
    unknown[..., -3:] = float("nan")
    torch.testing.assert_close(layer(unknown), layer(known))


def test_loss_is_least_when_the_mass_ranks_first() -> None:
    """Over all orders of five tokens the sharp loss sorts as mass kept on a log scale does."""
    mass = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])
    found = {}
    for order in itertools.permutations(range(5)):
        scores = torch.empty(1, 5)
        scores[0, list(order)] = torch.tensor([500.0, 400.0, 300.0, 200.0, 100.0])
        drawn = scores[:, torch.arange(5).repeat_interleave((mass * 100).long())]
        found[order] = float(log_rank_loss(drawn, scores, 5))
    assert min(found, key=lambda order: found[order]) == (0, 1, 2, 3, 4)
    assert max(found, key=lambda order: found[order]) == (4, 3, 2, 1, 0)


def test_kept_mass_is_the_share_on_the_best() -> None:
    """Two of four tokens, two heads."""
    mass = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    scores = torch.tensor([[9.0, 0.0, 5.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    assert kept_mass(scores, mass, 0.5) == pytest.approx((0.6 + 0.5) / 2)


def test_saved_and_loaded_ranker_scores_alike(tmp_path: Path) -> None:
    """Weights, standardisation and what it belongs to."""
    ranker = untrained()
    for layer in ranker.layers.values():
        layer.standardise(torch.randn(2, 40, 39))
    ranker.save(tmp_path)
    again = Ranker.load(tmp_path)
    given = torch.randn(2, 10, 39)
    torch.testing.assert_close(again.score(3, given), ranker.score(3, given))
    assert (again.weights_of, again.about) == (ranker.weights_of, ranker.about)


def test_wrong_files_and_models_are_told(tmp_path: Path) -> None:
    """Both sides in the message."""
    with pytest.raises(ValueError, match="does not exist; train a ranker"):
        Ranker.load(tmp_path)
    (tmp_path / "ranker.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="is no safetensors file"):
        Ranker.load(tmp_path)
    untrained("another:config-0:weights-0").save(tmp_path)
    with pytest.raises(ValueError, match=r"trained on another:config-0.*the model is tiny"):
        method("ranker", ranker=str(tmp_path)).prepare(tiny.backbone())
    with pytest.raises(ValueError, match=r"the ranker has no layer 2; it knows 1, 3"):
        untrained().score(2, torch.zeros(2, 4, 39))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 39\), the ranker takes \[2, tokens, 39\]"):
        untrained().score(1, torch.zeros(1, 4, 39))
    with pytest.raises(ValueError, match=r"cache\.ranker is empty"):
        tiny.budgets(ranker="")


def test_heavy_hitters_by_ranker_are_its_best_of_the_block(tmp_path: Path) -> None:
    """In the cache (places unknown), streaming and after exact reading; a snapshot finds the ranker again."""
    untrained().save(tmp_path)
    backbone, ids = tiny.backbone(), [1, *tiny.ids(119)]
    config = tiny.budgets(heavy=4, heavy_scorer="ranker", ranker=str(tmp_path), compressor="drop")
    cache = backbone.new_cache(config)
    backbone.read(ids, cache)
    assert all(layer.heavy.scores.abs().sum() > 0 for layer in cache.stored if hasattr(layer, "heavy"))
    twin = type(cache).from_bytes(cache.to_bytes(), backbone)
    torch.testing.assert_close(backbone.logits([5, 6], twin), backbone.logits([5, 6], cache))
    trace = read_exactly(backbone, ids)
    for name in ("ranker", "ours_ranker"):
        memory = method(name, ranker=str(tmp_path)).prepare(backbone).memory(trace, budget_of(trace, 0.4))
        assert memory.nbytes <= 0.4 * trace.full_bytes
        assert bool(torch.isfinite(backbone.logits([5, 6], memory.as_cache())).all())
    streamed = (
        method("ours_ranker_streaming", ranker=str(tmp_path)).prepare(backbone).read(backbone, ids, 0.4)
    )
    assert streamed.tokens_seen == 120  # type: ignore[attr-defined]


def test_recorded_mass_is_attention_of_the_later_tokens() -> None:
    """Against transformers' own weights of one pass over context and question, sinks left out."""
    backbone, text, later = tiny.backbone(), "the mill by the river is old and grey. " * 2, "who is old"
    made = record(backbone, Context("x", text, (later,)))
    ids = [*backbone.bos, *backbone.encode(text), *backbone.encode(later)]
    n = len(ids) - len(later)
    trace = read_exactly(backbone, ids)
    for layer in trace.layers:
        spec = layer.spec
        at = torch.arange(len(ids))
        queries, keys = spec.rotary.turn(layer.queries, at), spec.rotary.turn(layer.keys, at)
        total = torch.zeros(2, n)
        for head in range(4):
            scores = queries[head] @ keys[head // 2].T * spec.scaling
            scores = scores.masked_fill(at > at[:, None], float("-inf")).softmax(-1)
            total[head // 2] += scores[n:, :n].sum(0)
        total[:, :4] = 0
        torch.testing.assert_close(
            made[f"layer{spec.index}.mass"], total / total.sum(1, keepdim=True), atol=1e-4, rtol=1e-3
        )
        context_keys = made[f"layer{spec.index}.keys"].float()
        torch.testing.assert_close(context_keys, layer.keys[:, :n], atol=2e-3, rtol=2e-3)


def test_training_learns_what_draws_attention() -> None:
    """Mass on tokens whose key points one way: found on held-out contexts, far beyond chance."""
    specs = [dataclasses.replace(spec) for spec in tiny.backbone().specs]
    traces = []
    for _ in range(8):
        trace: dict[str, torch.Tensor] = {}
        for spec in specs:
            if spec.window is None:
                keys, values = torch.randn(2, 120, 16), torch.randn(2, 120, 16)
                mass = (3 * keys[..., 2]).exp()
                trace |= {
                    f"layer{spec.index}.keys": keys,
                    f"layer{spec.index}.values": values,
                    f"layer{spec.index}.mass": mass / mass.sum(1, keepdim=True),
                }
        traces.append(trace)
    config = RankerTraining(steps=100, drawn=64, others=64, dev_every=4)
    layers, curves = train(specs, traces, config)
    assert set(layers) == {1, 3}
    for index, layer in layers.items():
        fresh = traces[0]
        given = context_features(specs[index], fresh[f"layer{index}.keys"], fresh[f"layer{index}.values"])
        assert kept_mass(layer(given), fresh[f"layer{index}.mass"], 0.1) > 0.4
        assert curves[str(index)]["no_place"]["kept_10"] > 0.4
        assert curves[str(index)]["curve"][0]["kept_10"] < curves[str(index)]["best"]["kept_10"]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"drawn": 0}, {"place_dropout": 2.0}])
def test_impossible_training_is_named(wrong: dict[str, float]) -> None:
    """The field and what is allowed."""
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: given .*allowed"):
        RankerTraining(**wrong)  # type: ignore[arg-type]
