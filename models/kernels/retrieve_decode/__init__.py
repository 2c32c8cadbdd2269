"""A decoding step that retrieves: one softmax over ring, latents and the best landmarks' chunks, in one call."""

from __future__ import annotations

import torch

from models.kernels.dispatch import Implementation, check_floating, check_head_dim, check_scale, use_fused
from models.kernels.landmark_topk import MAX_K
from models.kernels.latent_decode import MAX_ROWS, check_decode
from models.kernels.latent_decode.naive import Rotary
from models.kernels.latent_decode.types import ChosenChunks, Latents
from models.kernels.retrieve_decode.naive import retrieve_decode_naive
from models.kernels.retrieve_decode.types import Search

__all__ = ["Search", "retrieve_decode", "retrieve_decode_naive"]


def retrieve_decode(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    search: Search,
    *,
    latents: Latents | None = None,
    rotary: Rotary | None = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`landmark_topk`, then `latent_decode` over what it found: same arguments, one call and fewer launches.

    Returns out [B, T, Hq, D], lse float32 [B, T, Hq] and the chosen pages int32 [B, K], best first, -1 where fewer
    landmarks count. Forward only.
    """
    batch = q.shape[0]
    chunks = ChosenChunks(search.keys, search.values, search.place, search.place, search.page_lengths)
    check_decode(q, ring_k, ring_v, ring_place, q_place, latents, chunks, rotary)
    if search.queries.shape[0] != batch or (
        search.landmarks.ndim == 3 and search.landmarks.shape[0] != batch
    ):
        raise ValueError(
            f"queries {tuple(search.queries.shape)} and landmarks {tuple(search.landmarks.shape)} do not fit "
            f"{batch} rows of q"
        )
    if not 1 <= search.place.shape[1] <= MAX_K or search.exclude_newest < 0:
        raise ValueError(
            f"place names {search.place.shape[1]} chunks, exclude_newest is {search.exclude_newest}; allowed: 1 to "
            f"{MAX_K}, and 0 or more"
        )
    check_floating("landmarks", search.landmarks)
    length = search.length
    if length is not None and (length.dtype != torch.int32 or length.shape != (batch,)):
        raise ValueError(f"length is {length.dtype} {tuple(length.shape)}; expected int32 {(batch,)}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    check_scale(scale)
    rows = q.shape[1] * (q.shape[2] // ring_k.shape[2])
    if use_fused(implementation, q) and search.landmarks.shape[-2]:
        check_head_dim(q.shape[-1], smallest=32)
        if rows > MAX_ROWS or torch.float64 in (q.dtype, search.landmarks.dtype):
            raise ValueError(
                f"{rows} rows (queries x heads of a group) of {q.dtype}, landmarks of {search.landmarks.dtype}; "
                f"the fused kernel takes up to {MAX_ROWS} of float32, bfloat16 or float16: pass fewer queries, "
                "or use implementation='naive'"
            )
        from models.kernels.retrieve_decode.fused import retrieve_decode_fused

        return retrieve_decode_fused(
            q,
            ring_k,
            ring_v,
            ring_place,
            q_place,
            search,
            latents=latents,
            rotary=rotary,
            scale=scale,
        )
    return retrieve_decode_naive(
        q, ring_k, ring_v, ring_place, q_place, search, latents=latents, rotary=rotary, scale=scale
    )
