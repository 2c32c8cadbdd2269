"""Blocks that leave the ring as latents: together, in one step of many tokens, and begun before they leave.

Blocks that newer ones of the same step push out of the latents before anything reads them are not factored. Which
blocks leave is known before the step is read, so their eigenvectors can be looked for meanwhile (`foreseen`). While
tokens are read one by one, the oldest block of the ring leaves next and does not change before (`begun`).
What is looked for ahead is no part of the cache: `2 H n²` doubles of the host's memory a layer and block, and
their pairs in float32 where several blocks leave together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.cache.compressor import ComingEigenvectors, lost_of
from models.cache.svd import from_eigenvectors, gram_of

if TYPE_CHECKING:
    from models.cache.full_layer import RotatingLayer


@dataclass(frozen=True, slots=True)
class Leaving:
    """`count` blocks from number `begin` on; the last `kept` of them become latents.

    `keys, values [H * kept, n, d]` in float32, keys in the frame that is factored.
    """

    begin: int
    count: int
    kept: int
    keys: Tensor
    values: Tensor
    vectors: ComingEigenvectors


@dataclass(frozen=True, slots=True)
class NextBlock:
    """The block of number `begin`, which leaves by itself."""

    begin: int
    vectors: ComingEigenvectors


def begun(layer: RotatingLayer) -> Leaving | NextBlock | None:
    """Begin to factor what leaves next, however far off; nothing that the layer holds changes, and nothing waits.

    None where that depends on what is yet to be read (heavy hitters, weights of queries), is little work (learned
    codes), or is not in the ring as a whole yet.
    """
    count = layer.places.step(layer.blocks)
    if not layer.factored_alone or layer._in_ring < count * layer.config.evict_block:
        return None
    if count > 1:
        return foreseen(layer, count)
    keys, values, offsets = layer.oldest()
    gram = gram_of(layer.framed(keys, offsets), values)
    return NextBlock(layer.blocks, ComingEigenvectors(gram))


def foreseen(layer: RotatingLayer, count: int) -> Leaving:
    """Begin to factor the next `count` blocks; nothing that the layer holds changes."""
    config = layer.config
    assert layer.latents is not None
    kept = min(count, config.latent_blocks)
    first = layer.blocks + count - kept
    pairs = layer.ring.read(first * config.evict_block, kept * config.evict_block)
    heads, _, dim = pairs[0].shape
    keys, values = (x.float().reshape(heads * kept, config.evict_block, dim) for x in pairs)
    if config.key_frame == "within_block":
        offsets = torch.arange(config.evict_block, device=keys.device).expand(heads * kept, -1)
        layer.spec.rotary.reserve(config.evict_block)
        keys = layer.spec.rotary.turn(keys, offsets)
    return Leaving(layer.blocks, count, kept, keys, values, ComingEigenvectors(gram_of(keys, values)))


def let_go(layer: RotatingLayer, leaving: Leaving) -> tuple[Tensor, Tensor]:
    """Store the latents of the blocks that leave; what was lost of keys and of values (`lost_of`)."""
    config, latents = layer.config, layer.latents
    assert latents is not None and leaving.begin == layer.blocks
    key, value = from_eigenvectors(
        leaving.keys, leaving.values, leaving.vectors.result(), config.key_and_value_ranks
    )

    def by_head(x: Tensor) -> Tensor:
        return x.reshape(-1, leaving.kept, *x.shape[1:])

    offsets = torch.arange(config.evict_block, device=leaving.keys.device)
    latents.write_many(
        leaving.begin + leaving.count - leaving.kept,
        (by_head(key.rows), by_head(key.basis)),
        (by_head(value.rows), by_head(value.basis)),
        offsets,
    )
    layer.blocks += leaving.count
    return lost_of(leaving.keys, key), lost_of(leaving.values, value)
