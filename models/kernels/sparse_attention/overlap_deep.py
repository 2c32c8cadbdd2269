# mypy: disable-error-code="no-untyped-def"
# (Gluon types the arguments of kernels at launch)
"""The forward pass of `overlap.py` with four stages of keys and values in place of three.

Each group has three places of 64 queries in place of four: the first half's of the next tile lie in the third while
this tile is worked on, the second half's come to where the first half's were, once the last chunk's scores of these
are done. Results of both halves leave, one after the other, from where the second half's queries were. Keys and
values of a stage are given back together, so that a group's warps meet once less for each chunk. AHEAD: how many
chunks early each is asked to come to L2 (0: not); where heads make several tiles, keys by one, values by others.
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

from models.kernels.sparse_attention.ahead import _finish, _place
from models.kernels.sparse_attention.hopper_shared import described, processors
from models.kernels.sparse_attention.overlap import _indices, _scores, _weigh
from models.kernels.sparse_attention.tuning import HOPPER_HEADS

_PREFETCH: gl.constexpr = gl.constexpr(
    "{ .reg .b64 a; cvta.to.global.u64 a, $1; prefetch.global.L2 [a]; prefetch.global.L2 [a+64]; mov.b32 $0, 0; }"
)


@gluon.jit
def _fetch_queries(half: gl.constexpr, turn, line, head, q_desc, q_smem, q_full, q_empty, DIM: gl.constexpr):
    """One half of both groups' queries, each into the next of its group's three places."""
    piece = 2 * turn + half
    for group in gl.static_range(2):
        place = group * 3 + piece % 3
        mbarrier.wait(q_empty.index(place), ((piece // 3) & 1) ^ 1)
        mbarrier.expect(q_full.index(place), q_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(
            q_desc, [line, (head + group * 2 + half) * DIM], q_full.index(place), q_smem.index(place)
        )


@gluon.jit
def _to_l2(base, line, kv_head, KV_HEADS: gl.constexpr, DIM: gl.constexpr):
    """Ask for one head's keys or values of a chunk of 64, 128 wide, to come to L2: a row for each lane, twice."""
    rows = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    for part in gl.static_range(2):
        at = base + (line + part * 32 + rows).to(gl.int64) * (KV_HEADS * DIM) + kv_head * DIM
        for piece in gl.static_range(2):
            gl.inline_asm_elementwise(
                _PREFETCH, "=r,l", [at + piece * 64], dtype=gl.int32, is_pure=False, pack=1
            )


@gluon.jit
def _producer(k_ptr, v_ptr, q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, empty,
              index_ptr, num_tiles, num_blocks, num_k, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
              DIM: gl.constexpr, STAGES: gl.constexpr, AHEAD: gl.constexpr):  # fmt: skip
    """Fetches what both consumers read, in the order in which they read it."""
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
        beyond = gl.minimum(tile + gl.num_programs(0), num_tiles - 1)
        next_block, next_head, _ = _place(beyond, num_blocks, KV_HEADS, PARTS)
        following = _indices(
            beyond, index_ptr, num_blocks, i_stride_b, i_stride_n, i_stride_h, KV_HEADS, PARTS
        )
        _fetch_queries(0, turn, block * 64, head, q_desc, q_smem, q_full, q_empty, DIM)
        for slot in range(0, CHOSEN):
            line = row * num_k + gl.maximum(chunk, 0) * CHUNK
            if slot + 1 < CHOSEN:
                chunk = gl.load(indices + slot + 1)
            stage = count % STAGES
            free = ((count // STAGES) & 1) ^ 1
            mbarrier.wait(empty.index(stage), free)
            mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(
                k_desc, [line, kv_head * DIM], k_full.index(stage), k_smem.index(stage)
            )
            mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(
                v_desc, [line, kv_head * DIM], v_full.index(stage), v_smem.index(stage)
            )
            count += 1
            if AHEAD > 0:
                same = slot + AHEAD < CHOSEN
                far = gl.load(
                    gl.where(
                        same,
                        indices + slot + AHEAD,
                        following + gl.minimum(slot + AHEAD - CHOSEN, CHOSEN - 1),
                    )
                )
                far_line = gl.where(same, row, next_block // num_blocks) * num_k + gl.maximum(far, 0) * CHUNK
                far_head = gl.where(same, kv_head, next_head)
                if PARTS == 1:
                    _to_l2(k_ptr, far_line, far_head, KV_HEADS, DIM)
                    _to_l2(v_ptr, far_line, far_head, KV_HEADS, DIM)
                else:
                    _to_l2(gl.where(tile % PARTS == 0, k_ptr, v_ptr), far_line, far_head, KV_HEADS, DIM)
            if slot == gl.minimum(1, CHOSEN - 1):
                _fetch_queries(1, turn, block * 64, head, q_desc, q_smem, q_full, q_empty, DIM)
        turn += 1  # noqa: SIM113 (the loop has a stride)


@gluon.jit
def _consumer(half_of, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, empty,
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
    mbarrier.wait(q_full.index(half_of * 3), 0)
    mbarrier.wait(k_full.index(0), 0)
    s0 = _scores(q_smem.index(half_of * 3), k_smem.index(0), zeros)
    s0 = warpgroup_mma_wait(0, deps=[s0])
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        block, _, head = _place(tile, num_blocks, KV_HEADS, PARTS)
        peak0 = gl.full([64], float("-inf"), gl.float32, layout=row_layout)
        peak1 = gl.full([64], float("-inf"), gl.float32, layout=row_layout)
        total0 = gl.zeros([64], gl.float32, layout=row_layout)
        total1 = gl.zeros([64], gl.float32, layout=row_layout)
        acc0 = gl.zeros([64, DIM], gl.float32, layout=o_layout)
        acc1 = gl.zeros([64, DIM], gl.float32, layout=o_layout)
        piece = 2 * turn
        q1 = q_smem.index(half_of * 3 + (piece + 1) % 3)
        mbarrier.wait(q_full.index(half_of * 3 + (piece + 1) % 3), ((piece + 1) // 3) & 1)
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
                mbarrier.arrive(q_empty.index(half_of * 3 + (piece + 2) % 3), count=1)
            # the next first scores: of this tile, of the next one, or, where none follows, these once more
            last = slot + 1 == CHOSEN
            after = gl.where(last & (not more), count, count + 1)
            if last:
                mbarrier.arrive(q_empty.index(half_of * 3 + piece % 3), count=1)
            place = gl.where(last & more, piece + 2, piece)
            mbarrier.wait(q_full.index(half_of * 3 + place % 3), (place // 3) & 1)
            mbarrier.wait(k_full.index(after % STAGES), (after // STAGES) & 1)
            s0 = _scores(q_smem.index(half_of * 3 + place % 3), k_smem.index(after % STAGES), zeros)
            s1 = warpgroup_mma_wait(2, deps=[s1])
            p, acc1, peak1, total1 = _weigh(s1, acc1, peak1, total1, bias, scale_log2, o_layout, dtype)
            acc1 = warpgroup_mma(p, v_smem.index(here), acc1, is_async=True)
            s0, acc0, acc1 = warpgroup_mma_wait(0, deps=[s0, acc0, acc1])
            mbarrier.arrive(empty.index(here), count=1)
            count += 1
        indices = _indices(
            gl.where(more, tile + gl.num_programs(0), tile), index_ptr, num_blocks, i_stride_b, i_stride_n,
            i_stride_h, KV_HEADS, PARTS
        )  # fmt: skip
        chunk = gl.load(indices)
        first = head + half_of * 2
        _finish(acc0, peak0, total0, q1, lse_ptr, block * 64, first, KV_HEADS * PARTS * 4, o_layout, s_layout)
        fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [block * 64, first * DIM], q1)
        tma.store_wait(0)
        _finish(
            acc1, peak1, total1, q1, lse_ptr, block * 64, first + 1, KV_HEADS * PARTS * 4, o_layout, s_layout
        )
        fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [block * 64, (first + 1) * DIM], q1)
        turn += 1  # noqa: SIM113 (the loop has a stride)
    tma.store_wait(0)


@gluon.jit
def _first(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
           DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Consumer of the first 128 rows."""
    (q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, empty, out_desc, index_ptr,
     lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h) = args  # fmt: skip
    _consumer(0, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, empty,
              out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)  # fmt: skip


@gluon.jit
def _second(args, KV_HEADS: gl.constexpr, PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr,
            DIM: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Consumer of the last 128 rows."""
    (q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, empty, out_desc, index_ptr,
     lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h) = args  # fmt: skip
    _consumer(1, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, empty,
              out_desc, index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n, i_stride_h,
              KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)  # fmt: skip


@gluon.jit
def deep_forward_kernel(k_ptr, v_ptr, q_desc, k_desc, v_desc, out_desc, index_ptr, lse_ptr, scale_log2, num_tiles,
                        num_blocks, num_k, i_stride_b, i_stride_n, i_stride_h, KV_HEADS: gl.constexpr,
                        PARTS: gl.constexpr, CHUNK: gl.constexpr, CHOSEN: gl.constexpr, DIM: gl.constexpr,
                        STAGES: gl.constexpr, AHEAD: gl.constexpr):  # fmt: skip
    """out [B * Nq, Hq * DIM] and lse [B * Nq, Hq] of all tiles; descriptors of 64 tokens of one head."""
    dtype: gl.constexpr = q_desc.dtype
    q_smem = gl.allocate_shared_memory(dtype, [6, 64, DIM], q_desc.layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, CHUNK, DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, CHUNK, DIM], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [6, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [6, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(6):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    consumed = (q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, empty, out_desc,
                index_ptr, lse_ptr, scale_log2, num_tiles, num_blocks, i_stride_b, i_stride_n,
                i_stride_h)  # fmt: skip
    fetched = (k_ptr, v_ptr, q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, q_empty, k_full, v_full, empty,
               index_ptr, num_tiles, num_blocks, num_k, i_stride_b, i_stride_n, i_stride_h, KV_HEADS, PARTS, CHUNK,
               CHOSEN, DIM, STAGES, AHEAD)  # fmt: skip
    gl.warp_specialize(
        [
            (_first, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)),
            (_second, (consumed, KV_HEADS, PARTS, CHUNK, CHOSEN, DIM, STAGES)),
            (_producer, fetched),
        ],
        [4, 1],
        [240, 24],
    )


def launch_deep(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale_log2: float,
    stages: int = 4,
    ahead: int = 0,
) -> None:
    """Fill out and lse (base 2) for inputs that `fits` allows."""
    dim, kv_heads = q.shape[3], k.shape[2]
    parts = q.shape[2] // kv_heads // HOPPER_HEADS
    tiles = q.shape[0] * indices.shape[1] * kv_heads * parts
    deep_forward_kernel[(min(tiles, processors(q)),)](
        k,
        v,
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
        AHEAD=min(ahead, indices.shape[3]) if dim == 128 else 0,
        num_warps=4,
    )
