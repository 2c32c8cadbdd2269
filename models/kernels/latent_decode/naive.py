"""Decode over ring, latents and chosen chunks in plain PyTorch: the definition of what the fused kernel computes.

Positions. All keys come from before rotary embedding and are turned by their *place*, a small integer that the
cache gives out, never by the stream's absolute position. With R(p) the rotation by place p, q the query (also
from before rotary embedding) at place P + t, and f = 1 / sqrt(D) or the given scale, the scores are

    ring slot s at place p_s           f · (R(P + t) q) · (R(p_s) k_s)             visible if 0 <= p_s <= P + t
    chosen chunk c, token j            f · (R(P + t) q) · (R(p_c + j) k_cj)        visible if its page is named
    latent block n, token j of run g   f · (R(P + t) q) · (R(p_ng) K_n^T u_nj)     visible if p_ng >= 0

and one softmax runs over all of them. The last line is the one that needs no unpacking: all tokens of a run g stand
at one place, so (R(P + t) q) · (R(p) K^T u) = u · (K R(p)^T R(P + t) q): the query is turned back by the run's
place and projected on the block's basis once (rk × D products), after which every token costs rk products. It is
exact in the factors; what it approximates is the place of a token *inside* a run: with runs of L tokens an angle
is off by at most (L - 1) / 2 places when the run stands at its middle. One token to a run (G = tokens) has no such
error and is the form that unpacking would give; G = 1 is the cheapest. Values: the weights are summed in the
factor's rank, a_n = sum_j p_nj w_nj, and expanded once per block, a_n · V_n.
"""

from __future__ import annotations

import torch

from models.kernels.dispatch import accumulate_dtype
from models.kernels.latent_decode.types import ChosenChunks, Latents

Rotary = tuple[torch.Tensor, torch.Tensor]


def latent_decode_naive(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    *,
    latents: Latents | None,
    chunks: ChosenChunks | None,
    rotary: Rotary | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpacks every latent and every chunk, then one softmax. Same arguments as `latent_decode`.

    Returns (out [B, T, Hq, D] in q's dtype, lse [B, T, Hq]); zeros and minus infinity where nothing is visible.
    Computes in float32 (float64 for float64 inputs).
    """
    batch, num_q, q_heads, dim = q.shape
    kv_heads = ring_k.shape[2]
    dtype = accumulate_dtype(q.dtype)
    steps = q_place[:, None] + torch.arange(num_q, device=q.device)
    queries = rotate(q.to(dtype), steps, rotary)

    keys = [rotate(ring_k.to(dtype), ring_place, rotary)]
    values = [ring_v.to(dtype)]
    visible = [(ring_place[:, None] >= 0) & (ring_place[:, None] <= steps[..., None])]
    if latents is not None:
        tokens, runs = latents.key_factor.shape[3], latents.place.shape[2]
        place = latents.place.repeat_interleave(tokens // runs, dim=2).flatten(1)
        unpacked = latents.key_factor.to(dtype) @ latents.key_basis.to(dtype)
        keys.append(rotate(unpacked.flatten(2, 3).transpose(1, 2), place, rotary))
        unpacked = latents.value_factor.to(dtype) @ latents.value_basis.to(dtype)
        values.append(unpacked.flatten(2, 3).transpose(1, 2))
        visible.append((place >= 0)[:, None].expand(batch, num_q, place.shape[1]))
    if chunks is not None:
        size = chunks.keys.shape[1]
        pages = chunks.pages.clamp_min(0).long()
        offsets = torch.arange(size, device=q.device)
        place = (chunks.place[..., None] + offsets).flatten(1)
        ok = (chunks.pages >= 0)[..., None].expand(*chunks.pages.shape, size)
        if chunks.lengths is not None:
            ok = ok & (offsets < chunks.lengths[pages][..., None])
        keys.append(rotate(chunks.keys[pages].to(dtype).flatten(1, 2), place, rotary))
        values.append(chunks.values[pages].to(dtype).flatten(1, 2))
        visible.append(ok.flatten(1)[:, None].expand(batch, num_q, ok[0].numel()))

    all_keys, all_values, seen = torch.cat(keys, 1), torch.cat(values, 1), torch.cat(visible, 2)
    grouped = queries.view(batch, num_q, kv_heads, q_heads // kv_heads, dim)
    scores = torch.einsum("bthgd,bnhd->bthgn", grouped, all_keys) * scale
    scores = scores.masked_fill(~seen[:, :, None, None], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    peak = torch.where(lse.isinf(), torch.zeros_like(lse), lse)
    probabilities = torch.exp(scores - peak[..., None])
    all_values = all_values.masked_fill(~seen.any(1)[..., None, None], 0.0)  # free slots may hold anything
    out = torch.einsum("bthgn,bnhd->bthgd", probabilities, all_values)
    return out.reshape(batch, num_q, q_heads, dim).to(q.dtype), lse.view(batch, num_q, q_heads)


def rotate(x: torch.Tensor, place: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
    """x [B, N, H, D] turned by place [B, N] with tables (cos, sin) [places, D / 2]; halves form the pairs."""
    if rotary is None:
        return x
    cos, sin = (
        table.to(x.dtype)[place.clamp(0, rotary[0].shape[0] - 1).long()][:, :, None] for table in rotary
    )
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
