"""Learned compressors' training in miniature: traces kept once, errors that fall, and weights that load."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from infra.training import compressors
from models.cache.learned import LearnedWeights
from models.cache.ranker import base_identity
from models.compared.trace import read_exactly
from models.hf.backbone import LEARNED_TYPES
from tests.models import tiny


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of the tiny model."""
    for name, value in {
        "RECENT": 16, "QUERIES": 8, "RANKS": {"projection": (2, 4, 8), "autoencoder": (4, 8, 16)},
        "EARLIEST": 40, "EVERY": 20,
    }.items():  # fmt: skip
        monkeypatch.setattr(compressors, name, value)


def traces(count: int, folder: Path | None = None) -> list[compressors.Trace]:
    """Contexts of letters as the tiny model reads them."""
    found = []
    for at in range(count):
        found.append(
            compressors.as_trace(read_exactly(tiny.backbone(), ids := [1, *tiny.ids(99, seed=at)]), ids)
        )
        if folder is not None:
            compressors.save_file(found[-1], str(folder / f"trace-{at:03d}.safetensors"))
    return found


def plain_error(spec, layer, trace, start: int, rank: int) -> float:  # type: ignore[no-untyped-def]
    """Loops over queries: what each reads from the coded pairs against the exact ones."""
    keys, values, queries = (trace[f"{spec.index}.{name}"].float() for name in ("keys", "values", "queries"))
    read = layer.read(keys, values, rank)
    lost = norm = 0.0
    coded = [keys.clone(), values.clone()]
    for mine, code in zip(coded, read, strict=True):
        mine[:, 4 : start - compressors.RECENT] = code[:, 4 : start - compressors.RECENT]
    for at in range(start, min(start + compressors.QUERIES, keys.shape[1])):
        for head in range(spec.num_heads):
            kv = head // (spec.num_heads // spec.num_kv_heads)
            q = spec.rotary.turn(queries[head, at : at + 1], torch.tensor([at]))

            def out(
                k: torch.Tensor, v: torch.Tensor, q: torch.Tensor = q, kv: int = kv, at: int = at
            ) -> torch.Tensor:
                turned = spec.rotary.turn(k[kv, : at + 1], torch.arange(at + 1))
                return (q @ turned.T * spec.scaling).softmax(-1) @ v[kv, : at + 1]

            exact, ours = out(keys, values), out(*coded)
            lost += float((ours - exact).square().sum())
            norm += float(exact.square().sum())
    return lost / norm


@pytest.mark.parametrize("kind", tuple(LEARNED_TYPES))
def test_the_loss_is_the_error_of_the_attention_output(kind: str) -> None:
    """Against plain loops, sinks and recent tokens raw."""
    spec = next(spec for spec in tiny.backbone().specs if spec.window is None)
    torch.manual_seed(0)
    layer = LEARNED_TYPES[kind].layer_type(2, 16, 8)
    layer.start(torch.randn(2, 50, 16), torch.randn(2, 50, 16))
    trace = traces(1)[0]
    loss = compressors.attention_loss(spec, layer, trace, 60, 4)
    assert float(loss) == pytest.approx(plain_error(spec, layer, trace, 60, 4), rel=1e-3)


def test_training_lowers_the_held_out_error_and_the_weights_serve(tmp_path: Path) -> None:
    """Both stages, both kinds; the cache reads with what was written."""
    backbone, folder = tiny.backbone(), tmp_path / "traces"
    folder.mkdir()
    traces(5, folder)
    given = Namespace(
        traces=folder, out=tmp_path / "out", kinds="projection,autoencoder", seconds=1.0, token_steps=3, seed=0,
        layers="",
    )  # fmt: skip
    given.out.mkdir()
    whose = base_identity(backbone.identity)
    compressors.fit(given, backbone.specs, whose, backbone)

    def stamp() -> int:
        return LearnedWeights.load("projection", LEARNED_TYPES["projection"].layer_type, given.out).stamp

    kept = stamp()
    again = Namespace(**{**vars(given), "layers": "99", "token_steps": 0, "kinds": "projection"})
    compressors.fit(again, backbone.specs, whose, None)  # no layer of that number: nothing changes
    assert stamp() == kept
    curves = json.loads((given.out / "curves.json").read_text())
    for kind in LEARNED_TYPES:
        errors = [
            layer["error_4"]
            for curve in curves[kind]["attention"].values()
            for layer in (curve[0], curve[-1])
        ]
        assert sum(errors[1::2]) < sum(errors[::2]), kind
        assert len(curves[kind]["next_token"]) == 3
        config = tiny.budgets(compressor=kind, compressor_weights=str(given.out), rank=8)
        cache = backbone.new_cache(config)
        backbone.read(tiny.ids(64), cache)
        assert bool(backbone.logits(tiny.ids(3), cache).isfinite().all())


@pytest.mark.parametrize("kind", tuple(LEARNED_TYPES))
def test_next_token_loss_is_the_models_where_nothing_is_lost(kind: str) -> None:
    """At full rank of an untrained projection; gradients reach the weights of every layer."""
    backbone, trace = tiny.backbone(), traces(1)[0]
    layers = {}
    for spec in backbone.specs:
        if spec.window is None:
            keys, values = (trace[f"{spec.index}.{name}"].float() for name in ("keys", "values"))
            layers[spec.index] = LEARNED_TYPES[kind].layer_type(2, 16, 32 if kind == "autoencoder" else 16)
            layers[spec.index].start(keys, values)
    loss = compressors.token_loss(backbone, layers, trace, 60, 32, 8)
    ids = trace["ids"].tolist()
    nats = -backbone.score(ids[:61], ids[61:68]) / 7
    assert float(loss) == pytest.approx(nats, rel=2e-2)
    loss.backward()
    for layer in layers.values():
        assert float(layer.key_decoder.grad.norm()) > 0 and float(layer.value_decoder.grad.norm()) > 0


def test_too_few_traces_are_told(tmp_path: Path) -> None:
    """Held-out contexts must be left over."""
    given = Namespace(
        traces=tmp_path, out=tmp_path, kinds="projection", seconds=1.0, token_steps=1, seed=0, layers=""
    )
    with pytest.raises(SystemExit, match="holds 0 traces of more than 48 tokens; record at least 3"):
        compressors.fit(given, tiny.backbone().specs, "", None)


def test_peers_compress_block_by_block_as_a_cache_does() -> None:
    """Each block of 128 by its own SVD; what is left over stays raw."""
    spec = next(spec for spec in tiny.backbone().specs if spec.window is None)
    torch.manual_seed(0)
    keys, values = torch.randn(2, 300, 16), torch.randn(2, 300, 16)
    trace = {f"{spec.index}.queries": torch.randn(4, 400, 16)}
    found = compressors.Blocks(spec, "svd", 3, trace).read(keys, values, 3)
    for mine, given in zip(found, (keys, values), strict=True):
        u, s, v = torch.linalg.svd(given[:, 128:256], full_matrices=False)
        torch.testing.assert_close(
            mine[:, 128:256], u[..., :3] * s[:, None, :3] @ v[:, :3], atol=1e-4, rtol=1e-3
        )
        torch.testing.assert_close(mine[:, 256:], given[:, 256:])
    weighted = compressors.Blocks(spec, "weighted_svd", 3, trace).read(keys, values, 3)
    assert not torch.allclose(weighted[0], found[0], atol=1e-3)
    torch.testing.assert_close(weighted[1], found[1], atol=1e-4, rtol=1e-3)
