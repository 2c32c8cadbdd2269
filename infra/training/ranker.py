"""Train the ranker of the cache (models/cache/ranker.py): record traces, then fit a small network a layer.

    python -m infra.training.ranker --data FOLDER --out FOLDER [--traces FOLDER] [--seconds 400]

Recording takes most of the time (a minute for each 15,000 tokens on one CPU core); traces are kept, so a run that
`--seconds` ends early goes on where it stopped. `--data` is the data folder (qa/, corpus/, pretrain/). Exit code 5:
recording is not complete yet, call again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.console import say
from infra.training.ranker_traces import contexts, record
from models.cache.ranker import (
    NUM_PLACE_FEATURES,
    LayerRanker,
    Ranker,
    base_identity,
    context_features,
    kept_mass,
    log_rank_loss,
)
from models.cache.spec import LayerSpec
from models.hf import HfBackbone, HfConfig

SHARES = (0.5, 0.25, 0.1, 0.05)
UNFINISHED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerTraining:
    """How the networks are fitted."""

    steps: int = field(default=600, metadata={"help": "steps a layer; the best of twelve looks is kept"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of AdamW, falling to 0 along a cosine"})
    weight_decay: float = field(default=0.1, metadata={"help": "of AdamW"})
    drawn: int = field(default=384, metadata={"help": "tokens drawn by mass a step, whose ranks are lowered"})
    others: int = field(default=768, metadata={"help": "tokens drawn evenly a step, to estimate ranks"})
    place_dropout: float = field(
        default=0.5, metadata={"help": "share of steps that hide places, so that streams can be ranked too"}
    )
    sinks: int = field(default=4, metadata={"help": "first tokens that are never ranked"})
    dev_every: int = field(
        default=5, metadata={"help": "every such context is held out to pick the best step"}
    )
    seed: int = field(default=0, metadata={"help": "of weights and draws"})

    def __post_init__(self) -> None:
        for name in ("steps", "drawn", "others", "dev_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if not 0 <= self.place_dropout <= 1:
            raise ValueError(f"place_dropout: given {self.place_dropout}; allowed: 0 to 1")


def record_all(
    backbone: HfBackbone, data: Path, folder: Path, *, seed: int, scale: float, until: float, at_most: int = 0
) -> bool:
    """Record what is missing in `folder`; False where the clock passed `until` before the end."""
    folder.mkdir(parents=True, exist_ok=True)
    for context in itertools.islice(contexts(data, seed, scale), at_most or None):
        path = folder / f"{context.name}.safetensors"
        if path.exists():
            continue
        if time.monotonic() > until:
            return False
        began = time.monotonic()
        tensors = record(backbone, context)
        part = path.with_suffix(".part")
        save_file(tensors, str(part), metadata={"model": backbone.identity})
        part.rename(path)
        tokens = next(iter(tensors.values())).shape[1]
        say(f"  {context.name}: {tokens} tokens in {time.monotonic() - began:.0f} s")
    return True


def train(
    specs: Sequence[LayerSpec], traces: Sequence[Mapping[str, Tensor]], config: RankerTraining
) -> tuple[dict[int, LayerRanker], dict[str, Any]]:
    """A network for every full layer, and its curves: mass kept on held-out contexts by step."""
    layers: dict[int, LayerRanker] = {}
    curves: dict[str, Any] = {}
    for spec in specs:
        if spec.window is None:
            layers[spec.index], curves[str(spec.index)] = _train_layer(spec, traces, config)
            say(f"  layer {spec.index}: {curves[str(spec.index)]['best']}")
    return layers, curves


def _train_layer(
    spec: LayerSpec, traces: Sequence[Mapping[str, Tensor]], config: RankerTraining
) -> tuple[LayerRanker, dict[str, Any]]:
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    ready = []
    for trace in traces:
        given = context_features(spec, *(trace[f"layer{spec.index}.{x}"].float() for x in ("keys", "values")))
        ready.append((given[:, config.sinks :], trace[f"layer{spec.index}.mass"][:, config.sinks :]))
    dev = ready[:: config.dev_every] if len(ready) > 1 else ready
    fit = [pair for at, pair in enumerate(ready) if at % config.dev_every] or ready
    layer = LayerRanker(spec.num_kv_heads, ready[0][0].shape[-1])
    layer.standardise(torch.cat([given for given, _ in fit], dim=1))
    optimizer = torch.optim.AdamW(layer.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    curve: list[dict[str, Any]] = []
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})
    every = max(1, config.steps // 12)
    for step in range(config.steps + 1):
        if step % every == 0 or step == config.steps:
            kept = _kept(layer, dev)
            curve.append({"step": step, **kept})
            mean = sum(kept.values()) / len(kept)
            if mean > best[0]:
                best = (mean, {name: t.clone() for name, t in layer.state_dict().items()})
        if step == config.steps:
            break
        given, mass = fit[rng.randrange(len(fit))]
        drawn = torch.multinomial(mass.clamp_min(1e-12), config.drawn, replacement=True, generator=generator)
        others = torch.randint(given.shape[1], (config.others,), generator=generator)
        seen = torch.cat((_take(given, drawn), given[:, others]), dim=1)
        if rng.random() < config.place_dropout:
            seen = seen.clone()
            seen[..., -NUM_PLACE_FEATURES:] = float("nan")
        scores = layer(seen)
        loss = log_rank_loss(scores[:, : config.drawn], scores[:, config.drawn :], given.shape[1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    layer.load_state_dict(best[1])
    chosen = max(curve, key=lambda row: sum(v for k, v in row.items() if k != "step"))
    return layer.requires_grad_(False).eval(), {
        "curve": curve,
        "best": chosen,
        "no_place": _kept(layer, _without_place(dev)),
    }


def _take(x: Tensor, which: Tensor) -> Tensor:
    return x.gather(1, which[..., None].expand(-1, -1, x.shape[-1]))


@torch.no_grad()
def _kept(layer: LayerRanker, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean share of the mass that each budget keeps."""
    scored = [(layer(given), mass) for given, mass in pairs]
    return {
        f"kept_{round(100 * share)}": round(sum(kept_mass(*pair, share) for pair in scored) / len(scored), 4)
        for share in SHARES
    }


def _without_place(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    hidden = []
    for given, mass in pairs:
        blind = given.clone()
        blind[..., -NUM_PLACE_FEATURES:] = float("nan")
        hidden.append((blind, mass))
    return hidden


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the ranker")
    parser.add_argument("--traces", type=Path, help="folder of recorded traces; default: OUT/traces")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the contexts (0.2 for a quick look)"
    )
    parser.add_argument("--contexts", type=int, default=0, help="the first so many contexts only (0: all)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop recording after this long")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    until = time.monotonic() + given.seconds
    config = RankerTraining(steps=given.steps, seed=given.seed)
    folder = given.traces or given.out / "traces"
    loaded = HfConfig(model=given.model, adapter="none", device=given.device, threads=given.threads)
    backbone = HfBackbone.load(loaded)
    if not record_all(
        backbone, given.data, folder, seed=given.seed, scale=given.scale, until=until,
        at_most=given.contexts,
    ):  # fmt: skip
        say("recording is not complete; call again with the same --traces")
        return UNFINISHED
    paths = sorted(folder.glob("*.safetensors"))
    traces = [load_file(str(path)) for path in paths]
    began = time.monotonic()
    layers, curves = train(backbone.specs, traces, config)
    about = {
        "contexts": len(paths),
        "tokens": sum(next(iter(trace.values())).shape[1] for trace in traces),
        "training_s": round(time.monotonic() - began, 1),
        **asdict(config),
    }
    told = {name: str(value) for name, value in about.items()}
    path = Ranker(layers, base_identity(backbone.identity), told).save(given.out)
    (given.out / "curves.json").write_text(json.dumps({"about": about, "layers": curves}, indent=1) + "\n")
    say(f"{path}: {path.stat().st_size} bytes from {about['contexts']} contexts, {about['tokens']} tokens")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
