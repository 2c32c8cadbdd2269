# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""What a program of the decode kernel does that has one tile of the ring, one chunk or one block of latents.

At a small batch the kernel is as long as one chain of reads from cold memory, code among them. So queries, keys,
values and places are all asked for before the first of them is used, and there is no loop.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.dependent import results
from models.kernels.landmark_topk.kernel import candidate_page, ranked_page
from models.kernels.latent_decode.parts import (
    chunk_tokens,
    latent_basis,
    latent_factors,
    latent_run,
    raw_queries,
    raw_step,
    ring_keys,
    ring_values,
    table,
    turned,
)


@triton.jit
def single_ring_tile(tile, peak, total, acc, q_ptr, q_place_ptr, ring_k_ptr, ring_v_ptr, ring_place_ptr, cos_ptr,
                     sin_ptr, batch, kv_head, query, row_ok, num_places, scale_log2, ring_slots, q_stride_b,
                     q_stride_t, q_stride_h, rk_stride_b, rk_stride_m, rk_stride_h, rv_stride_b, rv_stride_m,
                     rv_stride_h, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_R: tl.constexpr,
                     BLOCK_N: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The state after tile `tile` of BLOCK_N slots of the ring."""
    HALF: tl.constexpr = DIM // 2
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    place, k1, k2 = ring_keys(
        tile, ring_k_ptr, ring_place_ptr, batch, kv_head, ring_slots, rk_stride_b, rk_stride_m, rk_stride_h, DIM,
        BLOCK_N,
    )  # fmt: skip
    step, q1, q2 = raw_queries(
        q_ptr,
        q_place_ptr,
        batch,
        kv_head,
        query,
        row_ok,
        q_stride_b,
        q_stride_t,
        q_stride_h,
        GROUP,
        DIM,
        BLOCK_R,
    )
    v = ring_values(
        tile, place, ring_v_ptr, batch, kv_head, rv_stride_b, rv_stride_m, rv_stride_h, DIM, BLOCK_N
    )
    cos, sin = table(place, cos_ptr, sin_ptr, num_places, HALF, ROTARY)
    own_cos, own_sin = table(step, cos_ptr, sin_ptr, num_places, HALF, ROTARY)
    turned1, turned2 = turned(q1, q2, own_cos, own_sin, ROTARY)
    ok = (place >= 0)[None, :] & (place[None, :] <= step[:, None])
    return raw_step(
        ok, k1, k2, v, cos, sin, turned1.to(dtype), turned2.to(dtype), peak, total, acc, scale_log2, ROTARY,
        PRECISION,
    )  # fmt: skip


@triton.jit
def single_chunk(unit, peak, total, acc, q_ptr, q_place_ptr, pool_k_ptr, pool_v_ptr, page_ptr, chosen_ptr,
                 page_place_ptr, page_length_ptr, cos_ptr, sin_ptr, batch, kv_head, query, row_ok, num_places,
                 num_chosen, scale_log2, q_stride_b, q_stride_t, q_stride_h, pk_stride_p, pk_stride_c, pk_stride_h,
                 pv_stride_p, pv_stride_c, pv_stride_h, GROUP: tl.constexpr, DIM: tl.constexpr,
                 BLOCK_R: tl.constexpr, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, LENGTHS: tl.constexpr,
                 CANDIDATES: tl.constexpr, LIST: tl.constexpr, CUT: tl.constexpr, ROTARY: tl.constexpr,
                 PRECISION: tl.constexpr, WAIT: tl.constexpr):  # fmt: skip
    """The state after one of CUT parts of the chunk in place `unit // CUT`.

    WAIT: only what names it comes from the kernel before. LIST: candidates are in sorted lists of so many (0: not).
    """
    HALF: tl.constexpr = DIM // 2
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    slot = unit // CUT
    part = unit % CUT * BLOCK_C
    first = tl.load(page_place_ptr + batch * num_chosen + slot) + part
    step, q1, q2 = raw_queries(
        q_ptr,
        q_place_ptr,
        batch,
        kv_head,
        query,
        row_ok,
        q_stride_b,
        q_stride_t,
        q_stride_h,
        GROUP,
        DIM,
        BLOCK_R,
    )
    cos, sin = table(first + tl.arange(0, BLOCK_C), cos_ptr, sin_ptr, num_places, HALF, ROTARY)
    own_cos, own_sin = table(step, cos_ptr, sin_ptr, num_places, HALF, ROTARY)
    turned1, turned2 = turned(q1, q2, own_cos, own_sin, ROTARY)
    results(WAIT)
    if CANDIDATES > 0:
        if LIST > 0:
            page = ranked_page(page_ptr + batch * CANDIDATES, slot, CANDIDATES, LIST)
        else:
            page = candidate_page(page_ptr + batch * CANDIDATES, slot, CANDIDATES)
        if kv_head + part == 0:
            tl.store(chosen_ptr + batch * num_chosen + slot, page)
    else:
        page = tl.load(page_ptr + batch * num_chosen + slot)
    ok, k1, k2, v = chunk_tokens(
        page, pool_k_ptr, pool_v_ptr, page_length_ptr, kv_head, pk_stride_p, pk_stride_c, pk_stride_h, pv_stride_p,
        pv_stride_c, pv_stride_h, DIM, CHUNK, BLOCK_C, LENGTHS, part,
    )  # fmt: skip
    return raw_step(
        ok[None, :], k1, k2, v, cos, sin, turned1.to(dtype), turned2.to(dtype), peak, total, acc, scale_log2,
        ROTARY, PRECISION,
    )  # fmt: skip


@triton.jit
def single_latent_block(block, peak, total, acc, q_ptr, q_place_ptr, key_factor_ptr, key_basis_ptr,
                        value_factor_ptr, value_basis_ptr, latent_place_ptr, cos_ptr, sin_ptr, batch, kv_head,
                        query, row_ok, num_places, num_blocks, scale_log2, q_stride_b, q_stride_t, q_stride_h,
                        KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_R: tl.constexpr,
                        RUNS: tl.constexpr, RUN: tl.constexpr, BLOCK_RUN: tl.constexpr, KEY_RANK: tl.constexpr,
                        BLOCK_KR: tl.constexpr, VALUE_RANK: tl.constexpr, BLOCK_VR: tl.constexpr,
                        ROTARY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The state after block `block` of latents: queries projected once a run, values expanded once."""
    HALF: tl.constexpr = DIM // 2
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    base = (batch * KV_HEADS + kv_head) * num_blocks + block
    place_row = batch * num_blocks + block
    place, u, factor = latent_factors(
        base, 0, place_row, key_factor_ptr, value_factor_ptr, latent_place_ptr, RUNS, RUN, BLOCK_RUN, KEY_RANK,
        BLOCK_KR, VALUE_RANK, BLOCK_VR,
    )  # fmt: skip
    b1, b2, expand = latent_basis(
        base, key_basis_ptr, value_basis_ptr, DIM, KEY_RANK, BLOCK_KR, VALUE_RANK, BLOCK_VR
    )
    step, q1, q2 = raw_queries(
        q_ptr,
        q_place_ptr,
        batch,
        kv_head,
        query,
        row_ok,
        q_stride_b,
        q_stride_t,
        q_stride_h,
        GROUP,
        DIM,
        BLOCK_R,
    )
    own_cos, own_sin = table(step, cos_ptr, sin_ptr, num_places, HALF, ROTARY)
    turned1, turned2 = turned(q1, q2, own_cos, own_sin, ROTARY)
    summed = tl.zeros([BLOCK_R, BLOCK_VR], tl.float32)
    peak, total, acc, summed = latent_run(
        place, u, factor, b1, b2, turned1, turned2, cos_ptr, sin_ptr, num_places, scale_log2, peak, total, acc,
        summed, dtype, DIM, RUN, BLOCK_RUN, ROTARY, PRECISION,
    )  # fmt: skip
    for run in range(1, RUNS):
        place, u, factor = latent_factors(
            base, run, place_row, key_factor_ptr, value_factor_ptr, latent_place_ptr, RUNS, RUN, BLOCK_RUN,
            KEY_RANK, BLOCK_KR, VALUE_RANK, BLOCK_VR,
        )  # fmt: skip
        peak, total, acc, summed = latent_run(
            place, u, factor, b1, b2, turned1, turned2, cos_ptr, sin_ptr, num_places, scale_log2, peak, total, acc,
            summed, dtype, DIM, RUN, BLOCK_RUN, ROTARY, PRECISION,
        )  # fmt: skip
    acc = tl.dot(summed.to(dtype), expand, acc, input_precision=PRECISION)
    return peak, total, acc
