# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""What decode kernels are made of: turned queries, and one tile of the ring, one chunk or one block of latents.

A part takes the state of the online softmax of rows [R] (peak and total [R], acc [R, DIM]; scores in base 2) and
returns the state after its tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def online_step(s, peak, total):
    """One more tile of base-2 scores s [R, N]: its weights, the decay of what was summed, new peak and total."""
    new_peak = tl.maximum(peak, tl.max(s, 1))
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    p = tl.math.exp2(s - shift[:, None])
    decay = tl.math.exp2(peak - shift)
    return p, decay, new_peak, total * decay + tl.sum(p, 1)


@triton.jit
def score_raw(q1, q2, k1, k2, place, cos_ptr, sin_ptr, num_places, half, HALF: tl.constexpr,
              ROTARY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Unscaled scores [R, N] of turned queries against keys in halves [N, HALF], turned here by their place."""
    if ROTARY:
        rows = tl.minimum(tl.maximum(place, 0), num_places - 1)[:, None] * HALF + half[None, :]
        cos = tl.load(cos_ptr + rows).to(tl.float32)
        sin = tl.load(sin_ptr + rows).to(tl.float32)
        f1 = k1.to(tl.float32)
        f2 = k2.to(tl.float32)
        k1 = (f1 * cos - f2 * sin).to(q1.dtype)
        k2 = (f2 * cos + f1 * sin).to(q1.dtype)
    s = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
    return tl.dot(q2, tl.trans(k2), s, input_precision=PRECISION)


@triton.jit
def turned_queries(q_ptr, batch, kv_head, query, row_ok, step, cos_ptr, sin_ptr, num_places,
                   q_stride_b, q_stride_t, q_stride_h, GROUP: tl.constexpr, DIM: tl.constexpr,
                   BLOCK_R: tl.constexpr, ROTARY: tl.constexpr):  # fmt: skip
    """Turned queries of rows (query t, head of the group) in halves [R, DIM / 2], in float32 and in their dtype."""
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    head = kv_head * GROUP + tl.arange(0, BLOCK_R) % GROUP
    base = q_ptr + batch * q_stride_b + (query * q_stride_t + head * q_stride_h)[:, None] + half[None, :]
    q1 = tl.load(base, mask=row_ok[:, None], other=0.0)
    q2 = tl.load(base + HALF, mask=row_ok[:, None], other=0.0)
    dtype = q1.dtype
    turned1 = q1.to(tl.float32)
    turned2 = q2.to(tl.float32)
    if ROTARY:
        table = tl.minimum(tl.maximum(step, 0), num_places - 1)[:, None] * HALF + half[None, :]
        cos = tl.load(cos_ptr + table).to(tl.float32)
        sin = tl.load(sin_ptr + table).to(tl.float32)
        f1 = turned1
        f2 = turned2
        turned1 = f1 * cos - f2 * sin
        turned2 = f2 * cos + f1 * sin
        q1 = turned1.to(dtype)
        q2 = turned2.to(dtype)
    return turned1, turned2, q1, q2


@triton.jit
def ring_tile(tile, peak, total, acc, q1, q2, step, ring_k_ptr, ring_v_ptr, ring_place_ptr, batch, kv_head,
              cos_ptr, sin_ptr, num_places, scale_log2, ring_slots, rk_stride_b, rk_stride_m, rk_stride_h,
              rv_stride_b, rv_stride_m, rv_stride_h, DIM: tl.constexpr, BLOCK_N: tl.constexpr,
              ROTARY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The state after tile `tile` of BLOCK_N slots of the ring."""
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    slots = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.load(ring_place_ptr + batch * ring_slots + slots, mask=slots < ring_slots, other=-1)
    ok = place >= 0
    k_row = (
        ring_k_ptr + batch * rk_stride_b + kv_head * rk_stride_h + slots.to(tl.int64)[:, None] * rk_stride_m
    )
    k1 = tl.load(k_row + half[None, :], mask=ok[:, None], other=0.0)
    k2 = tl.load(k_row + (half + HALF)[None, :], mask=ok[:, None], other=0.0)
    s = score_raw(q1, q2, k1, k2, place, cos_ptr, sin_ptr, num_places, half, HALF, ROTARY, PRECISION)
    s = tl.where(ok[None, :] & (place[None, :] <= step[:, None]), s * scale_log2, float("-inf"))
    p, decay, peak, total = online_step(s, peak, total)
    v_row = (
        ring_v_ptr + batch * rv_stride_b + kv_head * rv_stride_h + slots.to(tl.int64)[:, None] * rv_stride_m
    )
    v = tl.load(v_row + tl.arange(0, DIM)[None, :], mask=ok[:, None], other=0.0)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return peak, total, acc


@triton.jit
def chunk_page(page, first, peak, total, acc, q1, q2, pool_k_ptr, pool_v_ptr, page_length_ptr, kv_head,
               cos_ptr, sin_ptr, num_places, scale_log2, pk_stride_p, pk_stride_c, pk_stride_h,
               pv_stride_p, pv_stride_c, pv_stride_h, DIM: tl.constexpr, CHUNK: tl.constexpr,
               BLOCK_C: tl.constexpr, LENGTHS: tl.constexpr, ROTARY: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """The state after page `page` of the pool (-1: none), whose first token stands at place `first`."""
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    tokens = tl.arange(0, BLOCK_C)
    ok = (tokens < CHUNK) & (page >= 0)
    row = tl.maximum(page, 0).to(tl.int64)
    if LENGTHS:
        ok = ok & (tokens < tl.load(page_length_ptr + row))
    k_row = pool_k_ptr + row * pk_stride_p + kv_head * pk_stride_h + tokens[:, None] * pk_stride_c
    k1 = tl.load(k_row + half[None, :], mask=ok[:, None], other=0.0)
    k2 = tl.load(k_row + (half + HALF)[None, :], mask=ok[:, None], other=0.0)
    s = score_raw(q1, q2, k1, k2, first + tokens, cos_ptr, sin_ptr, num_places, half, HALF, ROTARY, PRECISION)
    s = tl.where(ok[None, :], s * scale_log2, float("-inf"))
    p, decay, peak, total = online_step(s, peak, total)
    v_row = pool_v_ptr + row * pv_stride_p + kv_head * pv_stride_h + tokens[:, None] * pv_stride_c
    v = tl.load(v_row + tl.arange(0, DIM)[None, :], mask=ok[:, None], other=0.0)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return peak, total, acc


@triton.jit
def latent_block(block, peak, total, acc, q1, q2, turned1, turned2, key_factor_ptr, key_basis_ptr,
                 value_factor_ptr, value_basis_ptr, latent_place_ptr, batch, kv_head, cos_ptr, sin_ptr,
                 num_places, scale_log2, num_blocks, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
                 RUNS: tl.constexpr, RUN: tl.constexpr, BLOCK_RUN: tl.constexpr, KEY_RANK: tl.constexpr,
                 BLOCK_KR: tl.constexpr, VALUE_RANK: tl.constexpr, BLOCK_VR: tl.constexpr,
                 BLOCK_R: tl.constexpr, ROTARY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The state after block `block` of latents: queries projected once a run, values expanded once."""
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    dims = tl.arange(0, DIM)
    dtype = q1.dtype
    key_ranks = tl.arange(0, BLOCK_KR)
    value_ranks = tl.arange(0, BLOCK_VR)
    lanes = tl.arange(0, BLOCK_RUN)
    base = (batch * KV_HEADS + kv_head) * num_blocks + block
    basis = key_basis_ptr + base * (KEY_RANK * DIM) + key_ranks[:, None] * DIM + half[None, :]
    basis_ok = (key_ranks < KEY_RANK)[:, None]
    b1 = tl.load(basis, mask=basis_ok, other=0.0)
    b2 = tl.load(basis + HALF, mask=basis_ok, other=0.0)
    summed = tl.zeros([BLOCK_R, BLOCK_VR], tl.float32)
    for run in range(0, RUNS):
        place = tl.load(latent_place_ptr + (batch * num_blocks + block) * RUNS + run)
        back1 = q1
        back2 = q2
        if ROTARY:
            line = tl.minimum(tl.maximum(place, 0), num_places - 1) * HALF + half
            run_cos = tl.load(cos_ptr + line).to(tl.float32)[None, :]
            run_sin = tl.load(sin_ptr + line).to(tl.float32)[None, :]
            back1 = (turned1 * run_cos + turned2 * run_sin).to(dtype)
            back2 = (turned2 * run_cos - turned1 * run_sin).to(dtype)
        w = tl.dot(back1, tl.trans(b1), input_precision=PRECISION)
        w = tl.dot(back2, tl.trans(b2), w, input_precision=PRECISION)
        line_ok = (lanes < RUN) & (place >= 0)
        token = base * (RUNS * RUN) + run * RUN + lanes
        u = tl.load(
            key_factor_ptr + token[:, None] * KEY_RANK + key_ranks[None, :],
            mask=line_ok[:, None] & (key_ranks < KEY_RANK)[None, :],
            other=0.0,
        )
        s = tl.dot(w.to(dtype), tl.trans(u), input_precision=PRECISION)
        s = tl.where(line_ok[None, :], s * scale_log2, float("-inf"))
        p, decay, peak, total = online_step(s, peak, total)
        factor = tl.load(
            value_factor_ptr + token[:, None] * VALUE_RANK + value_ranks[None, :],
            mask=line_ok[:, None] & (value_ranks < VALUE_RANK)[None, :],
            other=0.0,
        )
        summed = tl.dot(p.to(dtype), factor, summed * decay[:, None], input_precision=PRECISION)
        acc = acc * decay[:, None]
    expand = tl.load(
        value_basis_ptr + base * (VALUE_RANK * DIM) + value_ranks[:, None] * DIM + dims[None, :],
        mask=(value_ranks < VALUE_RANK)[:, None],
        other=0.0,
    )
    acc = tl.dot(summed.to(dtype), expand, acc, input_precision=PRECISION)
    return peak, total, acc
