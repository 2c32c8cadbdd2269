"""Times of decoding through a session's cache: one operation after another, captured, and of evictions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from models.cache.eviction import begun
from models.cache.full_layer import RotatingLayer
from models.cache.rotating import RotatingCompressiveCache
from models.hf import HfBackbone
from models.hf.session_decoding import SessionDecoding

ANSWERED = 64


def decode_captured(
    backbone: HfBackbone, cache: RotatingCompressiveCache, count: int, ids: Sequence[int]
) -> dict[str, float]:
    """Milliseconds a token of the captured step, alone and with all that falls due between steps; on a copy.

    `captured…` with latents unpacked, `fused…` with latents read as factors (nothing where that cannot be). `ids`
    is what came out one operation after another: how many agree before the first that does not. Nothing where
    steps are not captured, or the cache has tokens that wait.
    """
    steps, found = backbone.steps, dict[str, float]()
    wanted = steps.fused_latents
    for name, fused in (("captured", False), ("fused", True)):
        steps.fused_latents = fused
        found |= _captured(backbone, cache, count, ids, name)
    steps.fused_latents = steps.fused_latents and wanted  # it is off where the model cannot be read so
    return found


def _captured(
    backbone: HfBackbone, cache: RotatingCompressiveCache, count: int, ids: Sequence[int], name: str
) -> dict[str, float]:
    if not backbone.steps.enabled or cache.pending:
        return {}
    token = torch.ones(1, dtype=torch.int64, device=backbone.device)
    with SessionDecoding(backbone, [cache.fork()]) as decoding:
        if not decoding.step.captured or decoding.fused != (name == "fused"):
            return {}
        found = decoding.run(token, len(ids))[0].tolist()
        agreeing = next(
            (at for at, pair in enumerate(zip(ids, found, strict=True)) if pair[0] != pair[1]), len(ids)
        )
        began = now(backbone)
        decoding.run(token, count)
        whole = now(backbone) - began
        alone = []
        for _ in range(5):
            decoding.step.memory.step.zero_()  # it has room for a block's tokens
            began = now(backbone)
            for _ in range(cache.config.evict_block):
                decoding.step.run()
            alone.append((now(backbone) - began) / cache.config.evict_block)
    return {
        f"{name}_ms": round(1000 * statistics.median(alone), 4),
        f"{name}_with_evictions_ms": round(1000 * whole / count, 4),
        name: count,
        f"{name}_ids_agreeing": agreeing,
        f"{name}_ids_compared": len(ids),
        f"{name}_buffer_bytes": decoding.step.memory.nbytes,
    }


def decode(
    backbone: HfBackbone, cache: RotatingCompressiveCache, count: int
) -> tuple[list[float], list[bool], list[int]]:
    """Seconds of each of `count` greedy steps read into the cache, whether an eviction fell in it, and the ids.

    Works on a copy, so that what is read next does not depend on it.
    """
    fork = cache.fork()
    layers = [layer for layer in fork.stored if isinstance(layer, RotatingLayer)]
    token = torch.ones(1, dtype=torch.int64, device=backbone.device)
    times: list[float] = []
    fell: list[bool] = []
    ids: list[int] = []
    for _ in range(count):
        before = [layer.blocks for layer in layers]
        began = now(backbone)
        with torch.no_grad():
            logits = backbone.model(**backbone._inputs(token, fork), logits_to_keep=1).logits
        token = logits[0, -1:].argmax(-1)
        times.append(now(backbone) - began)
        fell.append([layer.blocks for layer in layers] != before)
        ids.append(int(token))
    return times, fell, ids


def answer_ms(
    backbone: HfBackbone, cache: RotatingCompressiveCache, prompt: Sequence[int]
) -> dict[str, float]:
    """Milliseconds a token of an answer to the session, as it is and one operation after another."""
    found: dict[str, float] = {}
    before = backbone.steps.enabled
    for name, enabled in (("answer_captured_ms", True), ("answer_ms", False)):
        if enabled and not before:
            continue
        backbone.steps.enabled = enabled
        for _ in range(2):  # the first one captures
            given = backbone.generate(prompt, cache, ANSWERED)
            if next(given, None) is None:
                break
            began = now(backbone)
            count = sum(1 for _ in given)
            spent = now(backbone) - began
        else:
            if count >= 4:
                found[name] = round(1000 * spent / count, 4)
    backbone.steps.enabled = before
    return found


def eviction_ms(backbone: HfBackbone, cache: RotatingCompressiveCache, times: int, *, ahead: bool) -> float:
    """Median milliseconds for one eviction in all full-attention layers, ring refilled in between untimed.

    With `ahead` as decoding does it: the block's factors were begun after the eviction before and are known (a
    block's tokens were decoded meanwhile; here that is waited for untimed), and beginning the next block's counts.
    """
    fork = cache.fork()
    layers = [layer for layer in fork.stored if isinstance(layer, RotatingLayer)]
    for layer in layers:
        if layer._in_ring < layer.config.evict_block:
            raise ValueError(
                f"layer {layer.spec.index} holds {layer._in_ring} tokens in its ring, fewer than a block of "
                f"{layer.config.evict_block}; read more tokens first"
            )
    found = []
    for _ in range(times + 3):
        began = now(backbone)
        with torch.no_grad():
            for layer in layers:
                layer._evict()
                if ahead:
                    layer._leaving = begun(layer)
        found.append(now(backbone) - began)
        for layer in layers:
            if layer._leaving is not None:
                layer._leaving.vectors.wait()
        for layer in layers:  # the places that were emptied count as refilled
            layer.seen += layer.config.evict_block
    return 1000 * statistics.median(found[3:])


def now(backbone: HfBackbone) -> float:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
