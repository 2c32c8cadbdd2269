# mypy: disable-error-code="no-untyped-def"
# (Gluon types the arguments of kernels at launch)
"""dk and dv for Hopper, written in Gluon: one warp fetches, a group of four multiplies, two programs a processor.

A program has a chunk; the group holds its sums and goes through its inverted list in order, so equal inputs give
equal bits. What a step reads beside the copied tiles (which queries are next, their lse and delta) is asked for one
step ahead, and lse and delta are where the sums of scores and gradients begin, so that they hold no registers.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from models.kernels.sparse_attention.hopper_shared import described
from models.kernels.sparse_attention.inverse import InverseIndex


@gluon.jit
def _own_registers(x):
    """x, every element in a register of its own by now: copies made later make ptxas wait between products."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def _place(order_ptr, start_ptr, num_chunks, num_pairs_kv, KV_HEADS: gl.constexpr, INDEX_HEADS: gl.constexpr,
           ORDERED: gl.constexpr):  # fmt: skip
    """Row of the batch, key head, chunk and the span of its list for this program."""
    pair = gl.program_id(0) % num_pairs_kv
    chunk = gl.program_id(0) // num_pairs_kv
    row = pair // KV_HEADS
    kv_head = pair % KV_HEADS
    table = row * INDEX_HEADS + kv_head % INDEX_HEADS
    if ORDERED:
        chunk = gl.load(order_ptr + table * num_chunks + chunk)
    lists = start_ptr + table * (num_chunks + 1) + chunk
    return row, kv_head, chunk, gl.load(lists), gl.load(lists + 1)


@gluon.jit
def _dkv_consumer(k_smem, v_smem, q_smem, g_smem, own_full, full, empty, dk_desc, dv_desc, order_ptr, start_ptr,
                  entry_ptr, rows_ptr, scale, scale_log2, num_chunks, num_q, num_pairs, num_pairs_kv,
                  KV_HEADS: gl.constexpr, INDEX_HEADS: gl.constexpr, GROUP: gl.constexpr, CHUNK: gl.constexpr,
                  CHOSEN: gl.constexpr, DIM: gl.constexpr, STAGES: gl.constexpr,
                  ORDERED: gl.constexpr):  # fmt: skip
    """dk and dv of this program's chunk; scores are computed transposed, tokens of the chunk as rows."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    dtype: gl.constexpr = q_smem.dtype
    lanes = gl.arange(0, 64, layout=gl.SliceLayout(0, s_layout))
    zeros = gl.zeros([CHUNK, 64], gl.float32, layout=s_layout)
    row, kv_head, chunk, first, last = _place(
        order_ptr, start_ptr, num_chunks, num_pairs_kv, KV_HEADS, INDEX_HEADS, ORDERED
    )
    dk = gl.zeros([CHUNK, DIM], gl.float32, layout=o_layout)
    dv = gl.zeros([CHUNK, DIM], gl.float32, layout=o_layout)
    heads = (row * (KV_HEADS * GROUP) + kv_head * GROUP).to(gl.int64) * num_q
    deltas = rows_ptr + num_pairs.to(gl.int64) * num_q
    some = last > first
    own = heads + gl.load(entry_ptr + first, mask=some, other=0) // CHOSEN * 64
    lse = gl.load(rows_ptr + own + lanes)
    delta = gl.load(deltas + own + lanes)
    if some:
        mbarrier.wait(own_full, 0)
    entry_ptr += first
    steps = (last - first) * GROUP
    for step in range(0, steps):
        here = step % STAGES
        after = gl.minimum(step + 1, steps - 1)
        entry = gl.load(entry_ptr + after // GROUP)
        # scores less lse and gradients less delta: sums begin with what would be taken off afterwards
        s = _own_registers(zeros - gl.expand_dims(lse * (1.0 / scale_log2), 0))
        dp = _own_registers(zeros - gl.expand_dims(delta, 0))
        mbarrier.wait(full.index(here), (step // STAGES) & 1)
        s = warpgroup_mma(k_smem, q_smem.index(here).permute((1, 0)), s, is_async=True)
        dp = warpgroup_mma(v_smem, g_smem.index(here).permute((1, 0)), dp, is_async=True)
        s = warpgroup_mma_wait(1, deps=[s])
        p = gl.exp2(s * scale_log2)
        weights = gl.convert_layout(p.to(dtype), p_layout)
        dp = warpgroup_mma_wait(0, deps=[dp])
        dv = warpgroup_mma(weights, g_smem.index(here), dv, is_async=True)
        ds = gl.convert_layout((p * dp).to(dtype), p_layout)
        dk = warpgroup_mma(ds, q_smem.index(here), dk, is_async=True)
        own = heads + (after % GROUP).to(gl.int64) * num_q + entry // CHOSEN * 64
        lse = gl.load(rows_ptr + own + lanes)
        delta = gl.load(deltas + own + lanes)
        dv, dk = warpgroup_mma_wait(0, deps=[dv, dk])
        mbarrier.arrive(empty.index(here), count=1)
    # the chunk's own keys and values are done with: results leave from their places
    v_smem.store(dv.to(dtype))
    k_smem.store((dk * scale).to(dtype))
    fence_async_shared()
    line = (row * num_chunks + chunk) * CHUNK
    tma.async_copy_shared_to_global(dv_desc, [line, kv_head * DIM], v_smem)
    tma.async_copy_shared_to_global(dk_desc, [line, kv_head * DIM], k_smem)
    tma.store_wait(0)


@gluon.jit
def _dkv_producer(q_desc, g_desc, k_desc, v_desc, k_smem, v_smem, q_smem, g_smem, own_full, full, empty, order_ptr,
                  start_ptr, entry_ptr, num_chunks, num_q, num_pairs_kv, KV_HEADS: gl.constexpr,
                  INDEX_HEADS: gl.constexpr, GROUP: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
                  DIM: gl.constexpr, STAGES: gl.constexpr, ORDERED: gl.constexpr):  # fmt: skip
    """Fetches the chunk if its list has any, then the queries and gradients of its list."""
    row, kv_head, chunk, first, last = _place(
        order_ptr, start_ptr, num_chunks, num_pairs_kv, KV_HEADS, INDEX_HEADS, ORDERED
    )
    if last > first:
        line = (row * num_chunks + chunk) * CHUNK
        mbarrier.expect(own_full, 2 * k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [line, kv_head * DIM], own_full, k_smem)
        tma.async_copy_global_to_shared(v_desc, [line, kv_head * DIM], own_full, v_smem)
    count = 0
    entry = gl.load(entry_ptr + first, mask=last > first, other=0)
    for place in range(first, last):
        line = row * num_q + entry // CHOSEN * 64
        entry = gl.load(entry_ptr + gl.minimum(place + 1, last - 1))
        for head in range(0, GROUP):
            stage = count % STAGES
            mbarrier.wait(empty.index(stage), ((count // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(stage), 2 * q_desc.block_type.nbytes)
            column = (kv_head * GROUP + head) * DIM
            tma.async_copy_global_to_shared(q_desc, [line, column], full.index(stage), q_smem.index(stage))
            tma.async_copy_global_to_shared(g_desc, [line, column], full.index(stage), g_smem.index(stage))
            count += 1


@gluon.jit
def ahead_dkv_kernel(q_desc, g_desc, k_desc, v_desc, dk_desc, dv_desc, order_ptr, start_ptr, entry_ptr, rows_ptr,
                     scale, scale_log2, num_chunks, num_q, num_pairs, num_pairs_kv, KV_HEADS: gl.constexpr,
                     INDEX_HEADS: gl.constexpr, GROUP: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
                     DIM: gl.constexpr, STAGES: gl.constexpr, ORDERED: gl.constexpr):  # fmt: skip
    """dk and dv [B * Nk, Hkv * DIM] of all chunks; descriptors of 64 tokens of one head.

    ORDERED: order_ptr holds each row's chunks, those with the longest lists first; else it is not read.
    """
    dtype: gl.constexpr = q_desc.dtype
    k_smem = gl.allocate_shared_memory(dtype, [CHUNK, DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [CHUNK, DIM], v_desc.layout)
    q_smem = gl.allocate_shared_memory(dtype, [STAGES, 64, DIM], q_desc.layout)
    g_smem = gl.allocate_shared_memory(dtype, [STAGES, 64, DIM], g_desc.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_dkv_consumer, (k_smem, v_smem, q_smem, g_smem, own_full, full, empty, dk_desc, dv_desc, order_ptr,
                             start_ptr, entry_ptr, rows_ptr, scale, scale_log2, num_chunks, num_q, num_pairs,
                             num_pairs_kv, KV_HEADS, INDEX_HEADS, GROUP, CHUNK, CHOSEN, DIM, STAGES, ORDERED)),
            (_dkv_producer, (q_desc, g_desc, k_desc, v_desc, k_smem, v_smem, q_smem, g_smem, own_full, full, empty,
                             order_ptr, start_ptr, entry_ptr, num_chunks, num_q, num_pairs_kv, KV_HEADS,
                             INDEX_HEADS, GROUP, CHUNK, CHOSEN, DIM, STAGES, ORDERED)),
        ],
        [1],
        [24],
    )  # fmt: skip


def launch_ahead_dkv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    indices: torch.Tensor,
    rows: torch.Tensor,
    inverse: InverseIndex,
    scale: float,
    scale_log2: float,
    stages: int = 2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dk and dv for inputs that `fits` allows; two programs fit on a processor.

    Lists differ in length: a program takes one chunk and the device gives out the next, the longest lists first
    where `inverse` has their order.
    """
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    kv_heads, num_chunks = k.shape[2], k.shape[1] // 64
    pairs = k.shape[0] * kv_heads
    order = inverse.order
    ahead_dkv_kernel[(pairs * num_chunks,)](
        *described(q, grad, k, v, dk, dv),
        inverse.starts if order is None else order,
        inverse.starts,
        inverse.entries,
        rows,
        scale,
        scale_log2,
        num_chunks,
        q.shape[1],
        rows.shape[1],
        pairs,
        KV_HEADS=kv_heads,
        INDEX_HEADS=indices.shape[2],
        GROUP=q.shape[2] // kv_heads,
        CHUNK=64,
        CHOSEN=indices.shape[3],
        DIM=q.shape[3],
        STAGES=stages,
        ORDERED=order is not None,
        num_warps=4,
        maxnreg=128,
    )
    return dk, dv
