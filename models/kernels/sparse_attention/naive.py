"""Attention over chosen chunks in plain PyTorch: the definition that the fused kernels are checked against."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.kernels.dispatch import accumulate_dtype


def sparse_attention_naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    *,
    chunk_size: int,
    block_q: int,
    scale: float,
    chunk_weights: torch.Tensor | None = None,
    causal: bool = False,
    query_start: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each block of queries attends to the chunks that its indices name, and to nothing else.

    Same arguments as `sparse_attention`. Returns (out [B, Nq, Hq, D] in q's dtype, lse [B, Nq, Hq]): lse is the
    logarithm of the softmax' denominator over all chosen tokens, minus infinity where nothing was chosen.
    Computes in float32 (float64 for float64 inputs). A token named twice counts twice.
    """
    batch, num_q, q_heads, dim = q.shape
    num_k, kv_heads = k.shape[1], k.shape[2]
    group = q_heads // kv_heads
    num_blocks, chosen = indices.shape[1], indices.shape[3]
    num_chunks = -(-num_k // chunk_size)
    dtype = accumulate_dtype(q.dtype)

    pad_q = num_blocks * block_q - num_q
    queries = F.pad(q.to(dtype), (0, 0, 0, 0, 0, pad_q)).view(
        batch, num_blocks, block_q, kv_heads, group, dim
    )
    index = indices.expand(batch, num_blocks, kv_heads, chosen).long()
    valid = index >= 0
    gathered_k = _gather(k.to(dtype), index.clamp_min(0), chunk_size, num_chunks)
    gathered_v = _gather(v.to(dtype), index.clamp_min(0), chunk_size, num_chunks)

    scores = torch.einsum("bnihgd,bnhkcd->bnhgikc", queries, gathered_k) * scale
    key_pos = index[..., None] * chunk_size + torch.arange(chunk_size, device=q.device)
    visible = (valid[..., None] & (key_pos < num_k))[:, :, :, None, None]
    if causal:
        query_pos = query_start + torch.arange(num_blocks * block_q, device=q.device).view(
            num_blocks, block_q
        )
        visible = visible & (key_pos[:, :, :, None, None] <= query_pos[None, :, None, None, :, None, None])
    scores = scores.masked_fill(~visible, float("-inf"))

    flat = scores.flatten(-2)
    lse = _safe_logsumexp(flat)
    if chunk_weights is None:
        probabilities = _safe_softmax(flat).view_as(scores)
    else:
        weights = chunk_weights.to(dtype).expand(batch, num_blocks, kv_heads, chosen)
        probabilities = _safe_softmax(scores) * weights[:, :, :, None, None, :, None]
    out = torch.einsum("bnhgikc,bnhkcd->bnihgd", probabilities, gathered_v)
    out = out.reshape(batch, num_blocks * block_q, q_heads, dim)[:, :num_q].to(q.dtype)
    lse = lse.permute(0, 1, 4, 2, 3).reshape(batch, num_blocks * block_q, q_heads)[:, :num_q]
    return out, lse


def _gather(x: torch.Tensor, index: torch.Tensor, chunk_size: int, num_chunks: int) -> torch.Tensor:
    """x [B, N, H, D] and index [B, nb, H, k] -> the chosen chunks [B, nb, H, k, chunk_size, D]."""
    batch, length, heads, dim = x.shape
    padded = F.pad(x, (0, 0, 0, 0, 0, num_chunks * chunk_size - length))
    chunks = padded.view(batch, num_chunks, chunk_size, heads, dim)
    b = torch.arange(batch, device=x.device)[:, None, None, None]
    h = torch.arange(heads, device=x.device)[None, None, :, None]
    return chunks.permute(0, 3, 1, 2, 4)[b, h, index]


def _safe_logsumexp(scores: torch.Tensor) -> torch.Tensor:
    """Logarithm of the sum of exponentials; minus infinity with zero gradient where nothing is visible."""
    if scores.shape[-1] == 0:
        return scores.new_full(scores.shape[:-1], float("-inf"))
    empty = scores.detach().amax(-1) == float("-inf")
    lse = torch.logsumexp(torch.where(empty[..., None], torch.zeros_like(scores), scores), -1)
    return lse.masked_fill(empty, float("-inf"))


def _safe_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension; rows that are all minus infinity become zeros, with zero gradient."""
    if scores.shape[-1] == 0:
        return scores
    peak = scores.detach().amax(-1, keepdim=True)
    peak = torch.where(peak.isinf(), torch.zeros_like(peak), peak)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, torch.ones_like(total))
