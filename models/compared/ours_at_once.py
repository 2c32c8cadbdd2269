"""Fill one layer of our cache with a whole context at once: what reading it step by step would leave.

A context of 16k tokens is hundreds of evictions, each dozens of small launches; here all blocks are scored,
factored and ranked together. Which pairs are held, where, and as what is the same (tests compare); heavy hitters
may stand in other slots, and the running statistics of truncation are not kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.cache.compressor import Factors, eigenvectors, onto
from models.cache.full_layer import RotatingLayer
from models.cache.learned import LearnedCompressor
from models.cache.scorers import BY_NAME, Evicted
from models.cache.weighted_svd import WeightedSvdCompressor
from models.compared.trace import LayerTrace

_MOST_NUMBERS = 64 << 20  # of the keys of all blocks that are scored together


def can_fill(layer: RotatingLayer) -> bool:
    """Whether what this layer would hold can be told without going through the steps."""
    config = layer.config
    plain = config.key_frame == "before_rotary" and config.summaries == "own"
    scored = not config.heavy or config.heavy_scorer in (
        "ranker",
        "question_bank",
        "key_norm",
        "key_difference",
    )
    # latents beside heavy hitters are not batched: no compared method has both
    return plain and scored and config.heavy_keep == "weakest" and not (config.heavy and layer.latents)


def fill(layer: RotatingLayer, trace: LayerTrace) -> None:
    """Put all pairs of the trace into the fresh `layer`."""
    config, n = layer.config, trace.num_tokens
    evictions = _evictions(layer, n)
    held = [in_ring for _, in_ring in evictions]
    pinned = min(config.sinks, n)
    layer.sinks.write(0, trace.keys[:, :pinned], trace.values[:, :pinned])
    behind = n - pinned
    first = max(0, behind - config.ring)
    layer.ring.write(first, trace.keys[:, pinned + first :], trace.values[:, pinned + first :])
    if held and layer.heavy:
        _fill_heavy(layer, trace, held)
    if held and layer.latents:
        _fill_latents(layer, trace, [start for start, _ in evictions])
    layer.seen, layer.blocks = n, len(held)


def _evictions(layer: RotatingLayer, n: int) -> list[tuple[int, int]]:
    """When each block left the ring, in order, reading in steps of `read_block` tokens.

    (tokens read before the step that it made room for, pairs in the ring then).
    """
    config = layer.config
    found: list[tuple[int, int]] = []
    for start in range(0, n, config.read_block):
        step = min(config.read_block, n - start)
        to_ring = step - max(0, min(step, config.sinks - start))
        in_ring = max(0, start - config.sinks) - len(found) * config.evict_block
        while in_ring + to_ring > config.ring:
            found.append((start, in_ring))
            in_ring -= config.evict_block
    return found


def _fill_heavy(layer: RotatingLayer, trace: LayerTrace, held: list[int]) -> None:
    """The last block's picks, and the best of all earlier ones as far as there are slots.

    New picks are always admitted and the weakest make room, so after each block the store is the new picks and
    the best of those that it held before: by induction, the best of all earlier picks.
    """
    config, heavy = layer.config, layer.heavy
    assert heavy is not None
    scores = torch.cat(list(_block_scores(layer, trace, held)))  # [B, H, E]
    best = scores.sort(dim=-1, descending=True, stable=True)
    each = config.heavy_per_block
    picks, values = best.indices[..., :each], best.values[..., :each]
    starts = config.sinks + torch.arange(len(held), device=picks.device) * config.evict_block
    positions = (picks + starts[:, None, None]).transpose(0, 1).flatten(1)  # [H, B * each]
    values = values.transpose(0, 1).flatten(1)
    if positions.shape[1] > config.heavy:
        earlier = values[:, :-each].topk(config.heavy - each, dim=1).indices
        positions = torch.cat((positions[:, :-each].gather(1, earlier), positions[:, -each:]), dim=1)
        values = torch.cat((values[:, :-each].gather(1, earlier), values[:, -each:]), dim=1)
    count = positions.shape[1]
    wide = positions[..., None].expand(-1, -1, trace.keys.shape[-1])
    heavy.keys[:, :count] = trace.keys.gather(1, wide).to(heavy.keys.dtype)
    heavy.values[:, :count] = trace.values.gather(1, wide).to(heavy.values.dtype)
    heavy.positions[:, :count], heavy.scores[:, :count] = positions, values


def _block_scores(layer: RotatingLayer, trace: LayerTrace, held: list[int]) -> Iterator[Tensor]:
    """Scores `[b, H, E]` of the evicted blocks, as many at once as memory allows, in order."""
    config, spec = layer.config, layer.spec
    heads, _, dim = trace.keys.shape
    keys, values = trace.keys[:, config.sinks :].float(), trace.values[:, config.sinks :].float()
    sinks = trace.keys[:, : config.sinks].float()
    queries = torch.zeros(spec.num_heads, 0, dim, device=keys.device)
    places = torch.zeros(0, dtype=torch.int64, device=keys.device)
    asked = 0 if spec.questions is None else spec.questions.shape[1] * spec.num_heads
    block = 0
    while block < len(held):
        size = held[block]
        numbers = heads * size * max(dim, asked)
        most = max(1, _MOST_NUMBERS // numbers)
        end = block
        while end < len(held) and held[end] == size and end - block < most:
            end += 1
        starts = torch.arange(block, end, device=keys.device) * config.evict_block
        rows = starts[:, None] + torch.arange(size, device=keys.device)  # [b, m]
        ring = keys[:, rows].transpose(0, 1)
        evicted = rows[:, : config.evict_block]
        yield BY_NAME[config.heavy_scorer](
            Evicted(
                spec, keys[:, evicted].transpose(0, 1), values[:, evicted].transpose(0, 1), ring, sinks,
                queries, places,
            )
        )  # fmt: skip
        block = end


def _fill_latents(layer: RotatingLayer, trace: LayerTrace, left_at: list[int]) -> None:
    """The newest blocks as factors or codes; `left_at`: tokens read when each block left."""
    config, latents, blocks = layer.config, layer.latents, len(left_at)
    assert latents is not None
    size = config.evict_block
    newest = slice(max(0, blocks - config.latent_blocks), blocks)
    key, value = _factors(layer, trace, left_at, newest)
    slots = torch.arange(newest.start, blocks, device=trace.keys.device) % latents.num_blocks
    stores = [(latents.key_rows, key.rows), (latents.value_rows, value.rows)]
    if latents.shared is None:  # else the bases are the model's
        stores += [(latents.key_basis, key.basis), (latents.value_basis, value.basis)]
    for store, made in stores:
        store[:, slots] = made.transpose(0, 1).to(store.dtype)
    offsets = torch.arange(size, device=trace.keys.device).expand(trace.keys.shape[0], -1)
    latents.offsets[:, slots] = offsets[:, None].to(torch.int32)


def _factors(
    layer: RotatingLayer, trace: LayerTrace, left_at: list[int], newest: slice
) -> tuple[Factors, Factors]:
    """Rows `[B, H, size, r]` and bases `[B, H, r, d]` of the `newest` blocks: keys, values.

    What does not depend on the budget is found once for all budgets that cut the context alike.
    """
    config, compressor = layer.config, layer.compressor
    size, (key_rank, value_rank) = config.evict_block, config.key_and_value_ranks
    keys, values = (_cut(pairs, config.sinks, size)[newest].float() for pairs in (trace.keys, trace.values))
    if isinstance(compressor, LearnedCompressor):
        with torch.no_grad():
            key_codes, value_codes = compressor.layer.encode(*(_in_a_row(part) for part in (keys, values)))
        return (
            Factors(_in_blocks(key_codes, size)[..., :key_rank], keys[..., :0, :]),
            Factors(_in_blocks(value_codes, size)[..., :value_rank], values[..., :0, :]),
        )
    plain = trace.noted(("svd", config.sinks, size), lambda: _eigenvectors(trace, config.sinks, size))
    key_vectors = plain[0][newest]
    if isinstance(compressor, WeightedSvdCompressor):
        weights = _weights(compressor, trace, config.read_block, left_at)[newest]
        key_vectors = eigenvectors(keys @ weights @ keys.transpose(-1, -2))
    return onto(keys, key_vectors, key_rank), onto(values, plain[1][newest], value_rank)


def _weights(compressor: WeightedSvdCompressor, trace: LayerTrace, step: int, left_at: list[int]) -> Tensor:
    """The weight `[B, H, d, d]` by which each block is factored when it leaves: what was asked until then."""
    found: list[Tensor] = []
    for start in range(0, trace.num_tokens, step):
        leaving = left_at[len(found) :].count(start)
        if leaving:
            found += [compressor._seen_from_latents()] * leaving
        compressor.observe(trace.queries[:, start : start + step])
    return torch.stack(found)


def _in_a_row(blocks: Tensor) -> Tensor:
    """`[B, H, size, d]` as `[H, B * size, d]`."""
    return blocks.transpose(0, 1).flatten(1, 2)


def _in_blocks(tokens: Tensor, size: int) -> Tensor:
    """`[H, B * size, r]` as `[B, H, size, r]`."""
    return tokens.reshape(tokens.shape[0], -1, size, tokens.shape[-1]).transpose(0, 1)


def _cut(pairs: Tensor, sinks: int, size: int) -> Tensor:
    """`[B, H, size, d]`: the whole blocks behind the sinks."""
    heads, n, dim = pairs.shape
    number = (n - sinks) // size
    return pairs[:, sinks : sinks + number * size].reshape(heads, number, size, dim).transpose(0, 1)


def _eigenvectors(trace: LayerTrace, sinks: int, size: int) -> tuple[Tensor, Tensor]:
    """Of every block's Gram matrix, keys and values, `[B, H, size, size]`, in double precision, least first."""
    both = torch.stack([_cut(pairs, sinks, size).float() for pairs in (trace.keys, trace.values)])
    found = eigenvectors(both @ both.transpose(-1, -2))
    return found[0], found[1]
