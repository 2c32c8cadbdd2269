# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""Triton kernel of the forward pass: a program holds BLOCK_M rows (queries x heads) of a query block."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    index_ptr,
    weight_ptr,
    out_ptr,
    lse_ptr,
    scale_log2,
    num_q,
    num_k,
    query_start,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_t,
    k_stride_h,
    v_stride_b,
    v_stride_t,
    v_stride_h,
    i_stride_b,
    i_stride_n,
    i_stride_h,
    w_stride_b,
    w_stride_n,
    w_stride_h,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    CHUNK: tl.constexpr,
    CHOSEN: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STEP: tl.constexpr,
    MIXED: tl.constexpr,
    CAUSAL: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out, lse of rows [BLOCK_M]; STEP chunks are read at a time (1 when MIXED: softmax inside each chunk).

    TMA: k_ptr and v_ptr are tensor descriptors of [B * Nk, Hkv * D] with tiles [CHUNK, DIM]; STEP is 1, Nk even.
    """
    tile = tl.program_id(0)
    block = tl.program_id(1)
    batch = (tl.program_id(2) // KV_HEADS).to(tl.int64)
    kv_head = tl.program_id(2) % KV_HEADS

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    position = block * BLOCK_Q + rows % BLOCK_Q
    head = kv_head * GROUP + rows // BLOCK_Q
    row_ok = (rows < GROUP * BLOCK_Q) & (position < num_q)
    dims = tl.arange(0, DIM)
    q_rows = batch * q_stride_b + position.to(tl.int64) * q_stride_t + head * q_stride_h
    q = tl.load(q_ptr + q_rows[:, None] + dims[None, :], mask=row_ok[:, None], other=0.0)

    if not TMA:
        k_base = k_ptr + batch * k_stride_b + kv_head * k_stride_h
        v_base = v_ptr + batch * v_stride_b + kv_head * v_stride_h
    index_base = index_ptr + batch * i_stride_b + block.to(tl.int64) * i_stride_n + kv_head * i_stride_h
    weight_base = weight_ptr + batch * w_stride_b + block.to(tl.int64) * w_stride_n + kv_head * w_stride_h

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    cols = tl.arange(0, STEP * CHUNK)

    for slot in range(0, CHOSEN, STEP):
        if STEP == 1:
            chunk = tl.load(index_base + slot)
            key_pos = tl.maximum(chunk, 0) * CHUNK + cols
            bias = tl.where(chunk >= 0, 0.0, float("-inf"))
        else:
            slots = slot + cols // CHUNK
            chunk = tl.load(index_base + slots, mask=slots < CHOSEN, other=-1)
            key_pos = tl.maximum(chunk, 0) * CHUNK + cols % CHUNK
            bias = 0.0
        key_off = key_pos.to(tl.int64)
        if TMA:
            line = (batch * num_k + tl.maximum(chunk, 0) * CHUNK).to(tl.int32)
            k = k_ptr.load([line, kv_head * DIM])
        elif EVEN:
            k = tl.load(k_base + key_off[:, None] * k_stride_t + dims[None, :])
        else:
            k = tl.load(
                k_base + key_off[:, None] * k_stride_t + dims[None, :],
                mask=(key_pos < num_k)[:, None],
                other=0.0,
            )
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if STEP > 1:
            s = s + tl.where(chunk >= 0, 0.0, float("-inf"))[None, :]
        if not EVEN:
            s = tl.where((key_pos < num_k)[None, :], s, float("-inf"))
        if CAUSAL:
            s = tl.where(key_pos[None, :] <= query_start + position[:, None], s, float("-inf"))
        row_peak = tl.max(s, 1) * scale_log2 + bias
        if TMA:
            v = v_ptr.load([line, kv_head * DIM])
        elif EVEN:
            v = tl.load(v_base + key_off[:, None] * v_stride_t + dims[None, :])
        else:
            v = tl.load(
                v_base + key_off[:, None] * v_stride_t + dims[None, :],
                mask=(key_pos < num_k)[:, None],
                other=0.0,
            )
        if MIXED:
            shift = tl.where(row_peak == float("-inf"), 0.0, row_peak)
            p = tl.math.exp2(s * scale_log2 + (bias - shift)[:, None])
            mass = tl.sum(p, 1)
            weight = tl.load(weight_base + slot).to(tl.float32)
            p = p * (weight / tl.where(mass > 0.0, mass, 1.0))[:, None]
        else:
            new_peak = tl.maximum(peak, row_peak)
            shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            p = tl.math.exp2(s * scale_log2 + (bias - shift)[:, None])
            decay = tl.math.exp2(peak - shift)
            total = total * decay + tl.sum(p, 1)
            acc = acc * decay[:, None]
            peak = new_peak
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)

    out_rows = ((batch * num_q + position) * (KV_HEADS * GROUP) + head).to(tl.int64)
    if not MIXED:
        acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        lse = tl.where(total > 0.0, peak + tl.math.log2(total), float("-inf"))
        tl.store(lse_ptr + out_rows, lse, mask=row_ok)
    out = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_rows[:, None] * DIM + dims[None, :], out, mask=row_ok[:, None])
