"""A decoding step that retrieves in plain PyTorch, search, then one softmax: what the fused kernel computes."""

from __future__ import annotations

import torch

from models.kernels.landmark_topk.naive import landmark_topk_naive
from models.kernels.latent_decode.naive import Rotary, latent_decode_naive
from models.kernels.latent_decode.types import ChosenChunks, Latents
from models.kernels.retrieve_decode.types import Search


def retrieve_decode_naive(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    search: Search,
    *,
    latents: Latents | None,
    rotary: Rotary | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Same arguments as `retrieve_decode`; (out, lse, pages int32 [B, K], -1 where fewer landmarks count)."""
    _, found = landmark_topk_naive(
        search.queries[:, None],
        search.landmarks,
        search.place.shape[1],
        length=search.length,
        exclude_newest=search.exclude_newest,
    )
    pages = found[:, 0]
    chunks = ChosenChunks(search.keys, search.values, pages, search.place, search.page_lengths)
    out, lse = latent_decode_naive(
        q, ring_k, ring_v, ring_place, q_place, latents=latents, chunks=chunks, rotary=rotary, scale=scale
    )
    return out, lse, pages
