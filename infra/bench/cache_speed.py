"""Bench `cache`, part `speed`: reading and answering through the rotating cache, its peer and the floor.

The peer is transformers' own DynamicCache over the same text, in turn with ours. The floor of a step is what no way
can go below on this device: the weights and the session's bytes at the rate of a large copy, or the step's products
at the rate of a large product. Times are medians with the lowest and highest beside; a step of reading has 128
tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from infra.bench.measure import device_rates, floor_ms
from infra.bench.session_bytes_decode import now
from infra.console import say
from models.cache import CacheConfig
from models.cache.full_layer import RotatingLayer
from models.cache.rotating import RotatingCompressiveCache
from models.hf import HfBackbone

PEER, OURS = "transformers DynamicCache", "svd"
RUNS, STEP, DECODED = 3, 128, 32


def ways() -> dict[str, CacheConfig | None]:
    """What is compared, by name; None is the peer."""
    found: dict[str, CacheConfig | None] = {PEER: None}
    for name in ("drop", "svd", "weighted_svd"):
        found[name] = CacheConfig(compressor=name)
    return found | {"svd, 256 heavy": CacheConfig(heavy=256)}


def rows(
    backbone: HfBackbone, ids: list[int], chosen: dict[str, CacheConfig | None] | None = None
) -> Iterator[dict[str, Any]]:
    """A row a way: ms of a step of reading, of an eviction and of a decoded token, spread and floors."""
    chosen = chosen or ways()
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in chosen}
    sizes: dict[str, int] = {}
    for run in range(RUNS):  # in turn, so that a busy machine touches all alike
        for name, config in chosen.items():
            say(f"  run {run + 1} of {RUNS}: {name}")
            if config is None:
                seconds[name].append(_plain_speed(backbone, ids))
            else:
                cache = backbone.new_cache(config)
                sizes[name] = cache.nbytes
                seconds[name].append(_our_speed(backbone, cache, ids))
    rates = device_rates(backbone.device, next(backbone.model.parameters()).dtype)
    pairs = sum(2 * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize for spec in backbone.specs)
    for name, runs in seconds.items():
        read, evict, decode = (statistics.median(column) for column in zip(*runs, strict=True))
        steps = -(-len(ids) // STEP)
        step_floor, token_floor = floors(backbone, sizes.get(name, pairs * len(ids)), rates)
        yield {
            "way": name,
            **_spread("step", [1e3 * run[0] / steps for run in runs]),
            "step_floor_ms": round(step_floor, 5),
            **_spread("decode", [1e3 * run[2] / DECODED for run in runs]),
            "decode_floor_ms": round(token_floor, 5),
            "prefill_tokens_per_s": round(len(ids) / read, 1),
            "eviction_ms_a_step": round(evict * 1e3, 2),
            "eviction_share": round(evict / (read / steps), 4),
            "decode_tokens_per_s": round(DECODED / decode, 2),
            "session_bytes": sizes.get(name),
        }


def floors(backbone: HfBackbone, held: int, rates: tuple[float, float]) -> tuple[float, float]:
    """Least ms of a step of reading and of a decoded token, beside `held` bytes of cache.

    Reading needs no logits, so neither the embedding's bytes nor its products; a decoded token needs both once.
    """
    embedding = backbone.model.get_input_embeddings().weight
    layers = [p for p in backbone.model.get_decoder().parameters() if p is not embedding]
    size = sum(p.numel() for p in layers)
    weights = sum(p.nbytes for p in layers)
    step = floor_ms(weights + held, 2 * STEP * size, *rates)
    return step, floor_ms(weights + embedding.nbytes + held, 2 * (size + embedding.numel()), *rates)


def ratios(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The default way over its floors and against the peer; `eviction_share_of_prefill`."""
    by = {row["way"]: row for row in found}
    if OURS not in by:
        return {}
    ours, out = by[OURS], dict[str, float]()
    for name, told in (("step", "prefill"), ("decode", "decode")):
        out[f"{told}_over_floor"] = round(ours[f"{name}_ms"] / ours[f"{name}_floor_ms"], 3)
        if PEER in by:
            out[f"{told}_speedup_over_dynamic_cache"] = round(by[PEER][f"{name}_ms"] / ours[f"{name}_ms"], 3)
    return out | {"eviction_share_of_prefill": ours["eviction_share"]}


def _spread(name: str, times: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_ms": round(statistics.median(times), 4),
        f"{name}_low_ms": round(min(times), 4),
        f"{name}_high_ms": round(max(times), 4),
    }


@torch.no_grad()
def _plain_speed(backbone: HfBackbone, ids: list[int]) -> tuple[float, float, float]:
    cache = DynamicCache(config=backbone.model.config)
    decoder = backbone.model.get_decoder()
    started = now(backbone)
    for start in range(0, len(ids), STEP):
        decoder(
            input_ids=torch.tensor([ids[start : start + STEP]], device=backbone.device), past_key_values=cache
        )
    read = now(backbone) - started
    token = ids[-1]
    started = now(backbone)
    for _ in range(DECODED):
        logits = backbone.model(
            torch.tensor([[token]], device=backbone.device), past_key_values=cache, logits_to_keep=1
        ).logits
        token = int(logits[0, -1].argmax())
    return read, 0.0, now(backbone) - started


def _our_speed(
    backbone: HfBackbone, cache: RotatingCompressiveCache, ids: list[int]
) -> tuple[float, float, float]:
    spent = [0.0]
    for layer in cache.stored:
        if isinstance(layer, RotatingLayer):
            _time_room(layer, spent)
    started = now(backbone)
    backbone.read(ids, cache)
    read = now(backbone) - started
    answer = backbone.generate(
        ids[-1:], cache, max_new_tokens=DECODED + 1, suppress_first=sorted(backbone.end_ids)
    )
    next(answer)  # the view and the prompt
    started = now(backbone)
    made = len(list(answer))
    evicting = max(int(row["evicted_blocks"]) for row in cache.stats().values())
    return read, spent[0] / max(1, evicting), (now(backbone) - started) / max(1, made) * DECODED


def _time_room(layer: RotatingLayer, spent: list[float]) -> None:
    plain = layer.make_room

    def timed(num_tokens: int) -> None:
        started = time.perf_counter()
        plain(num_tokens)
        spent[0] += time.perf_counter() - started

    layer.make_room = timed  # type: ignore[method-assign]
