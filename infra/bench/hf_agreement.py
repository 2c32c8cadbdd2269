"""How far our ways of reading are from the plain model when nothing is compressed and everything is chosen.

    python -m infra.bench.hf_agreement --data FOLDER [--tokens 600] [--device cpu]

Prints the largest difference of a logit, and of the likeliest token, over the last 128 tokens of a text, in
float32 and bfloat16: through the rotating cache, through sparse retrieval attention with all chunks, and behind a
chunk whose pairs were computed before; beside them transformers' eager attention, for scale. Plain: transformers'
own attention (sdpa) in the same type.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infra.bench.cache import tokens
from infra.console import say
from models.cache import CacheConfig
from models.hf import HfBackbone, HfConfig
from models.hf.attention import NAME
from models.hf.chunk_kv import encode_chunk, view_with_chunks
from models.hf.sparse import SparseConfig, register_sparse

JUDGED = 128


@torch.no_grad()
def rows(backbone: HfBackbone, ids: list[int]) -> list[dict[str, Any]]:
    """A row a way."""
    model, last = backbone.model, ids[-JUDGED:]
    plain = _plain(model, ids, "sdpa")
    cache = backbone.new_cache(CacheConfig(ring=max(2048, 2 * len(ids)), compressor="drop"))
    backbone.read(ids[:-JUDGED], cache)
    bos = backbone.bos
    chunk = encode_chunk(backbone, ids[len(bos) : -JUDGED])
    behind = backbone._forward(last, view_with_chunks(backbone, None, [chunk], JUDGED), JUDGED)
    assert behind is not None
    ways = {
        "rotating cache, nothing evicted": backbone.logits(last, cache),
        "sparse attention, all chunks": _plain(model, ids, register_sparse(SparseConfig(top_k=len(ids)))),
        "a chunk's pairs computed before": behind,
        "transformers' own eager attention": _plain(model, ids, "eager"),
    }
    return [
        {
            "way": name,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "max_logit_difference": round(float((found.float() - plain).abs().max()), 6),
            "largest_logit": round(float(plain.abs().max()), 2),
            "same_likeliest_token": float((found.argmax(-1) == plain.argmax(-1)).float().mean()),
        }
        for name, found in ways.items()
    ]


def _plain(model: Any, ids: list[int], attention: str) -> torch.Tensor:
    model.set_attn_implementation(attention)
    device = next(model.parameters()).device
    logits = model(torch.tensor([ids], device=device), use_cache=False, logits_to_keep=JUDGED).logits
    model.set_attn_implementation(NAME)
    found: torch.Tensor = logits[0].float()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="gemma-3-270m")
    given = parser.parse_args(arguments)
    for dtype in ("float32", "bfloat16"):
        backbone = HfBackbone.load(
            HfConfig(model=given.model, adapter="none", device=given.device, dtype=dtype)
        )
        ids = tokens(backbone, given.data / "news" / "reuters_2009_2012.jsonl.zst", given.tokens)
        for row in rows(backbone, ids):
            say(json.dumps(row))


if __name__ == "__main__":
    main()
