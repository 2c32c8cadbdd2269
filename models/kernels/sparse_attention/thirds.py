# mypy: disable-error-code="no-untyped-def"
# (Gluon types the arguments of kernels at launch)
"""Forward pass for Hopper with three places of queries for two groups: ahead.py's form, out of step.

ahead.py gives a tile's queries two places (128 KiB), which leaves three stages of keys and makes each chunk 8%
dearer than with four. Here a place holds what one group reads (two heads of 64 queries), and there are three: one
for each group and one free. The group that ends a tile first goes on with queries that have been there for long;
the other's arrive where the first one's results have just left. So four stages fit, the groups stay about a chunk
apart, and while one begins or ends a tile the matrix unit works for the other.
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

from models.kernels.sparse_attention.ahead import _finish, _place, _softmax
from models.kernels.sparse_attention.hopper_shared import described, processors
from models.kernels.sparse_attention.tuning import HOPPER_HEADS


@gluon.jit
def _consumer(half_of, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
              out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
              DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """128 rows of every tile of this program: heads 2 * half_of and 2 * half_of + 1."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    dtype: gl.constexpr = q_smem.dtype
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        block, kv_head, head = _place(tile, num_blocks, KV_HEADS, PARTS)
        indices = (
            index_ptr
            + (block // num_blocks).to(gl.int64) * i_stride_b
            + (block % num_blocks).to(gl.int64) * i_stride_n
            + kv_head * i_stride_h
        )
        peak0 = gl.full([64], float("-inf"), gl.float32, layout=row_layout)
        peak1 = gl.full([64], float("-inf"), gl.float32, layout=row_layout)
        total0 = gl.zeros([64], gl.float32, layout=row_layout)
        total1 = gl.zeros([64], gl.float32, layout=row_layout)
        acc0 = gl.zeros([64, DIM], gl.float32, layout=o_layout)
        acc1 = gl.zeros([64, DIM], gl.float32, layout=o_layout)
        zeros = gl.zeros([64, CHUNK], gl.float32, layout=s_layout)
        chunk = gl.load(indices)
        own = 2 * turn + half_of
        mbarrier.wait(q_full.index(own % PLACES), (own // PLACES) & 1)
        q0 = q_smem.index(own % PLACES * 2)
        q1 = q_smem.index(own % PLACES * 2 + 1)
        mbarrier.wait(k_full.index(count % STAGES), (count // STAGES) & 1)
        s = warpgroup_mma(
            q0, k_smem.index(count % STAGES).permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        s = warpgroup_mma_wait(0, deps=[s])
        for slot in range(0, CHOSEN):
            here = count % STAGES
            bias = gl.where(chunk >= 0, 0.0, float("-inf"))
            p, decay, peak0, total0 = _softmax(s, peak0, total0, bias, scale_log2)
            acc0 = acc0 * gl.expand_dims(gl.convert_layout(decay, gl.SliceLayout(1, o_layout)), 1)
            p = gl.convert_layout(p.to(dtype), p_layout)
            s = warpgroup_mma(q1, k_smem.index(here).permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(here), (count // STAGES) & 1)
            acc0 = warpgroup_mma(p, v_smem.index(here), acc0, is_async=True)
            chunk = gl.load(indices + gl.minimum(slot + 1, CHOSEN - 1))
            s, acc0 = warpgroup_mma_wait(0, deps=[s, acc0])
            mbarrier.arrive(k_empty.index(here), count=1)
            if (slot == 0) & (turn > 0):  # the last tile's results have left by now
                tma.store_wait(0)
                mbarrier.arrive(q_empty.index((own + PLACES - 2) % PLACES), count=1)
            p, decay, peak1, total1 = _softmax(s, peak1, total1, bias, scale_log2)
            acc1 = acc1 * gl.expand_dims(gl.convert_layout(decay, gl.SliceLayout(1, o_layout)), 1)
            p = gl.convert_layout(p.to(dtype), p_layout)
            if slot + 1 < CHOSEN:
                after = (count + 1) % STAGES
                mbarrier.wait(k_full.index(after), ((count + 1) // STAGES) & 1)
                s = warpgroup_mma(
                    q0, k_smem.index(after).permute((1, 0)), zeros, use_acc=False, is_async=True
                )
                acc1 = warpgroup_mma(p, v_smem.index(here), acc1, is_async=True)
                s, acc1 = warpgroup_mma_wait(0, deps=[s, acc1])
            else:
                acc1 = warpgroup_mma(p, v_smem.index(here), acc1, is_async=True)
                acc1 = warpgroup_mma_wait(0, deps=[acc1])
            mbarrier.arrive(v_empty.index(here), count=1)
            count += 1
        first = head + half_of * 2
        _finish(acc0, peak0, total0, q0, lse_ptr, block * 64, first, KV_HEADS * PARTS * 4, o_layout, s_layout)
        _finish(
            acc1, peak1, total1, q1, lse_ptr, block * 64, first + 1, KV_HEADS * PARTS * 4, o_layout, s_layout
        )
        fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [block * 64, first * DIM], q0)
        tma.async_copy_shared_to_global(out_desc, [block * 64, (first + 1) * DIM], q1)
        turn += 1  # noqa: SIM113 (the loop has a stride)
    tma.store_wait(0)


@gluon.jit
def _first(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
           DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """Consumer of the first 128 rows."""
    (q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, out_desc, index_ptr,
     lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h) = args  # fmt: skip
    _consumer(0, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
              out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES,
              PLACES)  # fmt: skip


@gluon.jit
def _second(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
            DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """Consumer of the last 128 rows."""
    (q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, out_desc, index_ptr,
     lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h) = args  # fmt: skip
    _consumer(1, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
              out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES,
              PLACES)  # fmt: skip


@gluon.jit
def _queries(q_desc, q_smem, q_full, q_empty, own, block, head, DIM: gl.constexpr, PLACES: gl.constexpr):
    """Fetch two heads of a block for the group whose turn over both groups is `own`, once its place is free."""
    place = own % PLACES
    mbarrier.wait(q_empty.index(place), ((own // PLACES) & 1) ^ 1)
    mbarrier.expect(q_full.index(place), 2 * q_desc.block_type.nbytes)
    for part in gl.static_range(2):
        tma.async_copy_global_to_shared(
            q_desc, [block * 64, (head + part) * DIM], q_full.index(place), q_smem.index(place * 2 + part)
        )


@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
              index_ptr, num_tiles, num_blocks, num_k, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
              DIM: gl.constexpr, STAGES: gl.constexpr,
              PLACES: gl.constexpr):  # fmt: skip
    """Fetches what both consumers read, in the order in which they read it."""
    LATE: gl.constexpr = 1 if CHOSEN > 1 else 0
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        block, kv_head, head = _place(tile, num_blocks, KV_HEADS, PARTS)
        row = block // num_blocks
        indices = (
            index_ptr
            + row.to(gl.int64) * i_stride_b
            + (block % num_blocks).to(gl.int64) * i_stride_n
            + kv_head * i_stride_h
        )
        chunk = gl.load(indices)
        _queries(q_desc, q_smem, q_full, q_empty, 2 * turn, block, head, DIM, PLACES)
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
                _queries(q_desc, q_smem, q_full, q_empty, 2 * turn + 1, block, head + 2, DIM, PLACES)
        turn += 1  # noqa: SIM113 (the loop has a stride)


@gluon.jit
def thirds_forward_kernel(q_desc, k_desc, v_desc, out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks,
                          num_k, i_stride_b, i_stride_n, i_stride_h, KV_HEADS: gl.constexpr, PARTS: gl.constexpr,
                          CHUNK: gl.constexpr, CHOSEN: gl.constexpr, DIM: gl.constexpr,
                          STAGES: gl.constexpr, PLACES: gl.constexpr):  # fmt: skip
    """out [B * Nq, Hq * DIM] and lse [B * Nq, Hq] of all tiles; descriptors of 64 tokens of one head."""
    dtype: gl.constexpr = q_desc.dtype
    q_smem = gl.allocate_shared_memory(dtype, [2 * PLACES, 64, DIM], q_desc.layout)
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
    consumed = (q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, out_desc,
                index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n,
                i_stride_h)  # fmt: skip
    gl.warp_specialize(
        [
            (_first, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES, PLACES)),
            (_second, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES, PLACES)),
            (
                _producer,
                (
                    q_desc,
                    k_desc,
                    v_desc,
                    q_smem,
                    k_smem,
                    v_smem,
                    q_full,
                    q_empty,
                    k_full,
                    k_empty,
                    v_full,
                    v_empty,
                    index_ptr,
                    num_tiles,
                    num_blocks,
                    num_k,
                    i_stride_b,
                    i_stride_n,
                    i_stride_h,
                    KV_HEADS,
                    PARTS,
                    CHUNK,
                    CHOSEN,
                    DIM,
                    STAGES,
                    PLACES,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )


def launch_thirds(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale_log2: float,
    stages: int = 4,
    places: int = 3,
) -> None:
    """Fill out and lse (base 2) for inputs that `fits` allows."""
    dim, kv_heads = q.shape[3], k.shape[2]
    parts = q.shape[2] // kv_heads // HOPPER_HEADS
    tiles = q.shape[0] * indices.shape[1] * kv_heads * parts
    thirds_forward_kernel[(min(tiles, processors(q)),)](
        *described(q, k, v, out),
        indices,
        lse,
        scale_log2,
        tiles,
        indices.shape[1],
        k.shape[1],
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
