# mypy: disable-error-code="no-untyped-def"
# (Gluon types the arguments of kernels at launch)
"""Backward pass for Hopper, written in Gluon, in the form of hopper.py: one warp fetches, groups of four multiply.

dq: a program stays on each processor and walks over tiles of two heads of one block of 64 queries, a group each.
dk, dv: two programs on each processor walk over chunks; the group holds the chunk's sums and goes through its
inverted list in order, so equal inputs give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from models.kernels.sparse_attention.inverse import InverseIndex
from models.kernels.sparse_attention.tuning import HOPPER_ROWS


@triton.jit
def rows_kernel(out_ptr, grad_ptr, lse_ptr, lse_grad_ptr, rows_ptr, num_q, num_heads, DIM: tl.constexpr,
                BLOCK: tl.constexpr, LSE_GRAD: tl.constexpr):  # fmt: skip
    """rows [2, B * Hq, Nq]: lse (infinite where a row saw nothing), and delta as `delta_kernel` has it."""
    pair = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = position < num_q
    line = (pair // num_heads * num_q + position) * num_heads + pair % num_heads
    offsets = line[:, None] * DIM + tl.arange(0, DIM)[None, :]
    out = tl.load(out_ptr + offsets, mask=ok[:, None], other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offsets, mask=ok[:, None], other=0.0).to(tl.float32)
    delta = tl.sum(out * grad, 1)
    if LSE_GRAD:
        delta -= tl.load(lse_grad_ptr + line, mask=ok, other=0.0)
    lse = tl.load(lse_ptr + line, mask=ok, other=float("inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    tl.store(rows_ptr + pair * num_q + position, lse, mask=ok)
    tl.store(rows_ptr + (tl.num_programs(1) + pair) * num_q + position, delta, mask=ok)


@gluon.jit
def _dq_consumer(half_of, q_smem, g_smem, k_smem, v_smem, stage, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                 dq_desc, index_ptr, rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs,
                 i_stride_b, i_stride_n, i_stride_h, KV_HEADS: gl.constexpr, PARTS: gl.constexpr,
                 CHUNK: gl.constexpr, CHOSEN: gl.constexpr, DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """dq of 64 rows of every tile of this program."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    dtype: gl.constexpr = q_smem.dtype
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        part = tile % PARTS
        kv_head = tile // PARTS % KV_HEADS
        block = tile // (PARTS * KV_HEADS)
        row = block // num_blocks
        head = kv_head * (PARTS * 2) + part * 2 + half_of
        indices = (
            index_ptr
            + row.to(gl.int64) * i_stride_b
            + (block % num_blocks).to(gl.int64) * i_stride_n
            + kv_head * i_stride_h
        )
        lanes = gl.arange(0, 64, layout=gl.SliceLayout(1, s_layout))
        own = (row * (KV_HEADS * PARTS * 2) + head).to(gl.int64) * num_q + (block % num_blocks) * 64
        lse = gl.load(rows_ptr + own + lanes)
        delta = gl.load(rows_ptr + num_pairs.to(gl.int64) * num_q + own + lanes)
        dq = gl.zeros([64, DIM], gl.float32, layout=o_layout)
        zeros = gl.zeros([64, CHUNK], gl.float32, layout=s_layout)
        q = q_smem.index(half_of)
        g = g_smem.index(half_of)
        here = count % STAGES
        mbarrier.wait(q_full, turn & 1)
        mbarrier.wait(k_full.index(here), (count // STAGES) & 1)
        s = warpgroup_mma(q, k_smem.index(here).permute((1, 0)), zeros, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(here), (count // STAGES) & 1)
        dp = warpgroup_mma(g, v_smem.index(here).permute((1, 0)), zeros, use_acc=False, is_async=True)
        s, dp = warpgroup_mma_wait(0, deps=[s, dp])
        for slot in range(0, CHOSEN):
            here = count % STAGES
            mbarrier.arrive(v_empty.index(here), count=1)
            bias = gl.where(gl.load(indices + slot) >= 0, 0.0, float("-inf"))
            p = gl.exp2(s * scale_log2 + gl.expand_dims(bias - lse, 1))
            ds = gl.convert_layout((p * (dp - gl.expand_dims(delta, 1))).to(dtype), p_layout)
            summed = warpgroup_mma(ds, k_smem.index(here), dq, is_async=True)
            if slot + 1 < CHOSEN:
                after = (count + 1) % STAGES
                mbarrier.wait(k_full.index(after), ((count + 1) // STAGES) & 1)
                s = warpgroup_mma(q, k_smem.index(after).permute((1, 0)), zeros, use_acc=False, is_async=True)
                mbarrier.wait(v_full.index(after), ((count + 1) // STAGES) & 1)
                dp = warpgroup_mma(
                    g, v_smem.index(after).permute((1, 0)), zeros, use_acc=False, is_async=True
                )
                s, dp, dq = warpgroup_mma_wait(0, deps=[s, dp, summed])
            else:
                mbarrier.arrive(q_empty, count=1)
                dq = warpgroup_mma_wait(0, deps=[summed])
            mbarrier.arrive(k_empty.index(here), count=1)
            count += 1
        tma.store_wait(0)
        stage.store((dq * scale).to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dq_desc, [block * 64, head * DIM], stage)
        turn += 1  # noqa: SIM113 (the loop has a stride)
    tma.store_wait(0)


@gluon.jit
def _dq_first(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
              DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Consumer of the first head."""
    (q_smem, g_smem, k_smem, v_smem, o_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, dq_desc, index_ptr,
     rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs, i_stride_b, i_stride_n,
     i_stride_h) = args  # fmt: skip
    _dq_consumer(0, q_smem, g_smem, k_smem, v_smem, o_smem.index(0), q_full, q_empty, k_full, k_empty, v_full,
                 v_empty, dq_desc, index_ptr, rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs,
                 i_stride_b, i_stride_n, i_stride_h, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)  # fmt: skip


@gluon.jit
def _dq_second(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
               DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Consumer of the second head."""
    (q_smem, g_smem, k_smem, v_smem, o_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, dq_desc, index_ptr,
     rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs, i_stride_b, i_stride_n,
     i_stride_h) = args  # fmt: skip
    _dq_consumer(1, q_smem, g_smem, k_smem, v_smem, o_smem.index(1), q_full, q_empty, k_full, k_empty, v_full,
                 v_empty, dq_desc, index_ptr, rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs,
                 i_stride_b, i_stride_n, i_stride_h, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)  # fmt: skip


@gluon.jit
def _dq_producer(q_desc, g_desc, k_desc, v_desc, q_smem, g_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty,
                 v_full, v_empty, index_ptr, num_tiles, num_blocks, num_k, i_stride_b, i_stride_n, i_stride_h,
                 KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
                 DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Fetches what both consumers read, in the order in which they read it."""
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        kv_head = tile // PARTS % KV_HEADS
        head = kv_head * (PARTS * 2) + tile % PARTS * 2
        block = tile // (PARTS * KV_HEADS)
        row = block // num_blocks
        indices = (
            index_ptr
            + row.to(gl.int64) * i_stride_b
            + (block % num_blocks).to(gl.int64) * i_stride_n
            + kv_head * i_stride_h
        )
        chunk = gl.load(indices)
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        mbarrier.expect(q_full, 4 * q_desc.block_type.nbytes)
        for part in gl.static_range(2):
            column = (head + part) * DIM
            tma.async_copy_global_to_shared(q_desc, [block * 64, column], q_full, q_smem.index(part))
            tma.async_copy_global_to_shared(g_desc, [block * 64, column], q_full, g_smem.index(part))
        for slot in range(0, CHOSEN):
            line = row * num_k + gl.maximum(chunk, 0) * CHUNK
            if slot + 1 < CHOSEN:
                chunk = gl.load(indices + slot + 1)
            stage = count % STAGES
            free = ((count // STAGES) & 1) ^ 1
            mbarrier.wait(k_empty.index(stage), free)
            mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(
                k_desc, [line, kv_head * DIM], k_full.index(stage), k_smem.index(stage)
            )
            mbarrier.wait(v_empty.index(stage), free)
            mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(
                v_desc, [line, kv_head * DIM], v_full.index(stage), v_smem.index(stage)
            )
            count += 1
        turn += 1  # noqa: SIM113 (the loop has a stride)


@gluon.jit
def hopper_dq_kernel(q_desc, g_desc, k_desc, v_desc, dq_desc, index_ptr, rows_ptr, scale, scale_log2, num_tiles,
                     num_blocks, num_q, num_k, num_pairs, i_stride_b, i_stride_n, i_stride_h,
                     KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
                     DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """dq [B * Nq, Hq * DIM] of all tiles; descriptors of 64 tokens of one head."""
    dtype: gl.constexpr = q_desc.dtype
    q_smem = gl.allocate_shared_memory(dtype, [2, 64, DIM], q_desc.layout)
    g_smem = gl.allocate_shared_memory(dtype, [2, 64, DIM], g_desc.layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, CHUNK, DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, CHUNK, DIM], v_desc.layout)
    o_smem = gl.allocate_shared_memory(dtype, [2, 64, DIM], dq_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    consumed = (q_smem, g_smem, k_smem, v_smem, o_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, dq_desc,
                index_ptr, rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs, i_stride_b,
                i_stride_n, i_stride_h)  # fmt: skip
    gl.warp_specialize(
        [
            (_dq_first, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)),
            (_dq_second, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)),
            (_dq_producer, (q_desc, g_desc, k_desc, v_desc, q_smem, g_smem, k_smem, v_smem, q_full, q_empty,
                            k_full, k_empty, v_full, v_empty, index_ptr, num_tiles, num_blocks, num_k, i_stride_b,
                            i_stride_n, i_stride_h, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


@gluon.jit
def _dkv_consumer(k_smem, v_smem, q_smem, g_smem, stage, own_full, own_empty, full, empty, dk_desc, dv_desc,
                  start_ptr, entry_ptr, rows_ptr, scale, scale_log2, num_tiles, num_chunks, num_q, num_pairs,
                  KV_HEADS: gl.constexpr, INDEX_HEADS: gl.constexpr, GROUP: gl.constexpr, CHUNK: gl.constexpr,
                  CHOSEN: gl.constexpr, DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """dk and dv of every chunk of this program; scores are computed transposed, tokens of the chunk as rows."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    dtype: gl.constexpr = q_smem.dtype
    lanes = gl.arange(0, 64, layout=gl.SliceLayout(0, s_layout))
    zeros = gl.zeros([CHUNK, 64], gl.float32, layout=s_layout)
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        chunk = tile % num_chunks
        row = tile // num_chunks // KV_HEADS
        kv_head = tile // num_chunks % KV_HEADS
        lists = (row * INDEX_HEADS + kv_head % INDEX_HEADS) * (num_chunks + 1) + chunk
        first = gl.load(start_ptr + lists)
        last = gl.load(start_ptr + lists + 1)
        dk = gl.zeros([CHUNK, DIM], gl.float32, layout=o_layout)
        dv = gl.zeros([CHUNK, DIM], gl.float32, layout=o_layout)
        if last > first:
            mbarrier.wait(own_full, turn & 1)
        for step in range(first * GROUP, last * GROUP):
            head = row * (KV_HEADS * GROUP) + kv_head * GROUP + step % GROUP
            own = head.to(gl.int64) * num_q + gl.load(entry_ptr + step // GROUP) // CHOSEN * 64
            here = count % STAGES
            mbarrier.wait(full.index(here), (count // STAGES) & 1)
            s = warpgroup_mma(k_smem, q_smem.index(here).permute((1, 0)), zeros, use_acc=False, is_async=True)
            dp = warpgroup_mma(
                v_smem, g_smem.index(here).permute((1, 0)), zeros, use_acc=False, is_async=True
            )
            lse = gl.load(rows_ptr + own + lanes)
            s = warpgroup_mma_wait(1, deps=[s])
            p = gl.exp2(s * scale_log2 - gl.expand_dims(lse, 0))
            delta = gl.load(rows_ptr + num_pairs.to(gl.int64) * num_q + own + lanes)
            weights = gl.convert_layout(p.to(dtype), p_layout)
            dp = warpgroup_mma_wait(0, deps=[dp])
            dv = warpgroup_mma(weights, g_smem.index(here), dv, is_async=True)
            ds = gl.convert_layout((p * (dp - gl.expand_dims(delta, 0))).to(dtype), p_layout)
            dk = warpgroup_mma(ds, q_smem.index(here), dk, is_async=True)
            dv, dk = warpgroup_mma_wait(0, deps=[dv, dk])
            mbarrier.arrive(empty.index(here), count=1)
            count += 1
        if last > first:
            mbarrier.arrive(own_empty, count=1)
            turn += 1
        line = (row * num_chunks + chunk) * CHUNK
        tma.store_wait(0)
        stage.store(dv.to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dv_desc, [line, kv_head * DIM], stage)
        tma.store_wait(0)
        stage.store((dk * scale).to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dk_desc, [line, kv_head * DIM], stage)
    tma.store_wait(0)


@gluon.jit
def _dkv_producer(q_desc, g_desc, k_desc, v_desc, k_smem, v_smem, q_smem, g_smem, own_full, own_empty, full, empty,
                  start_ptr, entry_ptr, num_tiles, num_chunks, num_q, KV_HEADS: gl.constexpr,
                  INDEX_HEADS: gl.constexpr, GROUP: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
                  DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Fetches each chunk that is in a list, then the queries and gradients of its list."""
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        chunk = tile % num_chunks
        row = tile // num_chunks // KV_HEADS
        kv_head = tile // num_chunks % KV_HEADS
        lists = (row * INDEX_HEADS + kv_head % INDEX_HEADS) * (num_chunks + 1) + chunk
        first = gl.load(start_ptr + lists)
        last = gl.load(start_ptr + lists + 1)
        if last > first:
            line = (row * num_chunks + chunk) * CHUNK
            mbarrier.wait(own_empty, (turn & 1) ^ 1)
            mbarrier.expect(own_full, 2 * k_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(k_desc, [line, kv_head * DIM], own_full, k_smem)
            tma.async_copy_global_to_shared(v_desc, [line, kv_head * DIM], own_full, v_smem)
            turn += 1
        for entry in range(first, last):
            line = row * num_q + gl.load(entry_ptr + entry) // CHOSEN * 64
            for head in range(0, GROUP):
                stage = count % STAGES
                mbarrier.wait(empty.index(stage), ((count // STAGES) & 1) ^ 1)
                mbarrier.expect(full.index(stage), 2 * q_desc.block_type.nbytes)
                column = (kv_head * GROUP + head) * DIM
                tma.async_copy_global_to_shared(
                    q_desc, [line, column], full.index(stage), q_smem.index(stage)
                )
                tma.async_copy_global_to_shared(
                    g_desc, [line, column], full.index(stage), g_smem.index(stage)
                )
                count += 1


@gluon.jit
def hopper_dkv_kernel(q_desc, g_desc, k_desc, v_desc, dk_desc, dv_desc, start_ptr, entry_ptr, rows_ptr, scale,
                      scale_log2, num_tiles, num_chunks, num_q, num_pairs, KV_HEADS: gl.constexpr,
                      INDEX_HEADS: gl.constexpr, GROUP: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
                      DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """dk and dv [B * Nk, Hkv * DIM] of all chunks; descriptors of 64 tokens of one head."""
    dtype: gl.constexpr = q_desc.dtype
    k_smem = gl.allocate_shared_memory(dtype, [CHUNK, DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [CHUNK, DIM], v_desc.layout)
    q_smem = gl.allocate_shared_memory(dtype, [STAGES, 64, DIM], q_desc.layout)
    g_smem = gl.allocate_shared_memory(dtype, [STAGES, 64, DIM], g_desc.layout)
    o_smem = gl.allocate_shared_memory(dtype, [CHUNK, DIM], dk_desc.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    own_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    mbarrier.init(own_empty, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_dkv_consumer, (k_smem, v_smem, q_smem, g_smem, o_smem, own_full, own_empty, full, empty, dk_desc,
                             dv_desc, start_ptr, entry_ptr, rows_ptr, scale, scale_log2, num_tiles, num_chunks,
                             num_q, num_pairs, KV_HEADS, INDEX_HEADS, GROUP, CHUNK, CHOSEN, DIM, STAGES)),
            (_dkv_producer, (q_desc, g_desc, k_desc, v_desc, k_smem, v_smem, q_smem, g_smem, own_full, own_empty,
                             full, empty, start_ptr, entry_ptr, num_tiles, num_chunks, num_q, KV_HEADS,
                             INDEX_HEADS, GROUP, CHUNK, CHOSEN, DIM, STAGES)),
        ],
        [1],
        [24],
    )  # fmt: skip


def launch_rows(
    out: torch.Tensor, grad: torch.Tensor, lse: torch.Tensor, lse_grad: torch.Tensor | None
) -> torch.Tensor:
    """float32 [2, B * Hq, Nq] from out, grad [B, Nq, Hq, D] and lse in base 2: what a row of p and of ds needs."""
    batch, num_q, heads, dim = out.shape
    rows = torch.empty((2, batch * heads, num_q), dtype=torch.float32, device=out.device)
    rows_kernel[(-(-num_q // 32), batch * heads)](
        out,
        grad,
        lse,
        lse_grad.contiguous() if lse_grad is not None else lse,
        rows,
        num_q,
        heads,
        DIM=dim,
        BLOCK=32,
        LSE_GRAD=lse_grad is not None,
    )
    return rows


def launch_hopper_dq(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    indices: torch.Tensor,
    rows: torch.Tensor,
    scale: float,
    scale_log2: float,
    stages: int = 4,
) -> torch.Tensor:
    """dq for inputs that `fits` allows; grad [B, Nq, Hq, D] contiguous."""
    dq = torch.empty_like(q)
    dim, kv_heads = q.shape[3], k.shape[2]
    parts = q.shape[2] // kv_heads // 2
    tiles = q.shape[0] * indices.shape[1] * kv_heads * parts
    hopper_dq_kernel[(min(tiles, _processors(q)),)](
        *_described(q, grad, k, v, dq),
        indices,
        rows,
        scale,
        scale_log2,
        tiles,
        indices.shape[1],
        q.shape[1],
        k.shape[1],
        rows.shape[1],
        indices.stride(0),
        indices.stride(1),
        indices.stride(2) if indices.shape[2] > 1 else 0,
        KV_HEADS=kv_heads,
        PARTS=parts,
        CHUNK=64,
        CHOSEN=indices.shape[3],
        DIM=dim,
        STAGES=stages,
        num_warps=4,
    )
    return dq


def launch_hopper_dkv(
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
    """dk and dv for inputs that `fits` allows; two programs fit on a processor."""
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    kv_heads, num_chunks = k.shape[2], k.shape[1] // 64
    tiles = k.shape[0] * kv_heads * num_chunks
    hopper_dkv_kernel[(min(tiles, 2 * _processors(q)),)](
        *_described(q, grad, k, v, dk, dv),
        inverse.starts,
        inverse.entries,
        rows,
        scale,
        scale_log2,
        tiles,
        num_chunks,
        q.shape[1],
        rows.shape[1],
        KV_HEADS=kv_heads,
        INDEX_HEADS=indices.shape[2],
        GROUP=q.shape[2] // kv_heads,
        CHUNK=64,
        CHOSEN=indices.shape[3],
        DIM=q.shape[3],
        STAGES=stages,
        num_warps=4,
        maxnreg=128,
    )
    return dk, dv


def _described(*tensors: torch.Tensor) -> list[Any]:
    """Descriptors of [B, N, H, D] as [B * N, H * D] with tiles of 64 tokens of one head."""
    kinds = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
    dim = tensors[0].shape[3]
    layout = gl.NVMMASharedLayout.get_default_for([HOPPER_ROWS, dim], kinds[tensors[0].dtype])
    return [
        TensorDescriptor.from_tensor(x.view(x.shape[0] * x.shape[1], -1), [HOPPER_ROWS, dim], layout)
        for x in tensors
    ]


def _processors(x: torch.Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count
