"""Whether captured and eager decoding of a session differ by more than rounding, and where their ids part.

    python -m infra.bench.decode_agreement --out OUT.json [--model FOLDER] [--tokens 262144] [--count 64]

Reads a text that repeats into one session's cache, as infra.bench.session_bytes does, and then, from copies of that
one state, decodes the same `count` ids (the eager way's greedy ones) four times: captured and one operation after
another, each with the weights and the cache as they are and with both in float32. In float32 the two ways must give
the same ids and logits within `FLOAT32_BOUND`: position, order in the ring, masks and the moment of an eviction are
then the same. In a narrower type neither may be farther from the float32 logits than the other by more than
`FARTHER`; where their likeliest ids differ, the distance of the two best logits stands beside what rounding moves.
The same ids are decoded once more with latents read as factors (`fused`, backbone.fused_latents), under the same
bounds; on a GPU `times` has the milliseconds of a captured token with latents unpacked (`captured_ms`) and as
factors (`fused_ms`). Where the kernel cannot read a model's latents, `fused` is null and the log says why.
Ends with 1 where that does not hold. Without a GPU the fixed shapes run one operation after another too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.bench.measure import commit
from infra.bench.session_bytes import DECODED, reading_config, repeating_text
from infra.bench.session_bytes_decode import decode_captured
from infra.console import say
from models.cache import CacheConfig
from models.cache.full_layer import RotatingLayer
from models.cache.rotating import RotatingCompressiveCache
from models.hf import HfBackbone, HfConfig
from models.hf.session_decoding import SessionDecoding

FLOAT32_BOUND = 2e-3  # of a logit, of logits up to some 40: what sums in another order move
FARTHER = 1.25  # how much farther from float32 one way may be than the other, root mean square
COUNT = 64


@torch.no_grad()
def eager(
    backbone: HfBackbone, cache: RotatingCompressiveCache, token: int, told: Sequence[int] | None, count: int
) -> tuple[list[int], Tensor, list[int]]:
    """Ids that were read, the logits `[count, vocabulary]` after each, and the steps at which a block left.

    Each token is read into a copy of `cache` through its own update; without `told` the likeliest follows.
    """
    fork = cache.fork()
    layers = [layer for layer in fork.stored if isinstance(layer, RotatingLayer)]
    read, found, left = [token], [], []
    for at in range(count):
        before = [layer.blocks for layer in layers]
        ids = torch.tensor([read[at]], device=backbone.device)
        out = backbone.model(**backbone._inputs(ids, fork), logits_to_keep=1).logits[0, -1]
        found.append(out.clone())
        if [layer.blocks for layer in layers] != before:
            left.append(at)
        read.append(int(out.argmax()) if told is None else told[min(at + 1, count - 1)])
    return read[:count], torch.stack(found), left


def fixed(
    backbone: HfBackbone, cache: RotatingCompressiveCache, told: Sequence[int], *, fused: bool = False
) -> tuple[Tensor, bool, bool]:
    """The logits `[count, vocabulary]` after each of `told` in fixed shapes; whether captured, whether fused."""
    wanted, backbone.steps.fused_latents = backbone.steps.fused_latents, fused
    try:
        with SessionDecoding(backbone, [cache.fork()]) as decoding:
            return decoding.logits(torch.tensor([list(told)]))[0], decoding.step.captured, decoding.fused
    finally:
        backbone.steps.fused_latents = wanted


def widened(
    cache: RotatingCompressiveCache, wide: HfBackbone, config: CacheConfig
) -> RotatingCompressiveCache:
    """What `cache` holds, exactly, in a cache of a backbone in float32 over the same weights."""
    twin = wide.new_cache(config)
    if twin.model != cache.model:
        raise ValueError(f"the cache belongs to model {cache.model}, the float32 one is {twin.model}")
    twin.replace_by(cache)
    return twin


def compare(one: Tensor, other: Tensor) -> dict[str, Any]:
    """How far the logits `[count, vocabulary]` of two ways are apart, and where their likeliest ids differ."""
    a, b = one.float(), other.float()
    apart = (a - b).abs()
    best, other_id = a.topk(2, dim=-1).values, a.argmax(-1) != b.argmax(-1)
    parts = [
        {
            "step": at,
            "ids": [int(a[at].argmax()), int(b[at].argmax())],
            "margins": [round(_margin(x[at]), 6) for x in (a, b)],
            # how far the two ids' own logits moved against each other
            "moved": round(
                float((a[at] - b[at])[[int(a[at].argmax()), int(b[at].argmax())]].diff().abs()), 6
            ),
            "max_logit_difference": round(float(apart[at].max()), 6),
        }
        for at in other_id.nonzero()[:, 0].tolist()
    ]
    return {
        "max_logit_difference": round(float(apart.max()), 6),
        "rms_logit_difference": round(_rms(a - b), 6),
        "rms_by_step": [round(_rms(x), 6) for x in (a - b)],
        "smallest_margin": round(float((best[:, 0] - best[:, 1]).min()), 6),
        "largest_logit": round(float(a.abs().max()), 3),
        "same_likeliest": int((~other_id).sum()),
        "parts": parts,
    }


def check(
    backbone: HfBackbone,
    wide: HfBackbone,
    cache: RotatingCompressiveCache,
    config: CacheConfig,
    token: int,
    count: int = COUNT,
) -> dict[str, Any]:
    """The ways from one state and what their differences say; `ok` as the module's text has it."""
    told, narrow_eager, left = eager(backbone, cache, token, None, count)
    narrow_fixed, captured, _ = fixed(backbone, cache, told)
    narrow_fused, _, narrowly = fixed(backbone, cache, told, fused=True)
    wide_cache = cache if wide is backbone else widened(cache, wide, config)
    _, wide_eager, wide_left = eager(wide, wide_cache, token, told, count)
    wide_fixed, wide_captured, _ = fixed(wide, wide_cache, told)
    wide_fused, _, widely = fixed(wide, wide_cache, told, fused=True)
    found: dict[str, Any] = {
        "tokens": cache.tokens_seen,
        "blocks_left_at": left,
        "captured": captured and wide_captured,
        "float32": compare(wide_eager, wide_fixed),
        "ids_agreeing": _agreeing(narrow_eager, narrow_fixed),
    }
    fused = narrowly and widely
    found["fused"] = compare(wide_eager, wide_fused) if fused else None
    found["ok"] = left == wide_left and all(_one(each) for each in (found["float32"], found["fused"]) if each)
    if backbone.dtype != torch.float32:
        found["narrow"] = {"dtype": str(backbone.dtype).removeprefix("torch.")} | compare(
            narrow_eager, narrow_fixed
        )
        far = [_rms(x.float() - wide_eager) for x in (narrow_eager, narrow_fixed)]
        found["from_float32_rms"] = {"eager": round(far[0], 6), "fixed": round(far[1], 6)}
        if fused:
            farthest = _rms(narrow_fused.float() - wide_eager)
            found["from_float32_rms"]["fused"] = round(farthest, 6)
            found["ok"] = found["ok"] and farthest <= FARTHER * max(far)
        for part in found["narrow"]["parts"]:
            part["margin_float32"] = round(_margin(wide_eager[part["step"]]), 6)
        found["ok"] = found["ok"] and max(far) <= FARTHER * min(far)
    return found


def _one(exact: dict[str, Any]) -> bool:
    """Whether two ways in float32 are the same to rounding; two logits can be as good as equal there too."""
    tied = all(max(part["margins"]) <= 2 * FLOAT32_BOUND for part in exact["parts"])
    return tied and exact["max_logit_difference"] <= FLOAT32_BOUND


def _agreeing(one: Tensor, other: Tensor) -> int:
    """Greedy ids that agree before the first that does not."""
    differ = (one.argmax(-1) != other.argmax(-1)).nonzero()[:, 0].tolist()
    return differ[0] if differ else len(one)


def _margin(logits: Tensor) -> float:
    best = logits.float().topk(2).values
    return float(best[0] - best[1])


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean()))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, nargs="+", default=[65_536, 262_144], help="rising")
    parser.add_argument("--read-block", type=int, default=16_384)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--timed", type=int, default=512, help="captured tokens that are timed, on a GPU")
    parser.add_argument("--text", type=Path, help="as session_bytes")
    parser.add_argument("--cache", default="{}", help="changes to the session's cache, as JSON")
    given = parser.parse_args(arguments)
    if given.count < DECODED or given.tokens != sorted(given.tokens):
        parser.error(f"--count is {given.count}, at least {DECODED} is wanted, and --tokens must rise")
    loading = HfConfig(model=given.model, adapter="none", device=given.device, dtype=given.dtype)
    backbone = HfBackbone.load(loading)
    wide = backbone
    if backbone.dtype != torch.float32:
        wide = HfBackbone.load(
            HfConfig(model=given.model, adapter="none", device=given.device, dtype="float32")
        )
    if any(tokens % given.read_block for tokens in given.tokens):
        parser.error(
            f"--tokens are {given.tokens}; they must be whole steps of --read-block {given.read_block}"
        )
    config = reading_config(CacheConfig(**json.loads(given.cache)), given.read_block)
    text = repeating_text(backbone, given.text, config.read_block)
    cache, done = backbone.new_cache(config), 0
    result: dict[str, Any] = {
        "bench": "decode-agreement", "device": str(backbone.device), "commit": commit(), "torch": torch.__version__,
        "model": backbone.identity, "text_period": len(text), "rows": [],
    }  # fmt: skip
    for wanted in given.tokens:
        while done < wanted:
            at = done % len(text)
            count = min(len(text) - at, wanted - done, 1 << 17)
            backbone.read(text[at : at + count].tolist(), cache)
            done += count
        row = check(backbone, wide, cache, config, token=1, count=given.count)
        if backbone.steps.enabled:
            told, _, _ = eager(backbone, cache, 1, None, given.count)
            row["times"] = decode_captured(backbone, cache, given.timed, told[1:])
        result["rows"].append(row)
        result["ok"] = all(each["ok"] for each in result["rows"])
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
        say(json.dumps(row))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
