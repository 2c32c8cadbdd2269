"""Decode of one or a few new queries over ring, latents and chosen chunks, in one softmax."""

from __future__ import annotations

import torch

from models.kernels.dispatch import (
    Implementation,
    check_floating,
    check_head_dim,
    check_same,
    check_scale,
    use_fused,
)
from models.kernels.latent_decode.naive import Rotary, latent_decode_naive
from models.kernels.latent_decode.types import ChosenChunks, Latents

__all__ = ["ChosenChunks", "Latents", "latent_decode", "latent_decode_naive"]

MAX_ROWS = 128


def latent_decode(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    *,
    latents: Latents | None = None,
    chunks: ChosenChunks | None = None,
    rotary: Rotary | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    splits: int | None = None,
    implementation: Implementation = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One softmax over ring, latents and chosen chunks; the latents are never unpacked to full size.

    q [B, T, Hq, D], before rotary embedding: T new queries at places q_place[b] … q_place[b] + T - 1 (int32 [B]).
    ring_k, ring_v [B, M, Hkv, D], keys before rotary embedding; ring_place int32 [B, M], -1 hides a slot, and
    a slot is visible to queries at its place or later. Rows of a batch may be filled to different lengths.
    rotary: (cos, sin) tables [places, D / 2], applied here to queries and keys; None leaves both as given (keys
    already turned, or a model without rotary embedding). naive.py states the semantics of places in full.

    Forward only. Returns out [B, T, Hq, D] (zeros where nothing is visible), with `return_lse` also the
    logarithm of the softmax' denominator, float32 [B, T, Hq]. `splits` overrides over how many programs the
    tokens of one key head are divided.
    """
    check_decode(q, ring_k, ring_v, ring_place, q_place, latents, chunks, rotary)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    check_scale(scale)
    if splits is not None and splits < 1:
        raise ValueError(f"splits is {splits}; give at least 1, or None for what is fastest")
    if use_fused(implementation, q):
        check_head_dim(q.shape[-1], smallest=32)
        rows = q.shape[1] * (q.shape[2] // ring_k.shape[2])
        if rows > MAX_ROWS:
            raise ValueError(
                f"{q.shape[1]} queries x {q.shape[2] // ring_k.shape[2]} heads of a group are {rows} rows; "
                f"the decode kernel takes up to {MAX_ROWS}: pass fewer queries, or use implementation='naive'"
            )
        if q.dtype == torch.float64:
            raise ValueError(
                "the fused kernel takes float32, bfloat16 or float16; use implementation='naive'"
            )
        from models.kernels.latent_decode.fused import latent_decode_fused

        out, lse = latent_decode_fused(
            q,
            ring_k,
            ring_v,
            ring_place,
            q_place,
            latents=latents,
            chunks=chunks,
            rotary=rotary,
            scale=scale,
            splits=splits,
        )
    else:
        out, lse = latent_decode_naive(
            q, ring_k, ring_v, ring_place, q_place, latents=latents, chunks=chunks, rotary=rotary, scale=scale
        )
    return (out, lse) if return_lse else out


def check_decode(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    latents: Latents | None,
    chunks: ChosenChunks | None,
    rotary: Rotary | None,
) -> None:
    if q.ndim != 4 or ring_k.ndim != 4 or ring_k.shape != ring_v.shape:
        raise ValueError(
            f"q, ring_k, ring_v are {tuple(q.shape)}, {tuple(ring_k.shape)}, {tuple(ring_v.shape)}; "
            "expected [B, T, Hq, D] and twice [B, M, Hkv, D]"
        )
    batch, kv_heads, dim = q.shape[0], ring_k.shape[2], q.shape[3]
    if ring_k.shape[0] != batch or ring_k.shape[3] != dim or q.shape[2] % kv_heads:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit ring_k {tuple(ring_k.shape)}: batches and head widths must be equal "
            "and the query heads a multiple of the key heads"
        )
    check_floating("q", q)
    check_same("ring_k", ring_k, "q", q)
    check_same("ring_v", ring_v, "q", q)
    for name, table, shape in (
        ("ring_place", ring_place, ring_k.shape[:2]),
        ("q_place", q_place, q.shape[:1]),
    ):
        if table.dtype != torch.int32 or table.shape != shape:
            raise ValueError(f"{name} is {table.dtype} {tuple(table.shape)}; expected int32 {tuple(shape)}")
    if latents is not None:
        for name in ("key_factor", "key_basis", "value_factor", "value_basis"):
            check_same(f"latents' {name}", getattr(latents, name), "q", q)
        given = (latents.key_factor.shape[0], latents.key_factor.shape[1], latents.key_basis.shape[-1])
        if given != (batch, kv_heads, dim):
            raise ValueError(
                f"latents are for (batch, heads, width) {given}; q and the ring are {(batch, kv_heads, dim)}"
            )
    if chunks is not None:
        check_same("chunks' keys", chunks.keys, "q", q)
        check_same("chunks' values", chunks.values, "q", q)
        if chunks.keys.shape[2:] != (kv_heads, dim) or chunks.pages.shape[0] != batch:
            raise ValueError(
                f"chunks are {tuple(chunks.keys.shape)} with pages {tuple(chunks.pages.shape)}; expected "
                f"[P, C, {kv_heads}, {dim}] with pages [{batch}, K]"
            )
    if rotary is not None and (rotary[0].shape != rotary[1].shape or rotary[0].shape[-1] * 2 != dim):
        raise ValueError(
            f"rotary tables are {tuple(rotary[0].shape)} and {tuple(rotary[1].shape)}; "
            f"expected [places, {dim // 2}] twice"
        )
    if rotary is not None:
        for table in rotary:
            check_floating("a rotary table", table)
            if table.device != q.device:
                raise ValueError(
                    f"a rotary table is on {table.device} but q is on {q.device}; give both one device"
                )
