"""Which tokens of an evicted block stay raw: known scores, higher is kept, one value a token and KV head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.cache.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class Evicted:
    """What a scorer may look at. Pairs are before rotary embedding; the block is the oldest of the ring.

    `keys, values [H, n, d]` the block; `ring_keys [H, m, d]` all raw keys still held, the block first;
    `sink_keys [H, s, d]` the sinks; `queries [num_heads, w, d]` the newest queries and `query_places [w]`, counted
    from the block's first token. Blocks that left alike may come together, `[B, H, n, d]`, the sinks and queries
    in common.
    """

    spec: LayerSpec
    keys: Tensor
    values: Tensor
    ring_keys: Tensor
    sink_keys: Tensor
    queries: Tensor
    query_places: Tensor


Scorer = Callable[[Evicted], Tensor]
_ASKED_AFTER = 50  # tokens between the newest one and the imagined question


def key_difference(block: Evicted) -> Tensor:
    """How little a key resembles the mean key: minus the cosine (KeyDiff, arXiv 2504.15364)."""
    unit = torch.nn.functional.normalize(block.ring_keys, dim=-1)
    anchor = unit.mean(-2, keepdim=True)
    likeness: Tensor = torch.nn.functional.cosine_similarity(block.keys, anchor, dim=-1)
    return -likeness


def key_norm(block: Evicted) -> Tensor:
    """Minus the key's length: short keys draw attention (arXiv 2406.11430)."""
    length: Tensor = block.keys.norm(dim=-1)
    return -length


def attention_mass(block: Evicted) -> Tensor:
    """Mean attention of the newest queries over the raw pairs (as SnapKV's window, arXiv 2404.14469)."""
    return _mean_attention(block, block.queries, block.query_places)


def question_bank(block: Evicted) -> Tensor:
    """Mean attention that questions recorded elsewhere would give, asked a little after the newest token."""
    questions = block.spec.questions
    if questions is None:
        raise ValueError(
            "the score question_bank needs recorded questions; make the cache by backbone.new_cache"
        )
    asked = block.ring_keys.shape[-2] + _ASKED_AFTER
    places = torch.full((questions.shape[1],), asked, device=questions.device)
    return _mean_attention(block, questions, places)


def ranker(block: Evicted) -> Tensor:
    """What a learned ranker expects later questions to look at (models/cache/ranker.py), places unknown."""
    from models.cache.ranker import features

    learned, rotary = block.spec.ranker, block.spec.rotary
    if learned is None:
        raise ValueError("the score ranker needs a trained ranker; make the cache by backbone.new_cache")
    held = block.ring_keys.shape[-2]
    rotary.reserve(held)
    turned = rotary.turn(block.ring_keys, torch.arange(held, device=block.keys.device))
    means = [
        torch.nn.functional.normalize(x, dim=-1).mean(-2, keepdim=True) for x in (block.ring_keys, turned)
    ]
    n = block.keys.shape[-2]
    given = features(block.keys, block.values, means[0], turned[..., :n, :], means[1], None)
    return learned.score(block.spec.index, given)


def _mean_attention(block: Evicted, queries: Tensor, places: Tensor) -> Tensor:
    """Attention to the block's tokens `[H, n]`, mean over queries `[num_heads, w, d]` at `places [w]`."""
    spec, num_sinks = block.spec, block.sink_keys.shape[-2]
    sinks = block.sink_keys.expand(*block.ring_keys.shape[:-2], -1, -1)
    keys = torch.cat((sinks, block.ring_keys), dim=-2)
    at = torch.arange(keys.shape[-2], device=spec.device)
    places = places + num_sinks
    spec.rotary.reserve(keys.shape[-2] + _ASKED_AFTER + 1)
    turned = spec.rotary.turn(queries, places).reshape(spec.num_kv_heads, -1, spec.head_dim)
    scores = turned @ spec.rotary.turn(keys, at).transpose(-1, -2) * spec.scaling
    # a query of the window may be older than the youngest keys
    late = at > places.repeat(spec.num_heads // spec.num_kv_heads)[:, None]
    mass: Tensor = scores.masked_fill(late, float("-inf")).softmax(-1).mean(-2)
    return mass[..., num_sinks : num_sinks + block.keys.shape[-2]]


BY_NAME: dict[str, Scorer] = {
    "key_difference": key_difference,
    "key_norm": key_norm,
    "attention_mass": attention_mass,
    "question_bank": question_bank,
    "ranker": ranker,
}
