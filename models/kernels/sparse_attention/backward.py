# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""Triton kernels of the backward pass.

dq: one program per block of rows, as forward. dk, dv: one program per chunk, over the inverted list of the query
blocks that chose it; scores are computed transposed from the start, so that no accumulator is ever transposed
(Triton below 3.7.1 miscompiles that at width 64 on Hopper).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def delta_kernel(
    out_ptr,
    grad_ptr,
    lse_grad_ptr,
    delta_ptr,
    num_rows,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    LSE_GRAD: tl.constexpr,
):
    """delta = rowsum(out * grad) (minus the gradient of lse); out, grad [num_rows, DIM] contiguous."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = rows < num_rows
    offsets = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    out = tl.load(out_ptr + offsets, mask=ok[:, None], other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offsets, mask=ok[:, None], other=0.0).to(tl.float32)
    delta = tl.sum(out * grad, 1)
    if LSE_GRAD:
        delta -= tl.load(lse_grad_ptr + rows, mask=ok, other=0.0)
    tl.store(delta_ptr + rows, delta, mask=ok)


@triton.jit
def dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    index_ptr,
    weight_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    dweight_ptr,
    dk_ptr,
    dv_ptr,
    scale,
    scale_log2,
    num_q,
    num_k,
    query_start,
    num_blocks,
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
    MIXED: tl.constexpr,
    CAUSAL: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    ATOMIC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq of BLOCK_M rows; MIXED also the rows' share of dweight; ATOMIC also adds to float32 dk, dv."""
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
    out_rows = ((batch * num_q + position) * (KV_HEADS * GROUP) + head).to(tl.int64)
    grad = tl.load(grad_ptr + out_rows[:, None] * DIM + dims[None, :], mask=row_ok[:, None], other=0.0)
    if not MIXED:
        lse = tl.load(lse_ptr + out_rows, mask=row_ok, other=float("inf"))
        lse = tl.where(lse == float("-inf"), float("inf"), lse)
        delta = tl.load(delta_ptr + out_rows, mask=row_ok, other=0.0)

    if not TMA:
        k_base = k_ptr + batch * k_stride_b + kv_head * k_stride_h
        v_base = v_ptr + batch * v_stride_b + kv_head * v_stride_h
    index_base = index_ptr + batch * i_stride_b + block.to(tl.int64) * i_stride_n + kv_head * i_stride_h
    weight_base = weight_ptr + batch * w_stride_b + block.to(tl.int64) * w_stride_n + kv_head * w_stride_h
    part = ((batch * num_blocks + block) * KV_HEADS + kv_head) * tl.num_programs(0) + tile

    dq = tl.zeros([BLOCK_M, DIM], tl.float32)
    cols = tl.arange(0, CHUNK)
    for slot in range(0, CHOSEN):
        chunk = tl.load(index_base + slot)
        key_pos = tl.maximum(chunk, 0) * CHUNK + cols
        bias = tl.where(chunk >= 0, 0.0, float("-inf"))
        key_off = key_pos.to(tl.int64)
        if TMA:
            line = (batch * num_k + tl.maximum(chunk, 0) * CHUNK).to(tl.int32)
            k = k_ptr.load([line, kv_head * DIM])
            v = v_ptr.load([line, kv_head * DIM])
        elif EVEN:
            k = tl.load(k_base + key_off[:, None] * k_stride_t + dims[None, :])
            v = tl.load(v_base + key_off[:, None] * v_stride_t + dims[None, :])
        else:
            key_ok = (key_pos < num_k)[:, None]
            k = tl.load(k_base + key_off[:, None] * k_stride_t + dims[None, :], mask=key_ok, other=0.0)
            v = tl.load(v_base + key_off[:, None] * v_stride_t + dims[None, :], mask=key_ok, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if not EVEN:
            s = tl.where((key_pos < num_k)[None, :], s, float("-inf"))
        if CAUSAL:
            s = tl.where(key_pos[None, :] <= query_start + position[:, None], s, float("-inf"))
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        if MIXED:
            row_peak = tl.max(s, 1) * scale_log2 + bias
            shift = tl.where(row_peak == float("-inf"), 0.0, row_peak)
            p = tl.math.exp2(s * scale_log2 + (bias - shift)[:, None])
            mass = tl.sum(p, 1)
            p = p * (1.0 / tl.where(mass > 0.0, mass, 1.0))[:, None]
            own = tl.sum(p * dp, 1)
            tl.store(dweight_ptr + part * CHOSEN + slot, tl.sum(tl.where(row_ok, own, 0.0), 0))
            weight = tl.load(weight_base + slot).to(tl.float32)
            ds = p * (dp - own[:, None]) * weight
            p = p * weight
        else:
            p = tl.math.exp2(s * scale_log2 + (bias - lse)[:, None])
            ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        if ATOMIC:
            ok = (chunk >= 0) & (key_pos < num_k)
            flat = (batch * num_k + key_off) * KV_HEADS + kv_head
            target = flat[:, None] * DIM + dims[None, :]
            dv = tl.dot(tl.trans(p.to(grad.dtype)), grad, input_precision=PRECISION)
            tl.atomic_add(dv_ptr + target, dv, mask=ok[:, None], sem="relaxed")
            dk = tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION) * scale
            tl.atomic_add(dk_ptr + target, dk, mask=ok[:, None], sem="relaxed")

    dq = (dq * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + out_rows[:, None] * DIM + dims[None, :], dq, mask=row_ok[:, None])


@triton.jit
def dkv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    weight_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    start_ptr,
    entry_ptr,
    dk_ptr,
    dv_ptr,
    scale,
    scale_log2,
    num_q,
    num_k,
    num_chunks,
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
    w_stride_b,
    w_stride_n,
    w_stride_h,
    KV_HEADS: tl.constexpr,
    INDEX_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    CHUNK: tl.constexpr,
    CHOSEN: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MIXED: tl.constexpr,
    CAUSAL: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk, dv of one chunk: sums over the entries (query block * CHOSEN + slot) of its inverted list, in order.

    TMA: q_ptr and grad_ptr are tensor descriptors of [B * Nq, Hq * D] with tiles [BLOCK_Q, DIM]; BLOCK_M is BLOCK_Q
    and divides Nq, so that a tile is one head.
    """
    chunk = tl.program_id(0)
    batch = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    kv_head = tl.program_id(1) % KV_HEADS
    TILES: tl.constexpr = (GROUP * BLOCK_Q + BLOCK_M - 1) // BLOCK_M

    dims = tl.arange(0, DIM)
    key_pos = chunk * CHUNK + tl.arange(0, CHUNK)
    key_ok = key_pos < num_k
    key_off = key_pos.to(tl.int64)
    k_base = k_ptr + batch * k_stride_b + kv_head * k_stride_h
    v_base = v_ptr + batch * v_stride_b + kv_head * v_stride_h
    if EVEN:
        k = tl.load(k_base + key_off[:, None] * k_stride_t + dims[None, :])
        v = tl.load(v_base + key_off[:, None] * v_stride_t + dims[None, :])
    else:
        k = tl.load(k_base + key_off[:, None] * k_stride_t + dims[None, :], mask=key_ok[:, None], other=0.0)
        v = tl.load(v_base + key_off[:, None] * v_stride_t + dims[None, :], mask=key_ok[:, None], other=0.0)

    lists = (batch * INDEX_HEADS + kv_head % INDEX_HEADS) * (num_chunks + 1) + chunk
    first = tl.load(start_ptr + lists)
    last = tl.load(start_ptr + lists + 1)
    dk = tl.zeros([CHUNK, DIM], tl.float32)
    dv = tl.zeros([CHUNK, DIM], tl.float32)
    lanes = tl.arange(0, BLOCK_M)

    for step in range(first * TILES, last * TILES):
        entry = tl.load(entry_ptr + step // TILES)
        block = entry // CHOSEN
        rows = (step % TILES) * BLOCK_M + lanes
        position = block * BLOCK_Q + rows % BLOCK_Q
        head = kv_head * GROUP + rows // BLOCK_Q
        row_ok = (rows < GROUP * BLOCK_Q) & (position < num_q)
        out_rows = ((batch * num_q + position) * (KV_HEADS * GROUP) + head).to(tl.int64)
        if TMA:
            line = (batch * num_q + block * BLOCK_Q).to(tl.int32)
            column = (kv_head * GROUP + step % TILES) * DIM
            q = q_ptr.load([line, column])
            grad = grad_ptr.load([line, column])
        else:
            q_rows = batch * q_stride_b + position.to(tl.int64) * q_stride_t + head * q_stride_h
            q = tl.load(q_ptr + q_rows[:, None] + dims[None, :], mask=row_ok[:, None], other=0.0)
            grad = tl.load(
                grad_ptr + out_rows[:, None] * DIM + dims[None, :], mask=row_ok[:, None], other=0.0
            )
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        if not EVEN:
            s = tl.where(key_ok[:, None], s, float("-inf"))
        if CAUSAL:
            s = tl.where(key_pos[:, None] <= query_start + position[None, :], s, float("-inf"))
        dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        if MIXED:
            peak = tl.max(s, 0) * scale_log2
            shift = tl.where(peak == float("-inf"), 0.0, peak)
            p = tl.math.exp2(s * scale_log2 - shift[None, :])
            mass = tl.sum(p, 0)
            p = p * (1.0 / tl.where(mass > 0.0, mass, 1.0))[None, :]
            own = tl.sum(p * dp, 0)
            w_row = weight_ptr + batch * w_stride_b + block.to(tl.int64) * w_stride_n + kv_head * w_stride_h
            p = p * tl.load(w_row + entry % CHOSEN).to(tl.float32)
            ds = p * (dp - own[None, :])
        else:
            lse = tl.load(lse_ptr + out_rows, mask=row_ok, other=float("inf"))
            lse = tl.where(lse == float("-inf"), float("inf"), lse)
            delta = tl.load(delta_ptr + out_rows, mask=row_ok, other=0.0)
            p = tl.math.exp2(s * scale_log2 - lse[None, :])
            ds = p * (dp - delta[None, :])
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    flat = (batch * num_k + key_off) * KV_HEADS + kv_head
    target = flat[:, None] * DIM + dims[None, :]
    tl.store(dk_ptr + target, (dk * scale).to(dk_ptr.dtype.element_ty), mask=key_ok[:, None])
    tl.store(dv_ptr + target, dv.to(dv_ptr.dtype.element_ty), mask=key_ok[:, None])
