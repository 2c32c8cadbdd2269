# mypy: disable-error-code="no-untyped-def"
# (Gluon types the arguments of kernels at launch)
"""Forward pass for Hopper in which a group of warps computes softmaxes under its own products, across tiles too.

Tiles, groups, places of queries and the warp that fetches are those of `ahead.py`. There a group waits for all its
products before each softmax, so that only the other group's run under it. Here each half's keys' products are asked
for one softmax earlier: those of the second half before the first half's softmax; those of the next chunk for the
first half (after the last chunk: the next tile's) before the second half's softmax, beside the first half's values'
products. What a group still waits for with nothing under way is the second half's values' products, once a chunk.

Nothing is under way across a loop's end, and up to 208 registers hold sums, scores and weights: with two chunks a
turn, which would hide the last wait too, or with the last chunk apart, ptxas runs out of registers and serialises
every product (C7512).
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

from models.kernels.sparse_attention.ahead import _finish, _place, _producer, _softmax
from models.kernels.sparse_attention.hopper_shared import described, processors
from models.kernels.sparse_attention.tuning import HOPPER_HEADS


@gluon.jit
def _indices(tile, index_ptr, num_blocks, i_stride_b, i_stride_n, i_stride_h, KV_HEADS: gl.constexpr,
             PARTS: gl.constexpr):  # fmt: skip
    """Where the chunks of a tile are named."""
    block, kv_head, _ = _place(tile, num_blocks, KV_HEADS, PARTS)
    return (
        index_ptr
        + (block // num_blocks).to(gl.int64) * i_stride_b
        + (block % num_blocks).to(gl.int64) * i_stride_n
        + kv_head * i_stride_h
    )


@gluon.jit
def _weigh(s, acc, peak, total, bias, scale_log2, o_layout: gl.constexpr, dtype: gl.constexpr):
    """Weights of scores s as the values' products take them, sums scaled to the new peak, peak and total."""
    p, decay, peak, total = _softmax(s, peak, total, bias, scale_log2)
    acc = acc * gl.expand_dims(gl.convert_layout(decay, gl.SliceLayout(1, o_layout)), 1)
    return gl.convert_layout(p.to(dtype), gl.DotOperandLayout(0, o_layout, 2)), acc, peak, total


@gluon.jit
def _scores(q, k, zeros):
    return warpgroup_mma(q, k.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _consumer(half_of, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
              out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
              DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """128 rows of every tile of this program: heads 2 * half_of and 2 * half_of + 1."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    dtype: gl.constexpr = q_smem.dtype
    count = 0
    turn = 0
    zeros = gl.zeros([64, CHUNK], gl.float32, layout=s_layout)
    indices = _indices(
        gl.program_id(0), index_ptr, num_blocks, i_stride_b, i_stride_n, i_stride_h, KV_HEADS, PARTS
    )
    chunk = gl.load(indices)
    mbarrier.wait(q_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    s0 = _scores(q_smem.index(half_of * 2), k_smem.index(0), zeros)
    s0 = warpgroup_mma_wait(0, deps=[s0])
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        block, _, head = _place(tile, num_blocks, KV_HEADS, PARTS)
        peak0 = gl.full([64], float("-inf"), gl.float32, layout=row_layout)
        peak1 = gl.full([64], float("-inf"), gl.float32, layout=row_layout)
        total0 = gl.zeros([64], gl.float32, layout=row_layout)
        total1 = gl.zeros([64], gl.float32, layout=row_layout)
        acc0 = gl.zeros([64, DIM], gl.float32, layout=o_layout)
        acc1 = gl.zeros([64, DIM], gl.float32, layout=o_layout)
        q0 = q_smem.index(turn % 2 * 4 + half_of * 2)
        q1 = q_smem.index(turn % 2 * 4 + half_of * 2 + 1)
        more = tile + gl.num_programs(0) < num_tiles
        for slot in range(0, CHOSEN):
            here = count % STAGES
            s1 = _scores(q1, k_smem.index(here), zeros)
            bias = gl.where(chunk >= 0, 0.0, float("-inf"))
            p, acc0, peak0, total0 = _weigh(s0, acc0, peak0, total0, bias, scale_log2, o_layout, dtype)
            mbarrier.wait(v_full.index(here), (count // STAGES) & 1)
            acc0 = warpgroup_mma(p, v_smem.index(here), acc0, is_async=True)
            chunk = gl.load(indices + gl.minimum(slot + 1, CHOSEN - 1))
            if (slot == 0) & (turn > 0):  # the last tile's results have left by now
                tma.store_wait(0)
                mbarrier.arrive(q_empty.index((turn + 1) % 2), count=1)
            # the next first scores: of this tile, of the next one, or, where none follows, these once more
            last = slot + 1 == CHOSEN
            after = gl.where(last & (not more), count, count + 1)
            place = gl.where(last & more, turn + 1, turn)
            mbarrier.wait(q_full.index(place % 2), (place // 2) & 1)
            mbarrier.wait(k_full.index(after % STAGES), (after // STAGES) & 1)
            s0 = _scores(q_smem.index(place % 2 * 4 + half_of * 2), k_smem.index(after % STAGES), zeros)
            s1 = warpgroup_mma_wait(2, deps=[s1])
            mbarrier.arrive(k_empty.index(here), count=1)
            p, acc1, peak1, total1 = _weigh(s1, acc1, peak1, total1, bias, scale_log2, o_layout, dtype)
            acc1 = warpgroup_mma(p, v_smem.index(here), acc1, is_async=True)
            s0, acc0, acc1 = warpgroup_mma_wait(0, deps=[s0, acc0, acc1])
            mbarrier.arrive(v_empty.index(here), count=1)
            count += 1
        indices = _indices(
            gl.where(more, tile + gl.num_programs(0), tile), index_ptr, num_blocks, i_stride_b, i_stride_n,
            i_stride_h, KV_HEADS, PARTS
        )  # fmt: skip
        chunk = gl.load(indices)
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
           DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Consumer of the first 128 rows."""
    (q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, out_desc, index_ptr,
     lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h) = args  # fmt: skip
    _consumer(0, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
              out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)  # fmt: skip


@gluon.jit
def _second(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
            DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Consumer of the last 128 rows."""
    (q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, out_desc, index_ptr,
     lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h) = args  # fmt: skip
    _consumer(1, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
              out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)  # fmt: skip


@gluon.jit
def overlap_forward_kernel(q_desc, k_desc, v_desc, out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks,
                           num_k, i_stride_b, i_stride_n, i_stride_h, KV_HEADS: gl.constexpr, PARTS: gl.constexpr,
                           CHUNK: gl.constexpr, CHOSEN: gl.constexpr, DIM: gl.constexpr,
                           STAGES: gl.constexpr):  # fmt: skip
    """out [B * Nq, Hq * DIM] and lse [B * Nq, Hq] of all tiles; descriptors of 64 tokens of one head."""
    dtype: gl.constexpr = q_desc.dtype
    q_smem = gl.allocate_shared_memory(dtype, [8, 64, DIM], q_desc.layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, CHUNK, DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, CHUNK, DIM], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    consumed = (q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty, out_desc,
                index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n,
                i_stride_h)  # fmt: skip
    fetched = (q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, k_empty, v_full, v_empty,
               index_ptr, num_tiles, num_blocks, num_k, i_stride_b, i_stride_n, i_stride_h, KV_HEADS, PARTS, CHUNK,
               CHOSEN, DIM, STAGES)  # fmt: skip
    gl.warp_specialize(
        [
            (_first, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)),
            (_second, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)),
            (_producer, fetched),
        ],
        [4, 1],
        [240, 24],
    )


def launch_overlap(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale_log2: float,
    stages: int = 3,
) -> None:
    """Fill out and lse (base 2) for inputs that `fits` allows."""
    dim, kv_heads = q.shape[3], k.shape[2]
    parts = q.shape[2] // kv_heads // HOPPER_HEADS
    tiles = q.shape[0] * indices.shape[1] * kv_heads * parts
    overlap_forward_kernel[(min(tiles, processors(q)),)](
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
        num_warps=4,
    )
