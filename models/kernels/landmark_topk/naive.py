"""The best landmarks of each query in plain PyTorch: writes all scores, then picks."""

from __future__ import annotations

import torch

from models.kernels.dispatch import accumulate_dtype


def landmark_topk_naive(
    queries: torch.Tensor,
    landmarks: torch.Tensor,
    k: int,
    *,
    length: torch.Tensor | None,
    exclude_newest: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments as `landmark_topk`; products of values in the landmarks' dtype, summed in float32."""
    dtype = accumulate_dtype(landmarks.dtype)
    batch, num_landmarks = queries.shape[0], landmarks.shape[-2]
    scores = queries.to(landmarks.dtype).to(dtype) @ landmarks.to(dtype).transpose(-1, -2)
    limit = torch.full((batch,), num_landmarks, device=queries.device) if length is None else length
    limit = (limit.clamp_max(num_landmarks) - exclude_newest).clamp_min(0)
    hidden = torch.arange(num_landmarks, device=queries.device) >= limit[:, None, None]
    scores = scores.nan_to_num(float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    top, index = scores.masked_fill(hidden, float("-inf")).topk(min(k, num_landmarks), dim=-1)
    absent = torch.arange(top.shape[-1], device=queries.device) >= limit[:, None, None]
    top, index = top.masked_fill(absent, float("-inf")), index.masked_fill(absent, -1)
    missing = k - top.shape[-1]
    top = torch.nn.functional.pad(top, (0, missing), value=float("-inf"))
    return top.float(), torch.nn.functional.pad(index, (0, missing), value=-1).int()
