"""A layer's latents as the factors that they are, for attention that reads them so (models/kernels/latent_decode).

`RotatingLayer.visible` unpacks them; here every token of a held block has its place beside it, and what is raw is
told apart. Shapes: `H` key heads, `b` held blocks of `n` tokens, ranks `r`, head width `d`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.cache.full_layer import RotatingLayer


@dataclass(frozen=True, slots=True)
class Factors:
    """Copies of the factors of the held blocks, oldest first; the cache goes on without them.

    `key_rows [H, b, n, r]`, `key_basis [H, b, r, d]`, values alike; `place [H, b, n]` int32, -1 where nothing may
    look. `capacity`: blocks held at most. `first`: how many raw pairs stand before the latents in the order of
    `visible`. `one_place`: all tokens of a block stand at one place (keys turned within it, none withdrawn).
    """

    key_rows: Tensor
    key_basis: Tensor
    value_rows: Tensor
    value_basis: Tensor
    place: Tensor
    capacity: int
    first: int
    one_place: bool

    @property
    def tokens(self) -> int:
        """Tokens of all held blocks."""
        return int(self.place.shape[1] * self.place.shape[2])

    def without(self, x: Tensor) -> Tensor:
        """What `x [1 or H, held, …]` says of the raw pairs alone, in their order."""
        return torch.cat((x[:, : self.first], x[:, self.first + self.tokens :]), dim=1)


def factors_of(layer: RotatingLayer) -> Factors | None:
    """What a layer holds of latents; None for a layer without them."""
    latents = layer.latents
    if latents is None:
        return None
    order = latents.order(layer.blocks)
    at = latents._at(order)
    offsets = latents.offsets[:, order]
    if layer.config.key_frame == "within_block":  # the keys have been turned to their offsets already
        offsets = torch.zeros_like(offsets)
    place = (layer.latent_starts()[:, None] + offsets).to(torch.int32)
    if layer.dropped:
        place = place.masked_fill(layer.hidden(layer._latent_positions()), -1)
    return Factors(
        latents.key_rows[at], latents.key_basis[at], latents.value_rows[at], latents.value_basis[at], place,
        capacity=latents.num_blocks, first=_before(layer), one_place=one_place(layer),
    )  # fmt: skip


def one_place(layer: RotatingLayer) -> bool:
    """Whether a block's tokens all stand at one place, and none of them alone is withdrawn."""
    return layer.config.key_frame == "within_block" and not layer.dropped


def raw_of(layer: RotatingLayer) -> tuple[tuple[Tensor, Tensor, Tensor, int], Tensor | None]:
    """What `visible` returns, without the latents, and which of it may be looked at (None: all)."""
    allowed = layer._seen_by_all()
    if allowed is not None:
        first, latent = _before(layer), layer._latent_blocks * layer.config.block_tokens
        allowed = torch.cat((allowed[:, :first], allowed[:, first + latent :]), dim=1)
    return layer.raw(), allowed


def _before(layer: RotatingLayer) -> int:
    return min(layer.seen, layer.config.sinks) + layer._heavies
