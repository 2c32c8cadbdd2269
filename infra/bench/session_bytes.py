"""A session's cache over 16 million tokens: bytes, reading speed, and what evictions cost of decoding.

    python -m infra.bench.session_bytes --out OUT [--tokens 16777216] [--seconds 140] [--model gemma-3-270m]

The reader reads a text that repeats through its rotating cache, as a session does, and stops at 16k, 64k, … tokens:
every tensor of the cache is counted, the device's allocated memory stands beside, then tokens are decoded through
the cache (each read into it, so that evictions fall due): one operation after another, and on a GPU as a
captured graph (models/hf/session_decoding.py), with latents unpacked (`captured_ms`) and read as factors
(`fused_ms`). The cost of an eviction is timed by
itself: all full-attention layers let their oldest block go (heavy hitters ranked, latents factored), median, shared
out over the `evict_block` tokens that it serves; `eviction_ms` with factors begun a block ahead, as decoding does,
`eviction_unforeseen_ms` without. Budgets are the session's own (`--cache` names changes);
reading goes in steps of `read_block`, which is raised for speed, with room for it in the ring taken at creation;
decoding and evictions are timed with the session's own steps and ring too.
Writes OUT.json and OUT.md as it goes.

`--pairs-only` feeds random pairs to the cache's layers in place of a decoder's, step by step: bytes do not depend
on what the pairs are, and a CPU gets through 16 million tokens so. No figure of speed comes from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infra.bench.measure import commit
from infra.bench.session_bytes_decode import answer_ms, decode, decode_captured, eviction_ms, now
from infra.bench.session_bytes_page import write
from infra.console import say
from models.cache import CacheConfig
from models.cache.rotating import RotatingCompressiveCache
from models.hf import HfBackbone, HfConfig
from models.hf.loading import pick_device

FIRST, LAST = 16_384, 16_777_216
READ_BLOCK = 8192
DECODED = 24  # one operation after another, at every length
CAPTURED = 512  # as a graph
EVICTIONS = 24
_FIGURES = (
    "tokens", "cache_bytes", "device_bytes", "read_tokens_per_s", "decode_ms", "captured_ms",
    "captured_with_evictions_ms", "fused_ms", "fused_with_evictions_ms",
)  # fmt: skip


def lengths(last: int) -> list[int]:
    """16k and every fourfold up to `last`, which is there too."""
    found, at = [], min(FIRST, last)
    while at < last:
        found.append(at)
        at *= 4
    return [*found, last]


def reading_config(config: CacheConfig, read_block: int) -> CacheConfig:
    """The session's budgets, read in larger steps: the ring grows by what a larger step needs."""
    more = max(0, read_block - config.read_block)
    return replace(config, read_block=max(read_block, config.read_block), ring=config.ring + more)


def measure(backbone: HfBackbone, cache: RotatingCompressiveCache, decoded: int) -> dict[str, Any]:
    """Bytes held, by part and in all, and the time of a token's decoding and of an eviction."""
    parts = cache.nbytes_by_part()
    found: dict[str, Any] = {"tokens": cache.tokens_seen, "cache_bytes": cache.nbytes, "parts": parts}
    if backbone.device.type == "cuda":
        found["device_bytes"] = int(torch.cuda.memory_allocated())
    times, evicting, ids = decode(backbone, cache, decoded)
    plain = [each for each, fell in zip(times, evicting, strict=True) if not fell]
    found["decode_ms"] = round(1000 * statistics.median(plain or times), 4)
    found["decode_with_eviction_ms"] = [
        round(1000 * each, 4) for each, fell in zip(times, evicting, strict=True) if fell
    ]
    found["decoded"] = len(times)
    return found | decode_captured(backbone, cache, CAPTURED, ids)


def run(
    model: str = "gemma-3-270m",
    tokens: int = LAST,
    seconds: float = 140.0,
    device: str = "auto",
    dtype: str = "auto",
    read_block: int = READ_BLOCK,
    out: str = "",
) -> dict[str, Any]:
    """What `dysra bench session-bytes` tells, of `tokens` tokens; `dtype` auto is bf16 on a GPU."""
    path = Path(out) if out else Path(tempfile.mkdtemp(), "session_bytes")
    if dtype == "auto":
        dtype = "bfloat16" if pick_device(device).type == "cuda" else "float32"
    backbone = HfBackbone.load(HfConfig(model=model, adapter="none", device=device, dtype=dtype))
    result = read_through(
        backbone, CacheConfig(), _text(backbone, None), tokens, path, seconds=seconds, read_block=read_block
    )
    flat = [{name: value for name, value in row.items() if name in _FIGURES} for row in result["rows"]]
    return {**result, "rows": flat}


def read_through(
    backbone: HfBackbone, config: CacheConfig, ids: Sequence[int], last: int, out: Path, *,
    seconds: float, read_block: int = READ_BLOCK, decoded: int = DECODED,
) -> dict[str, Any]:  # fmt: skip
    """Read `last` tokens (fewer if the time is over) and write what was measured; `ids` repeats."""
    until = time.monotonic() + seconds
    given = reading_config(config, read_block)
    text = repeated(ids, given.read_block)
    cache = backbone.new_cache(given)
    result = _begun(backbone, given, cache)
    spent, done = 0.0, 0
    for wanted in lengths(last):
        began = now(backbone)
        while done < wanted and time.monotonic() < until:
            at = done % len(text)
            count = min(len(text) - at, wanted - done, 1 << 17)
            backbone.read(text[at : at + count].tolist(), cache)
            done += count
        spent += now(backbone) - began
        row = measure(backbone, cache, decoded)
        row["read_tokens_per_s"] = round(done / max(1e-9, spent), 1)
        result["rows"].append(row)
        if "eviction_ms" not in result and wanted <= FIRST:
            _eviction(backbone, config, ids, result, decoded)
        _write(result, out)
        say(f"  {done:,} tokens: {row['cache_bytes']:,} bytes, {row['read_tokens_per_s']:,.0f} tokens/s")
        if done < wanted:
            say(f"  the time of {seconds:.0f} s is over at {done:,} of {last:,} tokens")
            break
    return result


def feed_pairs(
    backbone: HfBackbone, config: CacheConfig, last: int, out: Path, *, seconds: float, read_block: int
) -> dict[str, Any]:
    """Put `last` tokens' pairs into every layer of a session's cache, without a decoder; bytes at each length."""
    until = time.monotonic() + seconds
    given = reading_config(config, read_block)
    cache = backbone.new_cache(given)
    generator = torch.Generator().manual_seed(0)
    pairs = {
        spec.index: torch.randn(
            2, spec.num_kv_heads, given.read_block, spec.head_dim, generator=generator
        ).to(spec.device, spec.dtype)
        for spec in backbone.specs
    }
    result = _begun(backbone, given, cache) | {"fed": "random pairs, no decoder"}
    done = 0
    for wanted in lengths(last):
        while done < wanted and time.monotonic() < until:
            count = min(given.read_block, wanted - done)
            for layer in cache.stored:
                layer.make_room(count)
                layer.append(*pairs[layer.spec.index][:, :, :count])
            done += count
        row = {"tokens": cache.tokens_seen, "cache_bytes": cache.nbytes, "parts": cache.nbytes_by_part()}
        result["rows"].append(row)
        _write(result, out)
        say(f"  {done:,} tokens: {row['cache_bytes']:,} bytes")
        if done < wanted:
            say(f"  the time of {seconds:.0f} s is over at {done:,} of {last:,} tokens")
            break
    return result


def _begun(backbone: HfBackbone, config: CacheConfig, cache: RotatingCompressiveCache) -> dict[str, Any]:
    """What is known of a run before it reads."""
    names = ("sinks", "ring", "evict_block", "rank", "latent_blocks", "heavy", "heavy_scorer", "compressor")
    return {
        "bench": "session_bytes",
        "device": _device(backbone),
        "commit": commit(),
        "torch": torch.__version__,
        "model": backbone.identity,
        "cache": {name: getattr(config, name) for name in (*names, "read_block", "dtype")},
        "created_bytes": cache.nbytes,
        "rows": [],
    }


def _eviction(
    backbone: HfBackbone, config: CacheConfig, ids: Sequence[int], result: dict[str, Any], decoded: int
) -> None:
    """Time decoding and evictions with the session's own configuration, whose steps are not enlarged."""
    cache = backbone.new_cache(config)
    full = config.sinks + config.ring + config.evict_block * 2
    full += -full % config.read_block
    own = list(ids) * (1 + full // len(ids))
    backbone.read(own[:full], cache)
    row = measure(backbone, cache, decoded) | answer_ms(backbone, cache, list(ids)[:64])
    result["session"] = row
    for name, ahead in (("eviction_ms", True), ("eviction_unforeseen_ms", False)):
        result[name] = round(eviction_ms(backbone, cache, EVICTIONS, ahead=ahead), 4)
    result["evict_block"] = config.evict_block


def _device(backbone: HfBackbone) -> str:
    return torch.cuda.get_device_name() if backbone.device.type == "cuda" else f"cpu {platform.machine()}"


def _write(result: dict[str, Any], out: Path) -> None:
    write(result, out, LAST)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    parser.add_argument("--tokens", type=int, default=LAST)
    parser.add_argument("--seconds", type=float, default=140.0)
    parser.add_argument(
        "--model", default="gemma-3-270m", help="or a folder (infra/training/reader_parts.py)"
    )
    parser.add_argument("--adapter", default="none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--read-block", type=int, default=READ_BLOCK)
    parser.add_argument(
        "--text", type=Path, help="JSON lines with `text` or `context`; default: our own sentences"
    )
    parser.add_argument("--pairs-only", action="store_true", help="random pairs in place of a decoder's")
    parser.add_argument("--cache", default="{}", help="changes to the session's cache, as JSON")
    given = parser.parse_args(arguments)
    backbone = HfBackbone.load(
        HfConfig(model=given.model, adapter=given.adapter, device=given.device, dtype=given.dtype, threads=1)
    )
    config = CacheConfig(**json.loads(given.cache))
    limits: dict[str, Any] = {"seconds": given.seconds, "read_block": given.read_block}
    if given.pairs_only:
        result = feed_pairs(backbone, config, given.tokens, given.out, **limits)
    else:
        result = read_through(
            backbone, config, _text(backbone, given.text), given.tokens, given.out, **limits
        )
    say(json.dumps(result["ratios"]))
    return 0 if result["rows"][-1]["tokens"] >= given.tokens else 5


def repeated(ids: Sequence[int], step: int) -> torch.Tensor:
    """`ids` again and again, some 262,144 tokens in whole steps; that in turn repeats as a whole."""
    text = torch.tensor(list(ids), dtype=torch.int64)
    text = text.repeat(max(1, -(-(1 << 18) // len(text))))
    return text[: len(text) - len(text) % step]


def repeating_text(backbone: HfBackbone, path: Path | None, step: int) -> torch.Tensor:
    """What a run reads, over and over: see `repeated`."""
    return repeated(_text(backbone, path), step)


def _text(backbone: HfBackbone, path: Path | None) -> list[int]:
    """The tokens of the text that repeats."""
    if path is None:
        from models.hf.question_bank import recorded_texts

        return [*backbone.bos, *backbone.encode("\n".join(recorded_texts()) + "\n")]
    found = list(backbone.bos)
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            found += backbone.encode(row.get("text") or row["context"])
            if len(found) > 1 << 17:
                break
    return found


if __name__ == "__main__":
    raise SystemExit(main())
