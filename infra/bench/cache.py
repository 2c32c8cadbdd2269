"""Bench `cache`: what the rotating cache costs and keeps on Gemma-3-270M, on a CPU or one GPU.

    python -m infra.bench.cache speed|attention|likelihood|needle --data FOLDER [--out FILE.json]

`speed`: reading and answering against transformers' own DynamicCache and the floor (infra/bench/cache_speed.py).
`attention`: error of the attention output of the last 256 queries when the middle of 4,096 tokens is compressed.
`likelihood`: nats per token of a text's last 256 tokens, everything before them read through the cache.
`needle`: a number hidden in an essay longer than the ring, asked for afterwards.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import zstandard

from infra.bench.cache_speed import ratios as ratios_of_speed
from infra.bench.cache_speed import rows as rows_of_speed
from infra.bench.measure import environment
from infra.console import progress, say
from models.cache import CacheConfig
from models.cache.config import LEARNED
from models.cache.full_layer import RotatingLayer
from models.cache.learned import LearnedWeights, learned_folder
from models.cache.rotating import RotatingCompressiveCache
from models.cache.spec import LayerSpec
from models.hf import HfBackbone, HfConfig
from models.hf.attention import attend
from models.hf.backbone import LEARNED_TYPES
from models.hf.question_bank import record
from models.shipped import COMPRESSORS
from pipeline.errors import UsageError

SINKS, MIDDLE_END, LENGTH, QUERIES = 4, 3076, 4096, 256


def texts(path: Path) -> Iterator[str]:
    """Title and text of the records of a `.jsonl.zst` file, in order."""
    with path.open("rb") as raw:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), "utf-8"):
            record = json.loads(line)
            yield f"{record['title']}\n{record['text']}\n\n"


def tokens(backbone: HfBackbone, path: Path, count: int, skip: int = 0) -> list[int]:
    """The first `count` ids of the file's records from number `skip` on, one after another."""
    ids = list(backbone.bos)
    for number, text in enumerate(texts(path)):
        if number >= skip:
            ids += backbone.encode(text)
        if len(ids) >= count:
            return ids[:count]
    raise ValueError(f"{path} holds fewer than {count} tokens after record {skip}")


def speed(backbone: HfBackbone, data: Path) -> Iterator[dict[str, Any]]:
    """See infra.bench.cache_speed, over 2,048 tokens of news."""
    return rows_of_speed(backbone, tokens(backbone, data / "news" / "reuters_2009_2012.jsonl.zst", 2048))


ATTENTION_METHODS: dict[str, dict[str, Any]] = {
    "middle dropped": {"compressor": "drop"},
    "svd, rank 8": {"rank": 8},
    "svd, rank 16": {"rank": 16},
    "svd, rank 32": {},
    "svd, rank 64": {"rank": 64},
    "svd, rank 32, blocks of 256": {"evict_block": 256},
    "svd, rank 16, blocks of 256": {"evict_block": 256, "rank": 16},
    "svd in the block's frame, rank 32": {"key_frame": "within_block"},
    "weighted svd, rank 8": {"compressor": "weighted_svd", "rank": 8},
    "weighted svd, rank 16": {"compressor": "weighted_svd", "rank": 16},
    "weighted svd, rank 32": {"compressor": "weighted_svd"},
    # the same bytes as svd of rank 8, 16 and 32: codes alone, the readers are the model's
    "projection, rank 24": {"compressor": "projection", "rank": 24},
    "projection, rank 48": {"compressor": "projection", "rank": 48},
    "projection, rank 96": {"compressor": "projection", "rank": 96},
    "autoencoder, rank 48": {"compressor": "autoencoder", "rank": 48},
    "autoencoder, rank 96": {"compressor": "autoencoder", "rank": 96},
    "svd, rank 8 + 16 of 128 by key_difference": {"rank": 8, "heavy": 1, "heavy_per_block": 16},
    "svd, rank 8 + 16 of 128 by attention_mass": {
        "rank": 8,
        "heavy": 1,
        "heavy_per_block": 16,
        "heavy_scorer": "attention_mass",
    },
    "16 of 128 by attention_mass alone": {
        "compressor": "drop",
        "heavy": 1,
        "heavy_per_block": 16,
        "heavy_scorer": "attention_mass",
    },
    "16 of 128 by question_bank alone": {
        "compressor": "drop",
        "heavy": 1,
        "heavy_per_block": 16,
        "heavy_scorer": "question_bank",
    },
    "16 of 128 by key_difference alone": {"compressor": "drop", "heavy": 1, "heavy_per_block": 16},
    "32 of 128 by attention_mass alone": {
        "compressor": "drop",
        "heavy": 1,
        "heavy_per_block": 32,
        "heavy_scorer": "attention_mass",
    },
}


@torch.no_grad()
def attention(backbone: HfBackbone, data: Path) -> Iterator[dict[str, Any]]:
    """Relative error of the attention output, layer by layer, with the hidden states of the exact model."""
    ids = tokens(backbone, data / "news" / "reuters_2009_2012.jsonl.zst", LENGTH)
    exact = CacheConfig(ring=8192, compressor="drop", read_block=128)
    cache = backbone.new_cache(exact)
    recorded: dict[int, list[torch.Tensor]] = {}
    for layer in cache.stored:
        if isinstance(layer, RotatingLayer):
            recorded[layer.spec.index] = []
            layer.watch = recorded[layer.spec.index].append
    with progress("tokens read exactly", LENGTH) as steps:
        for start in range(0, LENGTH, 4 * exact.read_block):
            piece = ids[start : start + 4 * exact.read_block]
            backbone.read(piece, cache)
            steps.advance(len(piece))
    say("  recording the question bank")
    bank = record(backbone)
    specs = {spec.index: replace(spec, questions=bank.get(spec.index)) for spec in backbone.specs}
    learned = _learned(backbone)
    for name, changes in ATTENTION_METHODS.items():
        kind = changes.get("compressor", "svd")
        if kind in LEARNED and kind not in learned:
            say(f"  {name}: no trained weights at {COMPRESSORS}")
            continue
        blocks = (MIDDLE_END - SINKS) // changes.get("evict_block", 128)
        heavies = changes.get("heavy_per_block", 0) * blocks
        config = CacheConfig(
            ring=LENGTH,
            latent_blocks=blocks,
            **{**changes, "heavy": heavies},  # ring: no eviction but ours
        )
        row: dict[str, Any] = {"method": name}
        for layer in cache.stored:
            if isinstance(layer, RotatingLayer):
                queries = torch.cat(recorded[layer.spec.index], dim=1)
                spec = replace(specs[layer.spec.index], learned=learned.get(kind))
                error, share = _attention_error(layer, spec, config, queries, blocks)
                row[f"layer_{layer.spec.index}"] = round(error, 4)
                row["share_of_middle"] = round(share, 4)
        yield row


def _learned(backbone: HfBackbone) -> dict[str, LearnedWeights]:
    """The shipped learned compressors that belong to this model."""
    found = {}
    for kind in LEARNED:
        try:
            weights = LearnedWeights.load(kind, LEARNED_TYPES[kind].layer_type, learned_folder("shipped"))
            weights.check(backbone.identity)
        except ValueError:
            continue
        found[kind] = weights
    return found


def _attention_error(
    source: RotatingLayer, spec: LayerSpec, config: CacheConfig, queries: torch.Tensor, blocks: int
) -> tuple[float, float]:
    """Read the recorded pairs into a layer of the method, evict the middle, compare the last queries' output."""
    pairs = [
        torch.cat(pair, dim=1)
        for pair in zip(source.sinks.read(0, SINKS), source.ring.read(0, LENGTH - SINKS), strict=True)
    ]
    layer = RotatingLayer(spec, config, torch.float32)
    if layer.compressor is not None:  # weigh by the distances at which the last queries read the middle
        recent = replace(config, ring=LENGTH - MIDDLE_END, latent_blocks=blocks)
        layer.compressor = type(layer.compressor)(spec, recent)
    for start in range(0, LENGTH, 128):
        layer.append(*(pair[:, start : start + 128] for pair in pairs))
        layer.observe(queries[:, start : start + 128])
        while layer._in_ring > LENGTH - MIDDLE_END:  # as a ring of that size would: no query from later
            layer._evict()
    assert layer.blocks == blocks
    held, values, places, next_place = layer.visible()
    spec.rotary.reserve(LENGTH)
    asked = torch.arange(LENGTH - QUERIES, LENGTH)
    turned = spec.rotary.turn(queries[:, -QUERIES:], asked)[None]
    true_keys = spec.rotary.turn(pairs[0], torch.arange(LENGTH))[None]
    mask = torch.arange(LENGTH) <= asked[:, None]
    exact = attend(turned, true_keys, pairs[1][None], mask, spec.scaling)
    asked = asked + next_place - LENGTH  # where the method's cache has these queries
    turned = spec.rotary.turn(queries[:, -QUERIES:], asked)[None]
    mask = places[0] <= asked[:, None]
    ours = attend(turned, spec.rotary.turn(held, places)[None], values[None], mask, spec.scaling)
    kept = sum(
        tensor.nbytes
        for name, tensor in layer.tensors().items()
        if name.startswith(("latents.key", "latents.value", "heavy.keys", "heavy.values"))
    )
    middle = 2 * (MIDDLE_END - SINKS) * spec.head_dim * 4 * spec.num_kv_heads
    return float((ours - exact).norm() / exact.norm()), kept / middle


def equal_bytes() -> dict[str, CacheConfig]:
    """Methods whose full layers hold close to the same bytes: 1,280 raw pairs each."""
    by_mass: dict[str, Any] = {"heavy_scorer": "attention_mass"}
    alone: dict[str, Any] = {"compressor": "drop", "heavy": 768, "heavy_per_block": 48}
    return {
        "everything": CacheConfig(ring=32_768, compressor="drop"),
        "window + sinks": CacheConfig(ring=1280, compressor="drop"),
        "svd, rank 32": CacheConfig(ring=512),
        "weighted svd, rank 32": CacheConfig(ring=512, compressor="weighted_svd"),
        "svd, rank 16 + heavy, key_difference": CacheConfig(ring=512, rank=16, heavy=384, heavy_per_block=24),
        "svd, rank 16 + heavy, attention_mass": CacheConfig(
            ring=512, rank=16, heavy=384, heavy_per_block=24, **by_mass
        ),
        "svd, rank 16 + heavy, question_bank": CacheConfig(
            ring=512, rank=16, heavy=384, heavy_per_block=24, heavy_scorer="question_bank"
        ),
        "heavy only, key_difference": CacheConfig(ring=512, **alone),
        "heavy only, question_bank": CacheConfig(ring=512, **alone, heavy_scorer="question_bank"),
        "heavy only, attention_mass": CacheConfig(ring=512, **alone, **by_mass),
    }


def likelihood(backbone: HfBackbone, data: Path) -> Iterator[dict[str, Any]]:
    """Nats per token of the last 256 of 2,048 tokens, mean over two texts."""
    path = data / "news" / "reuters_2009_2012.jsonl.zst"
    parts = [tokens(backbone, path, 2048, skip) for skip in (0, 1000)]
    for name, config in equal_bytes().items():
        nats = []
        for ids in parts:
            cache = backbone.new_cache(config)
            backbone.read(ids[:-QUERIES], cache)
            nats.append(
                -backbone.score(ids[-QUERIES : -QUERIES + 1], ids[-QUERIES + 1 :], cache) / (QUERIES - 1)
            )
        yield {
            "method": name,
            "nats": round(statistics.mean(nats), 4),
            "each": [round(n, 4) for n in nats],
            "full_layer_bytes": _full_layer_bytes(cache),
        }


def needle(backbone: HfBackbone, data: Path, cases: int = 5, length: int = 2048) -> Iterator[dict[str, Any]]:
    """Exact answers and the likelihood of the digits; depth runs over the part that every method evicted."""
    essays = tokens(backbone, data / "longdoc" / "pg_essays.jsonl.zst", length * (cases + 1))
    for name, config in equal_bytes().items():
        exact, nats = 0, []
        for case in range(cases):
            number = str(1_000_000 + (case * 7_654_321 + 1_234_567) % 8_999_999)
            hidden = backbone.encode(f"\nOne of the special magic numbers for harbour is: {number}.\n")
            text = essays[1 + case * length : 1 + (case + 1) * length]
            at = int(length * (case + 0.5) / cases * 0.3)  # the first 30%: outside the largest ring
            ids = [*backbone.bos, *text[:at], *hidden, *text[at:]]
            cache = backbone.new_cache(config)
            backbone.read(ids, cache)
            question = backbone.encode(
                "\nWhat is the special magic number for harbour? The special magic number for harbour is:"
            )
            answer = backbone.encode(f" {number}")
            said = backbone.decode(backbone.generate(question, cache, max_new_tokens=len(answer)))
            exact += said.strip().startswith(number)
            nats.append(-backbone.score(question, answer, cache))
        yield {
            "method": name,
            "exact": exact,
            "cases": cases,
            "nats_of_answer": round(statistics.mean(nats), 2),
            "full_layer_bytes": _full_layer_bytes(cache),
        }


def _full_layer_bytes(cache: RotatingCompressiveCache) -> int:
    return cache.nbytes - cache.nbytes_by_part()["sliding"]


def run(
    data: str = "",
    parts: str = "attention,speed",
    model: str = "gemma-3-270m",
    device: str = "cpu",
    threads: int = 2,
) -> dict[str, Any]:
    """Rows of the parts named; ratios: eviction's share, and errors against plain SVD at equal bytes."""
    folder = data or os.environ.get("DYSRA_DATA", "")
    if not Path(folder, "news").is_dir():
        raise UsageError(
            f"data: given {folder!r}; name the folder of real texts by --set data=DIR or DYSRA_DATA"
        )
    chosen = [part.strip() for part in parts.split(",")]
    if unknown := sorted(set(chosen) - set(BENCHES)):
        raise UsageError(f"parts: unknown {', '.join(unknown)}; allowed: {', '.join(BENCHES)}")
    backbone = HfBackbone.load(HfConfig(model=model, adapter="none", device=device, threads=threads))
    rows: list[dict[str, Any]] = []
    for part in chosen:
        for row in BENCHES[part](backbone, Path(folder)):
            rows.append({"part": part, **row})
            say(json.dumps(rows[-1]))
    return {
        "bench": "cache",
        **environment(),
        "model": backbone.identity,
        "rows": rows,
        "ratios": ratios(rows),
    }


EQUAL = {8: (24, 48), 16: (48, 96), 32: (96, None)}
"""Rank of SVD, and of projection and autoencoder at the same bytes (blocks of 128 tokens, width 256)."""


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """`attention_error_<method>_over_svd_<rank>`: mean over layers, at equal bytes; those of `speed`."""
    errors = {
        row["method"]: statistics.mean(value for name, value in row.items() if name.startswith("layer_"))
        for row in rows
        if row["part"] == "attention"
    }
    found: dict[str, float] = {}
    for rank, (projection, autoencoder) in EQUAL.items():
        base = errors.get(f"svd, rank {rank}")
        others = {
            "weighted_svd": f"weighted svd, rank {rank}",
            "projection": f"projection, rank {projection}",
            "autoencoder": f"autoencoder, rank {autoencoder}",
        }
        for name, method in others.items():
            if base and method in errors:
                found[f"attention_error_{name}_over_svd_{rank}"] = round(errors[method] / base, 4)
    return found | ratios_of_speed([row for row in rows if row["part"] == "speed"])


BENCHES = {"speed": speed, "attention": attention, "likelihood": likelihood, "needle": needle}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("DYSRA_DATA"), help="folder of real texts"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file of all results, kept bench by bench")
    given = parser.parse_args()
    if given.data is None:
        parser.error("name the folder of texts by --data or DYSRA_DATA")
    backbone = HfBackbone.load(HfConfig(adapter="none", device=given.device, threads=given.threads))
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=20)
    about = {
        "device": f"{platform.machine()}, {given.threads} threads",
        "torch": torch.__version__,
        "commit": git.stdout.strip(),
        "model": backbone.identity,
    }
    rows = []
    for row in BENCHES[given.bench](backbone, Path(given.data)):
        say(json.dumps(row))
        rows.append(row)
        if given.out:  # after every row: a long bench that is ended keeps what it has measured
            results = json.loads(given.out.read_text()) if given.out.is_file() else {"bench": "cache"}
            results[given.bench] = {**about, "rows": rows}
            given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
