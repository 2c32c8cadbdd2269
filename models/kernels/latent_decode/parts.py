# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""What decode kernels are made of: what is read of a tile of the ring, a chunk or a block of latents, and its step.

A step takes the state of the online softmax of rows [R] (peak and total [R], acc [R, DIM]; scores in base 2) and
returns the state after its tokens. Reading is apart from it, because a short kernel is as long as its chain of
reads: what does not wait for another is asked for before the first result is used.
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
def table(place, cos_ptr, sin_ptr, num_places, HALF: tl.constexpr, ROTARY: tl.constexpr):
    """Cosines and sines [N, HALF] of places [N]; without rotary embedding ones and zeros that nobody reads."""
    if ROTARY:
        rows = tl.minimum(tl.maximum(place, 0), num_places - 1)[:, None] * HALF + tl.arange(0, HALF)[None, :]
        cos = tl.load(cos_ptr + rows).to(tl.float32)
        sin = tl.load(sin_ptr + rows).to(tl.float32)
    else:
        cos = 1.0
        sin = 0.0
    return cos, sin


@triton.jit
def turned(x1, x2, cos, sin, ROTARY: tl.constexpr):
    """Halves [N, HALF] turned by their places, in float32."""
    f1 = x1.to(tl.float32)
    f2 = x2.to(tl.float32)
    if ROTARY:
        return f1 * cos - f2 * sin, f2 * cos + f1 * sin
    return f1, f2


@triton.jit
def raw_queries(q_ptr, q_place_ptr, batch, kv_head, query, row_ok, q_stride_b, q_stride_t, q_stride_h,
                GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_R: tl.constexpr):  # fmt: skip
    """Rows (query t, head of the group): their steps [R] and their queries in halves [R, DIM / 2], not turned."""
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    step = tl.load(q_place_ptr + batch) + query
    head = kv_head * GROUP + tl.arange(0, BLOCK_R) % GROUP
    base = q_ptr + batch * q_stride_b + (query * q_stride_t + head * q_stride_h)[:, None] + half[None, :]
    q1 = tl.load(base, mask=row_ok[:, None], other=0.0)
    q2 = tl.load(base + HALF, mask=row_ok[:, None], other=0.0)
    return step, q1, q2


@triton.jit
def ring_keys(tile, ring_k_ptr, ring_place_ptr, batch, kv_head, ring_slots, stride_b, stride_m, stride_h,
              DIM: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Places [N] and keys in halves of one tile of the ring; those of empty slots may be anything."""
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    slots = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = slots < ring_slots
    place = tl.load(ring_place_ptr + batch * ring_slots + slots, mask=ok, other=-1)
    row = ring_k_ptr + batch * stride_b + kv_head * stride_h + slots.to(tl.int64)[:, None] * stride_m
    k1 = tl.load(row + half[None, :], mask=ok[:, None], other=0.0)
    k2 = tl.load(row + (half + HALF)[None, :], mask=ok[:, None], other=0.0)
    return place, k1, k2


@triton.jit
def ring_values(tile, place, ring_v_ptr, batch, kv_head, stride_b, stride_m, stride_h, DIM: tl.constexpr,
                BLOCK_N: tl.constexpr):  # fmt: skip
    """Values [N, DIM] of one tile of the ring, zeros in empty slots."""
    slots = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    row = ring_v_ptr + batch * stride_b + kv_head * stride_h + slots[:, None] * stride_m
    return tl.load(row + tl.arange(0, DIM)[None, :], mask=(place >= 0)[:, None], other=0.0)


@triton.jit
def chunk_tokens(page, pool_k_ptr, pool_v_ptr, page_length_ptr, kv_head, pk_stride_p, pk_stride_c, pk_stride_h,
                 pv_stride_p, pv_stride_c, pv_stride_h, DIM: tl.constexpr, CHUNK: tl.constexpr,
                 BLOCK_C: tl.constexpr, LENGTHS: tl.constexpr, first=0):  # fmt: skip
    """Which of BLOCK_C tokens of page `page` of the pool (-1: none) count, their keys in halves, their values."""
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    tokens = first + tl.arange(0, BLOCK_C)
    ok = (tokens < CHUNK) & (page >= 0)
    row = tl.maximum(page, 0).to(tl.int64)
    if LENGTHS:
        ok = ok & (tokens < tl.load(page_length_ptr + row))
    k_row = pool_k_ptr + row * pk_stride_p + kv_head * pk_stride_h + tokens[:, None] * pk_stride_c
    k1 = tl.load(k_row + half[None, :], mask=ok[:, None], other=0.0)
    k2 = tl.load(k_row + (half + HALF)[None, :], mask=ok[:, None], other=0.0)
    v_row = pool_v_ptr + row * pv_stride_p + kv_head * pv_stride_h + tokens[:, None] * pv_stride_c
    v = tl.load(v_row + tl.arange(0, DIM)[None, :], mask=ok[:, None], other=0.0)
    return ok, k1, k2, v


@triton.jit
def raw_step(ok, k1, k2, v, cos, sin, q1, q2, peak, total, acc, scale_log2, ROTARY: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """The state after keys [N] in halves and values [N, DIM] of which row r sees those of ok [R or 1, N]."""
    k1, k2 = turned(k1, k2, cos, sin, ROTARY)
    s = tl.dot(q1, tl.trans(k1.to(q1.dtype)), input_precision=PRECISION)
    s = tl.dot(q2, tl.trans(k2.to(q2.dtype)), s, input_precision=PRECISION)
    s = tl.where(ok, s * scale_log2, float("-inf"))
    p, decay, peak, total = online_step(s, peak, total)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return peak, total, acc


@triton.jit
def latent_basis(base, key_basis_ptr, value_basis_ptr, DIM: tl.constexpr, KEY_RANK: tl.constexpr,
                 BLOCK_KR: tl.constexpr, VALUE_RANK: tl.constexpr, BLOCK_VR: tl.constexpr):  # fmt: skip
    """Bases of block `base`: of keys in halves [KR, DIM / 2], of values [VR, DIM]."""
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    key_ranks = tl.arange(0, BLOCK_KR)
    value_ranks = tl.arange(0, BLOCK_VR)
    basis = key_basis_ptr + base * (KEY_RANK * DIM) + key_ranks[:, None] * DIM + half[None, :]
    basis_ok = (key_ranks < KEY_RANK)[:, None]
    b1 = tl.load(basis, mask=basis_ok, other=0.0)
    b2 = tl.load(basis + HALF, mask=basis_ok, other=0.0)
    expand = tl.load(
        value_basis_ptr + base * (VALUE_RANK * DIM) + value_ranks[:, None] * DIM + tl.arange(0, DIM)[None, :],
        mask=(value_ranks < VALUE_RANK)[:, None],
        other=0.0,
    )
    return b1, b2, expand


@triton.jit
def latent_factors(base, run, place_row, key_factor_ptr, value_factor_ptr, latent_place_ptr, RUNS: tl.constexpr,
                   RUN: tl.constexpr, BLOCK_RUN: tl.constexpr, KEY_RANK: tl.constexpr, BLOCK_KR: tl.constexpr,
                   VALUE_RANK: tl.constexpr, BLOCK_VR: tl.constexpr):  # fmt: skip
    """Place of one run of block `base` and its factors of keys [RUN, KR] and values [RUN, VR] (zeros if empty)."""
    key_ranks = tl.arange(0, BLOCK_KR)
    value_ranks = tl.arange(0, BLOCK_VR)
    lanes = tl.arange(0, BLOCK_RUN)
    place = tl.load(latent_place_ptr + place_row * RUNS + run)
    token = base * (RUNS * RUN) + run * RUN + lanes
    u = tl.load(
        key_factor_ptr + token[:, None] * KEY_RANK + key_ranks[None, :],
        mask=(lanes < RUN)[:, None] & (key_ranks < KEY_RANK)[None, :],
        other=0.0,
    )
    factor = tl.load(
        value_factor_ptr + token[:, None] * VALUE_RANK + value_ranks[None, :],
        mask=((lanes < RUN) & (place >= 0))[:, None] & (value_ranks < VALUE_RANK)[None, :],
        other=0.0,
    )
    return place, u, factor


@triton.jit
def latent_run(place, u, factor, b1, b2, turned1, turned2, cos_ptr, sin_ptr, num_places, scale_log2, peak, total,
               acc, summed, dtype: tl.constexpr, DIM: tl.constexpr, RUN: tl.constexpr, BLOCK_RUN: tl.constexpr,
               ROTARY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The state, and the values summed in rank [R, VR], after one run: queries turned back and projected."""
    HALF: tl.constexpr = DIM // 2
    back1 = turned1
    back2 = turned2
    if ROTARY:
        line = tl.minimum(tl.maximum(place, 0), num_places - 1) * HALF + tl.arange(0, HALF)
        run_cos = tl.load(cos_ptr + line).to(tl.float32)[None, :]
        run_sin = tl.load(sin_ptr + line).to(tl.float32)[None, :]
        back1 = turned1 * run_cos + turned2 * run_sin
        back2 = turned2 * run_cos - turned1 * run_sin
    w = tl.dot(back1.to(dtype), tl.trans(b1), input_precision=PRECISION)
    w = tl.dot(back2.to(dtype), tl.trans(b2), w, input_precision=PRECISION)
    s = tl.dot(w.to(dtype), tl.trans(u), input_precision=PRECISION)
    line_ok = (tl.arange(0, BLOCK_RUN) < RUN) & (place >= 0)
    s = tl.where(line_ok[None, :], s * scale_log2, float("-inf"))
    p, decay, peak, total = online_step(s, peak, total)
    summed = tl.dot(p.to(dtype), factor, summed * decay[:, None], input_precision=PRECISION)
    return peak, total, acc * decay[:, None], summed
