"""Triton kernels of the landmark search. A candidate is one int64: the score's ordered bits above the index' complement.

So one integer comparison orders by score, then by lower index, and a partial sort carries both; the smallest
int64 stands for no candidate. Scores live in registers only: what is written are the k best of each split.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pack(scores, index):
    """float32 scores and int32 indices (broadcastable) as int64 candidates; NaN ranks last."""
    scores = tl.where(scores == scores, scores, float("-inf"))
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _join(best, more, K: tl.constexpr):
    """The K best of two lists [R, K]."""
    both = tl.reshape(tl.join(best, more), [best.shape[0], 2 * K])
    return tl.topk(both, K)


@triton.jit
def search_kernel(
    query_ptr,
    landmark_ptr,
    length_ptr,
    part_ptr,
    num_queries,
    num_landmarks,
    exclude_newest,
    span,
    dim,
    landmark_stride_b,
    landmark_stride_n,
    K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The K best of landmarks [split * span, (split + 1) * span) for BLOCK_Q queries (1: by sums, else by matrix products)."""
    split = tl.program_id(0)
    batch = tl.program_id(2).to(tl.int64)
    queries = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    limit = num_landmarks
    if LENGTHS:
        limit = tl.minimum(limit, tl.load(length_ptr + batch))
    limit = limit - exclude_newest
    last = tl.minimum(limit, (split + 1) * span)
    q_row = query_ptr + (batch * num_queries + queries).to(tl.int64)[:, None] * dim
    base = landmark_ptr + batch * landmark_stride_b
    depth = tl.arange(0, BLOCK_D)
    best = tl.full([BLOCK_Q, K], -0x8000000000000000, tl.int64)
    worst = tl.full([BLOCK_Q], -0x8000000000000000, tl.int64)
    for first in range(split * span, last, BLOCK_N):
        index = first + tl.arange(0, BLOCK_N)
        ok = index < last
        row = base + index.to(tl.int64)[:, None] * landmark_stride_n
        scores = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        for d in range(0, dim, BLOCK_D):
            d_ok = (d + depth < dim)[None, :]
            tile = tl.load(row + d + depth[None, :], mask=ok[:, None] & d_ok, other=0.0)
            q = tl.load(q_row + d + depth[None, :], mask=(queries < num_queries)[:, None] & d_ok, other=0.0)
            if BLOCK_Q == 1:
                scores += tl.sum(tile.to(tl.float32) * q.to(tl.float32), 1)[None, :]
            else:
                scores = tl.dot(q, tl.trans(tile), scores, input_precision=PRECISION)
        packed = tl.where(ok[None, :], _pack(scores, index[None, :]), -0x8000000000000000)
        better = tl.max(packed, 1) > worst
        if tl.max(better.to(tl.int32), 0) > 0:
            best = _join(best, tl.topk(packed, K), K)
            worst = tl.min(best, 1)
    rows = (batch * num_queries + queries) * tl.num_programs(0) + split
    target = part_ptr + rows.to(tl.int64)[:, None] * K + tl.arange(0, K)[None, :]
    tl.store(target, best, mask=(queries < num_queries)[:, None])


@triton.jit
def merge_kernel(
    part_ptr,
    out_ptr,
    score_ptr,
    index_ptr,
    lists,
    k,
    K: tl.constexpr,
    FAN_IN: tl.constexpr,
    LAST: tl.constexpr,
):
    """The K best of up to FAN_IN lists of one query; LAST unpacks them into scores and indices."""
    group = tl.program_id(0)
    query = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, FAN_IN * K)
    place = group * (FAN_IN * K) + lanes
    packed = tl.load(part_ptr + query * lists * K + place, mask=place < lists * K, other=-0x8000000000000000)
    best = tl.topk(tl.reshape(packed, [1, FAN_IN * K]), K)
    best = tl.reshape(best, [K])
    slots = tl.arange(0, K)
    if LAST:
        ordered = (best >> 32).to(tl.int32)
        bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
        score = tl.where(best == -0x8000000000000000, float("-inf"), bits.to(tl.float32, bitcast=True))
        index = tl.where(best == -0x8000000000000000, -1, 0x7FFFFFFF - (best & 0xFFFFFFFF).to(tl.int32))
        tl.store(score_ptr + query * k + slots, score, mask=slots < k)
        tl.store(index_ptr + query * k + slots, index, mask=slots < k)
    else:
        tl.store(out_ptr + (query * tl.num_programs(0) + group) * K + slots, best)
