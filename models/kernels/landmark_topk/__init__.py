"""Search of landmarks: scores and top k in one, so that all scores are never written."""

from __future__ import annotations

import torch

from models.kernels.dispatch import Implementation, check_floating, use_fused
from models.kernels.landmark_topk.naive import landmark_topk_naive

__all__ = ["landmark_topk", "landmark_topk_naive"]

MAX_K = 256


def landmark_topk(
    queries: torch.Tensor,
    landmarks: torch.Tensor,
    k: int,
    *,
    length: torch.Tensor | None = None,
    exclude_newest: int = 0,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k landmarks with the largest dot product for each query, best first.

    queries [B, Q, D] or [Q, D]; landmarks [N, D] shared by all rows, or [B, N, D]; float16, bfloat16 or float32
    (queries are rounded to the landmarks' dtype, products are summed in float32). length int32 [B]: only the first
    length[b] landmarks count (default all); of those the newest `exclude_newest` are left out.

    Returns (scores float32 [..., k], indices int32 [..., k]); where fewer landmarks count, the rest is (-inf, -1).
    Order among equal scores is not defined.
    """
    single = queries.ndim == 2
    if single:
        queries = queries[None]
    if queries.ndim != 3 or landmarks.ndim not in (2, 3) or queries.shape[-1] != landmarks.shape[-1]:
        raise ValueError(
            f"queries are {tuple(queries.shape)}, landmarks {tuple(landmarks.shape)}; expected [B, Q, D] "
            "(or [Q, D]) and [N, D] or [B, N, D] with the same D"
        )
    check_floating("queries", queries)
    check_floating("landmarks", landmarks)
    if landmarks.device != queries.device:
        raise ValueError(
            f"landmarks are on {landmarks.device}, queries on {queries.device}; give both one device"
        )
    if landmarks.ndim == 3 and landmarks.shape[0] != queries.shape[0]:
        raise ValueError(f"landmarks are for {landmarks.shape[0]} rows, queries for {queries.shape[0]}")
    if landmarks.shape[-2] >= 2**31 - 1:
        raise ValueError(
            f"{landmarks.shape[-2]} landmarks; the search counts them in 31 bits: split them over indexes"
        )
    if not 1 <= k <= MAX_K or exclude_newest < 0:
        raise ValueError(f"k is {k}, exclude_newest {exclude_newest}; allowed: 1 to {MAX_K}, and 0 or more")
    if length is not None and (length.dtype != torch.int32 or length.shape != queries.shape[:1]):
        raise ValueError(
            f"length is {length.dtype} {tuple(length.shape)}; expected int32 {tuple(queries.shape[:1])}"
        )
    if use_fused(implementation, queries) and landmarks.shape[-2]:
        if landmarks.dtype == torch.float64:
            raise ValueError(
                "the fused search takes landmarks of float32, bfloat16 or float16; use implementation='naive'"
            )
        from models.kernels.landmark_topk.fused import landmark_topk_fused

        found = landmark_topk_fused(queries, landmarks, k, length=length, exclude_newest=exclude_newest)
    else:
        found = landmark_topk_naive(queries, landmarks, k, length=length, exclude_newest=exclude_newest)
    return (found[0][0], found[1][0]) if single else found
