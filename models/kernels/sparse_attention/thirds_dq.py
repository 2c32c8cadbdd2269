# mypy: disable-error-code="no-untyped-def"
# (Gluon types the arguments of kernels at launch)
"""dq for Hopper in the form of thirds.py: a group's queries and gradients have three places between both groups."""

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

from models.kernels.sparse_attention.ahead_dq import _own_rows
from models.kernels.sparse_attention.hopper_shared import described, processors


@gluon.jit
def _dq_consumer(half_of, q_smem, g_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
                 dq_desc, index_ptr, rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs,
                 i_stride_b, i_stride_n, i_stride_h, KV_HEADS: gl.constexpr, PARTS: gl.constexpr,
                 CHUNK: gl.constexpr, CHOSEN: gl.constexpr, DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """dq of 64 rows of every tile of this program."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    dtype: gl.constexpr = q_smem.dtype
    lanes = gl.arange(0, 64, layout=gl.SliceLayout(1, s_layout))
    deltas = rows_ptr + num_pairs.to(gl.int64) * num_q
    own = _own_rows(gl.program_id(0), half_of, num_blocks, num_q, KV_HEADS, PARTS)
    lse = gl.load(rows_ptr + own + lanes)
    delta = gl.load(deltas + own + lanes)
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
        chunk = gl.load(indices)
        dq = gl.zeros([64, DIM], gl.float32, layout=o_layout)
        zeros = gl.zeros([64, CHUNK], gl.float32, layout=s_layout)
        mine = 2 * turn + half_of
        q = q_smem.index(mine % PLACES)
        g = g_smem.index(mine % PLACES)
        here = count % STAGES
        mbarrier.wait(q_full.index(mine % PLACES), (mine // PLACES) & 1)
        mbarrier.wait(k_full.index(here), (count // STAGES) & 1)
        s = warpgroup_mma(q, k_smem.index(here).permute((1, 0)), zeros, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(here), (count // STAGES) & 1)
        dp = warpgroup_mma(g, v_smem.index(here).permute((1, 0)), zeros, use_acc=False, is_async=True)
        after_rows = _own_rows(
            gl.minimum(tile + gl.num_programs(0), num_tiles - 1), half_of, num_blocks, num_q, KV_HEADS, PARTS
        )
        next_lse = gl.load(rows_ptr + after_rows + lanes)
        next_delta = gl.load(deltas + after_rows + lanes)
        s, dp = warpgroup_mma_wait(0, deps=[s, dp])
        for slot in range(0, CHOSEN):
            here = count % STAGES
            mbarrier.arrive(v_empty.index(here), count=1)
            bias = gl.where(chunk >= 0, 0.0, float("-inf"))
            p = gl.exp2(s * scale_log2 + gl.expand_dims(bias - lse, 1))
            ds = gl.convert_layout((p * (dp - gl.expand_dims(delta, 1))).to(dtype), p_layout)
            summed = warpgroup_mma(ds, k_smem.index(here), dq, is_async=True)
            chunk = gl.load(indices + gl.minimum(slot + 1, CHOSEN - 1))
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
                dq = warpgroup_mma_wait(0, deps=[summed])
            mbarrier.arrive(k_empty.index(here), count=1)
            if (slot == 0) & (turn > 0):  # the last tile's results have left by now
                tma.store_wait(0)
                mbarrier.arrive(q_empty.index((mine + PLACES - 2) % PLACES), count=1)
            count += 1
        q.store((dq * scale).to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dq_desc, [block * 64, head * DIM], q)
        lse = next_lse
        delta = next_delta
        turn += 1  # noqa: SIM113 (the loop has a stride)
    tma.store_wait(0)


@gluon.jit
def _dq_first(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
              DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """Consumer of the first head."""
    (q_smem, g_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, dq_desc, index_ptr,
     rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs, i_stride_b, i_stride_n,
     i_stride_h) = args  # fmt: skip
    _dq_consumer(0, q_smem, g_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full,
                 v_empty, dq_desc, index_ptr, rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs,
                 i_stride_b, i_stride_n, i_stride_h, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES,
              PLACES)  # fmt: skip


@gluon.jit
def _dq_second(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
               DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """Consumer of the second head."""
    (q_smem, g_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, dq_desc, index_ptr,
     rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs, i_stride_b, i_stride_n,
     i_stride_h) = args  # fmt: skip
    _dq_consumer(1, q_smem, g_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full,
                 v_empty, dq_desc, index_ptr, rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs,
                 i_stride_b, i_stride_n, i_stride_h, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES,
              PLACES)  # fmt: skip


@gluon.jit
def _rows_of(q_desc, g_desc, q_smem, g_smem, q_full, q_empty, own, block, head, DIM: gl.constexpr,
             PLACES: gl.constexpr):  # fmt: skip
    """Fetch a head's queries and gradients for the group whose turn over both is `own`, once its place is free."""
    place = own % PLACES
    full = q_full.index(place)
    mbarrier.wait(q_empty.index(place), ((own // PLACES) & 1) ^ 1)
    mbarrier.expect(full, 2 * q_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(q_desc, [block * 64, head * DIM], full, q_smem.index(place))
    tma.async_copy_global_to_shared(g_desc, [block * 64, head * DIM], full, g_smem.index(place))


@gluon.jit
def _dq_producer(q_desc, g_desc, k_desc, v_desc, q_smem, g_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty,
                 v_full, v_empty, index_ptr, num_tiles, num_blocks, num_k, i_stride_b, i_stride_n, i_stride_h,
                 KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
                 DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """Fetches what both consumers read, in the order in which they read it."""
    LATE: gl.constexpr = 1 if CHOSEN > 1 else 0
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
        _rows_of(q_desc, g_desc, q_smem, g_smem, q_full, q_empty, 2 * turn, block, head, DIM, PLACES)
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
            # the second group's place is free once the first group has read chunk 0 of this very tile
            if slot == LATE:
                _rows_of(
                    q_desc,
                    g_desc,
                    q_smem,
                    g_smem,
                    q_full,
                    q_empty,
                    2 * turn + 1,
                    block,
                    head + 1,
                    DIM,
                    PLACES,
                )
        turn += 1  # noqa: SIM113 (the loop has a stride)


@gluon.jit
def thirds_dq_kernel(q_desc, g_desc, k_desc, v_desc, dq_desc, index_ptr, rows_ptr, scale, scale_log2, num_tiles,
                     num_blocks, num_q, num_k, num_pairs, i_stride_b, i_stride_n, i_stride_h,
                     KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
                     DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """dq [B * Nq, Hq * DIM] of all tiles; descriptors of 64 tokens of one head."""
    dtype: gl.constexpr = q_desc.dtype
    q_smem = gl.allocate_shared_memory(dtype, [PLACES, 64, DIM], q_desc.layout)
    g_smem = gl.allocate_shared_memory(dtype, [PLACES, 64, DIM], g_desc.layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, CHUNK, DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, CHUNK, DIM], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [PLACES, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [PLACES, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(PLACES):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    consumed = (q_smem, g_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, dq_desc,
                index_ptr, rows_ptr, scale, scale_log2, num_tiles, num_blocks, num_q, num_pairs, i_stride_b,
                i_stride_n, i_stride_h)  # fmt: skip
    gl.warp_specialize(
        [
            (_dq_first, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES, PLACES)),
            (_dq_second, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES, PLACES)),
            (_dq_producer, (q_desc, g_desc, k_desc, v_desc, q_smem, g_smem, k_smem, v_smem, q_full, q_empty,
                            k_full, k_empty, v_full, v_empty, index_ptr, num_tiles, num_blocks, num_k, i_stride_b,
                            i_stride_n, i_stride_h, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES, PLACES)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def launch_thirds_dq(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    indices: torch.Tensor,
    rows: torch.Tensor,
    scale: float,
    scale_log2: float,
    stages: int = 4,
    places: int = 3,
) -> torch.Tensor:
    """dq for inputs that `fits` allows; grad [B, Nq, Hq, D] contiguous."""
    dq = torch.empty_like(q)
    dim, kv_heads = q.shape[3], k.shape[2]
    parts = q.shape[2] // kv_heads // 2
    tiles = q.shape[0] * indices.shape[1] * kv_heads * parts
    thirds_dq_kernel[(min(tiles, processors(q)),)](
        *described(q, grad, k, v, dq),
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
        PLACES=places,
        num_warps=4,
    )
    return dq
