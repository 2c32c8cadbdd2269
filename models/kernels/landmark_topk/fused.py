"""Launches the landmark search: splits over landmarks, then rounds of merging until one list a query is left."""

from __future__ import annotations

import functools

import torch

from models.kernels.dispatch import last_contiguous
from models.kernels.landmark_topk.kernel import merge_kernel, search_kernel

_MERGE_WIDTH = 4096


def landmark_topk_fused(
    queries: torch.Tensor,
    landmarks: torch.Tensor,
    k: int,
    *,
    length: torch.Tensor | None,
    exclude_newest: int,
    block_n: int = 128,
    programs_per_processor: int = 4,
    num_warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `landmark_topk_naive`, reading each landmark once per 16 queries and writing k candidates per split."""
    batch, num_queries, dim = queries.shape
    num_landmarks = landmarks.shape[-2]
    device = queries.device
    queries = queries.to(landmarks.dtype).contiguous()
    landmarks = last_contiguous(landmarks)
    width = max(2, 1 << (k - 1).bit_length())
    block_n = max(block_n, width)
    block_q = 1 if num_queries == 1 else 16
    query_tiles = -(-num_queries // block_q)
    tiles = max(1, -(-num_landmarks // block_n))
    splits = max(1, min(tiles, programs_per_processor * _processors(device) // (batch * query_tiles)))
    span = -(-tiles // splits) * block_n
    splits = max(1, -(-num_landmarks // span))

    part = torch.empty((batch, num_queries, splits, width), dtype=torch.int64, device=device)
    search_kernel[(splits, query_tiles, batch)](
        queries,
        landmarks,
        length if length is not None else part,
        part,
        num_queries,
        num_landmarks,
        exclude_newest,
        span,
        dim,
        landmarks.stride(0) if landmarks.ndim == 3 else 0,
        landmarks.stride(-2),
        K=width,
        BLOCK_Q=block_q,
        BLOCK_N=block_n,
        BLOCK_D=max(16, min(64 if landmarks.element_size() == 4 else 128, 1 << (dim - 1).bit_length())),
        LENGTHS=length is not None,
        PRECISION="ieee",
        num_warps=num_warps,
        num_stages=2,
    )
    scores = torch.empty((batch, num_queries, k), dtype=torch.float32, device=device)
    index = torch.empty((batch, num_queries, k), dtype=torch.int32, device=device)
    while True:
        fan_in = min(_MERGE_WIDTH // width, 1 << max(splits - 1, 1).bit_length())
        groups = -(-splits // fan_in)
        merged = (
            torch.empty((batch, num_queries, groups, width), dtype=torch.int64, device=device)
            if groups > 1
            else part
        )
        merge_kernel[(groups, batch * num_queries)](
            part, merged, scores, index, splits, k, K=width, FAN_IN=fan_in, LAST=groups == 1, num_warps=8
        )
        if groups == 1:
            return scores, index
        part, splits = merged, groups


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
