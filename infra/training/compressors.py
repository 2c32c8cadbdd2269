"""Train the learned projection and the learned autoencoder of a model's full-attention layers.

    python -m infra.training.compressors record --data FOLDER --traces DIR [--contexts 12]
    python -m infra.training.compressors fit --traces DIR --out FOLDER [--seconds 60] [--token-steps 40]
    python -m infra.training.compressors compare --traces DIR --out FOLDER

`record` reads contexts of the training split (infra/training/ranker_traces.py) exactly and keeps their pairs and
queries; it goes on where it stopped. `fit` starts from SVD, learns each layer on the error of its attention output
(a random rank each step, so that columns are nested), then all layers together on the loss of next tokens; the
last two contexts are held out. `compare` judges on them at equal bytes, beside SVD and weighted SVD. Writes
projection.safetensors, autoencoder.safetensors and curves.json.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.console import say
from models.cache.config import CacheConfig
from models.cache.full_layer import COMPRESSORS
from models.cache.layers import ViewLayer
from models.cache.learned import LayerCodes, LearnedWeights
from models.cache.ranker import base_identity
from models.cache.rotating import CacheView
from models.cache.spec import LayerSpec
from models.compared.trace import Trace as Reading
from models.compared.trace import read_exactly
from models.hf import HfBackbone, HfConfig
from models.hf.backbone import LEARNED_TYPES

SINKS, RECENT, QUERIES, HELD_OUT = 4, 256, 64, 2
LEARNING_RATE = 5e-4
EARLIEST, EVERY = 1100, 600
"""Where training queries begin, and the steps between held-out ones."""
RANKS = {"projection": (8, 16, 32, 64, 96), "autoencoder": (16, 32, 64, 128)}
Trace = dict[str, Tensor]


def record(backbone: HfBackbone, data: Path, folder: Path, count: int, most_tokens: int = 3072) -> None:
    """Write a file of pairs, queries and ids a context."""
    from infra.training.ranker_traces import contexts

    folder.mkdir(parents=True, exist_ok=True)
    for at, context in zip(range(count), contexts(data, seed=0, scale=max(0.2, count / 34)), strict=False):
        path = folder / f"trace-{at:03d}.safetensors"
        if path.exists():
            continue
        ids = [*backbone.bos, *backbone.encode(context.text + "\n" + "\n".join(context.later))][:most_tokens]
        save_file(as_trace(read_exactly(backbone, ids), ids), str(path.with_suffix(".part")))
        path.with_suffix(".part").rename(path)
        say(f"  {context.name}: {len(ids)} tokens")


def as_trace(read: Reading, ids: Sequence[int]) -> Trace:
    """What is kept of an exact reading: pairs and queries of the full layers in 16 bits, and the ids."""
    kept: Trace = {"ids": torch.tensor(ids)}
    for layer in read.layers:
        for name in ("keys", "values", "queries"):
            kept[f"{layer.spec.index}.{name}"] = getattr(layer, name).half().contiguous().cpu()
    return kept


def attention_loss(
    spec: LayerSpec, layer: LayerCodes | Blocks, trace: Trace, start: int, rank: int
) -> Tensor:
    """Relative squared error of what queries start … read when all but sinks and recent tokens are codes."""
    end = min(start + QUERIES, trace["ids"].shape[0])
    keys, values, queries = (trace[f"{spec.index}.{name}"].float() for name in ("keys", "values", "queries"))
    middle = slice(SINKS, start - RECENT)
    read = layer.read(keys[:, middle], values[:, middle], rank)
    mixed = [
        torch.cat((given[:, :SINKS], code, given[:, middle.stop : end]), dim=1)
        for given, code in zip((keys, values), read, strict=True)
    ]
    places = torch.arange(end)
    spec.rotary.reserve(end)
    asked = spec.rotary.turn(queries[:, start:end], places[start:]).reshape(
        spec.num_kv_heads, -1, end - start, spec.head_dim
    )
    late = places > places[start:, None]

    def output(k: Tensor, v: Tensor) -> Tensor:
        turned = spec.rotary.turn(k, places)
        scores = asked @ turned[:, None].transpose(-1, -2) * spec.scaling
        out: Tensor = scores.masked_fill(late, float("-inf")).softmax(-1) @ v[:, None]
        return out

    with torch.no_grad():
        exact = output(keys[:, :end], values[:, :end])
    return (output(*mixed) - exact).square().sum() / exact.square().sum()


def fit_layer(
    spec: LayerSpec, kind: str, traces: Sequence[Trace], seconds: float, seed: int
) -> tuple[LayerCodes, list[dict[str, float]]]:
    """One layer on attention output for `seconds`; the curve of the held-out error by rank."""
    rng = random.Random(f"{seed}:{kind}:{spec.index}")
    torch.manual_seed(seed)
    ranks = RANKS[kind]
    layer = LEARNED_TYPES[kind].layer_type(spec.num_kv_heads, spec.head_dim, ranks[-1])  # type: ignore[call-arg]
    training, held_out = traces[:-HELD_OUT], traces[-HELD_OUT:]
    samples = [
        torch.cat([trace[f"{spec.index}.{name}"][:, SINKS::4].float() for trace in training], dim=1)
        for name in ("keys", "values")
    ]
    layer.start(*samples)  # type: ignore[operator]
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    began, step, curve = time.monotonic(), 0, [_held_out(spec, layer, held_out, ranks) | {"step": 0.0}]
    while time.monotonic() - began < seconds:
        done = (time.monotonic() - began) / seconds
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - 0.95 * done)
        trace = rng.choice(training)
        start = rng.randrange(EARLIEST, trace["ids"].shape[0] - QUERIES)
        loss = attention_loss(spec, layer, trace, start, rng.choice(ranks))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        step += 1
    curve.append(_held_out(spec, layer, held_out, ranks) | {"step": float(step)})
    return layer, curve


@torch.no_grad()
def _held_out(
    spec: LayerSpec, layer: LayerCodes, traces: Sequence[Trace], ranks: Sequence[int]
) -> dict[str, float]:
    found = {}
    for rank in ranks:
        errors = [
            float(attention_loss(spec, layer, trace, start, rank)) ** 0.5
            for trace in traces
            for start in range(EARLIEST, trace["ids"].shape[0] - QUERIES, EVERY)
        ]
        found[f"error_{rank}"] = round(sum(errors) / len(errors), 4)
    return found


class CodedView(ViewLayer):  # type: ignore[no-untyped-call]
    """A view whose held pairs carry gradients to the codes' weights."""

    def __init__(self, spec: LayerSpec, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__(spec, room, keys.shape[1])
        self._coded = spec.rotary.turn(keys, torch.arange(keys.shape[1])), values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See ViewLayer.update."""
        keys, values = super().update(key_states, value_states)
        return torch.cat((self._coded[0][None], keys.clone()), 2), torch.cat(
            (self._coded[1][None], values.clone()), 2
        )


def token_loss(
    backbone: HfBackbone, layers: dict[int, LayerCodes], trace: Trace, start: int, rank: int, count: int
) -> Tensor:
    """Nats per token of tokens start + 1 … start + count, the middle of the full layers read from codes."""
    ids = trace["ids"].tolist()
    views: list[ViewLayer] = []
    exact = read_exactly(backbone, ids[max(0, start - 1024) : start])  # the sliding layers' windows
    sliding = {layer.spec.index: layer for layer in exact.sliding}
    for spec in backbone.specs:
        if spec.index not in layers:
            views.append(sliding[spec.index].frozen(count))
            continue
        keys, values = (trace[f"{spec.index}.{name}"][:, :start].float() for name in ("keys", "values"))
        middle = slice(SINKS, start - RECENT)
        read = layers[spec.index].read(keys[:, middle], values[:, middle], rank)
        mixed = [
            torch.cat((given[:, :SINKS], code, given[:, middle.stop :]), dim=1)
            for given, code in zip((keys, values), read, strict=True)
        ]
        spec.rotary.reserve(start + count)
        views.append(CodedView(spec, mixed[0], mixed[1], count))
    given = torch.tensor(ids[start : start + count])
    inputs = backbone._inputs(given, CacheView(views))
    logits = backbone.model(**inputs).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, given[1:])


def fit_tokens(
    backbone: HfBackbone,
    kind: str,
    layers: dict[int, LayerCodes],
    traces: Sequence[Trace],
    steps: int,
    seed: int,
) -> list[float]:
    """All layers together on the next token, gently; the loss of every step."""
    rng = random.Random(f"{seed}:{kind}:tokens")
    parameters = [parameter for layer in layers.values() for parameter in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    curve = []
    for _ in range(steps):
        trace = rng.choice(traces[:-HELD_OUT])
        start = rng.randrange(EARLIEST, trace["ids"].shape[0] - QUERIES)
        loss = token_loss(backbone, layers, trace, start, rng.choice(RANKS[kind][1:]), QUERIES)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        curve.append(round(float(loss), 4))
    return curve


def fit(
    given: argparse.Namespace, specs: Sequence[LayerSpec], weights_of: str, backbone: HfBackbone | None
) -> None:
    """The kinds and full-attention layers named; without a backbone on attention output alone."""
    found = [load_file(path) for path in sorted(given.traces.glob("trace-*.safetensors"))]
    traces = [trace for trace in found if len(trace["ids"]) > EARLIEST + QUERIES + 1]
    if len(traces) < HELD_OUT + 1:
        raise SystemExit(
            f"{given.traces} holds {len(traces)} traces of more than {EARLIEST + QUERIES} tokens; record at least "
            f"{HELD_OUT + 1}"
        )
    wanted = {int(part) for part in given.layers.split(",") if part}
    full = [spec for spec in specs if spec.window is None]
    path = given.out / "curves.json"
    curves: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for kind in given.kinds.split(","):
        layers, about = _known(given, kind), curves.setdefault(kind, {"attention": {}, "next_token": []})
        for spec in full:
            if not wanted or spec.index in wanted:
                layers[spec.index], told = fit_layer(spec, kind, traces, given.seconds, given.seed)
                about["attention"][str(spec.index)] = told
                say(f"  {kind}, layer {spec.index}: {told}")
        saved = _save(given, kind, layers, weights_of)
        if given.token_steps and backbone is not None:
            about["next_token"] = fit_tokens(backbone, kind, layers, traces, given.token_steps, given.seed)
            saved = _save(given, kind, layers, weights_of)
        about["error_after"] = {
            str(spec.index): _held_out(spec, layers[spec.index], traces[-HELD_OUT:], RANKS[kind])
            for spec in full
            if spec.index in layers
        }
        about["contexts"] = len(traces)
        path.write_text(json.dumps(curves, indent=1) + "\n")
        say(f"  {kind}: {saved.stat().st_size:,} bytes; {about['error_after']}")


def _known(given: argparse.Namespace, kind: str) -> dict[int, LayerCodes]:
    """The layers of an earlier call, trained further by none unless named again."""
    if not (given.out / f"{kind}.safetensors").exists():
        return {}
    found = LearnedWeights.load(kind, LEARNED_TYPES[kind].layer_type, given.out).layers
    for layer in found.values():
        layer.requires_grad_(True)
    return dict(found)


EQUAL = ((8, 24, 48), (16, 48, 96), (32, 96, 0))
"""Ranks of SVD (blocks of 128 tokens, width 256), projection and autoencoder at the same bytes; 0: not trained."""


@torch.no_grad()
def compare(given: argparse.Namespace, specs: Sequence[LayerSpec]) -> list[dict[str, Any]]:
    """Attention error of held-out contexts at equal bytes: SVD, weighted SVD and what was trained, by layer."""
    traces = [load_file(path) for path in sorted(given.traces.glob("trace-*.safetensors"))]
    traces = [trace for trace in traces if len(trace["ids"]) > EARLIEST + QUERIES + 1][-HELD_OUT:]
    learned = {kind: _known(given, kind) for kind in LEARNED_TYPES}
    rows = []
    for ranks in EQUAL:
        for name, rank in zip(("svd", "weighted_svd", *LEARNED_TYPES), (ranks[0], *ranks), strict=True):
            row: dict[str, Any] = {"method": name, "rank": rank, "bytes_of_svd_rank": ranks[0]}
            for spec in (spec for spec in specs if spec.window is None):
                if name in learned and (not rank or spec.index not in learned[name]):
                    continue
                errors = []
                for trace in traces:
                    layer = learned[name][spec.index] if name in learned else Blocks(spec, name, rank, trace)
                    start = trace["ids"].shape[0] - QUERIES - 1
                    start -= (start - RECENT - SINKS) % 128  # whole blocks: nobody keeps a rest raw
                    errors.append(float(attention_loss(spec, layer, trace, start, rank)) ** 0.5)
                row[f"layer_{spec.index}"] = round(sum(errors) / len(errors), 4)
            rows.append(row)
            say(json.dumps(row))
    return rows


class Blocks:
    """SVD and weighted SVD, block by block, as a cache evicts; read like learned codes."""

    def __init__(self, spec: LayerSpec, name: str, rank: int, trace: Trace) -> None:
        self._compressor = COMPRESSORS[name](spec, CacheConfig(compressor=name, rank=rank))
        queries = trace[f"{spec.index}.queries"].float()
        for step in queries[:, : -QUERIES - 1].split(128, dim=1):  # type: ignore[no-untyped-call]
            self._compressor.observe(step)

    def read(self, keys: Tensor, values: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """See LayerCodes.read; a last block of fewer than 128 tokens stays raw."""
        whole = keys.shape[1] // 128 * 128
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for at in range(0, whole, 128):
            factors = self._compressor.compress(keys[:, at : at + 128], values[:, at : at + 128])
            for part, factor in zip(parts, factors, strict=True):
                part.append(factor.unpack())
        return (
            torch.cat([*parts[0], keys[:, whole:]], dim=1),
            torch.cat([*parts[1], values[:, whole:]], dim=1),
        )


def _save(given: argparse.Namespace, kind: str, layers: dict[int, LayerCodes], weights_of: str) -> Path:
    about = {"trained_by": "infra/training/compressors.py", "seed": str(given.seed)}
    return LearnedWeights(kind, layers, weights_of, about).save(given.out)


def shape_of_gemma() -> tuple[list[LayerSpec], str]:
    """The layers of gemma-3-270m without its weights, and whose weights its traces are of.

    Attention's loss needs heads and rotary angles alone. The identity is that of the shipped ranker's model.
    """
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from models.cache.ranker import Ranker
    from models.hf import gemma_gguf
    from models.hf.loading import layer_specs
    from models.shipped import RANKER

    config = json.loads((gemma_gguf.prepared() / "config.json").read_text())
    slim = Gemma3TextConfig(**config | {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8})
    return layer_specs(Gemma3ForCausalLM(slim)), Ranker.load(RANKER).weights_of


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["record", "fit", "compare"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--contexts", type=int, default=12)
    parser.add_argument("--kinds", default="projection,autoencoder")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a layer's first stage")
    parser.add_argument("--token-steps", type=int, default=40, help="of the second stage; 0 needs no weights")
    parser.add_argument("--layers", default="", help="train these alone, keep the others of --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="gemma-3-270m")
    given = parser.parse_args(arguments)
    if given.verb == "compare":
        if given.out is None:
            parser.error("compare needs --out, the folder of what was trained")
        rows = compare(given, shape_of_gemma()[0])
        path = given.out / "curves.json"
        curves = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(curves | {"equal_bytes": rows}, indent=1) + "\n")
        return
    if given.verb == "fit":
        if given.out is None:
            parser.error("fit needs --out, a folder")
        given.out.mkdir(parents=True, exist_ok=True)
        if given.token_steps == 0 and given.model == "gemma-3-270m":
            fit(given, *shape_of_gemma(), None)
            return
    elif given.data is None:
        parser.error("record needs --data, the data folder")
    backbone = HfBackbone.load(HfConfig(model=given.model, adapter="none", device="cpu"))
    if given.verb == "record":
        record(backbone, given.data, given.traces, given.contexts)
    else:
        fit(given, backbone.specs, base_identity(backbone.identity), backbone)


if __name__ == "__main__":
    main()
