# mypy: disable-error-code="no-untyped-def"
# (Gluon types the arguments of kernels at launch)
"""dk and dv for Hopper, written in Gluon: one warp fetches, a group of four multiplies, two programs a processor.

Programs walk over chunks; the group holds a chunk's sums and goes through its inverted list in order, so equal
inputs give equal bits.
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

from models.kernels.sparse_attention.hopper_shared import described, processors
from models.kernels.sparse_attention.inverse import InverseIndex


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
    hopper_dkv_kernel[(min(tiles, 2 * processors(q)),)](
        *described(q, grad, k, v, dk, dv),
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
