# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""Triton kernels of the landmark search.

A candidate is one int64: the score as an integer of the same order, above the complement of the index.
So one integer comparison orders by score, then by lower index, and a partial sort carries both; the smallest
int64 stands for no candidate. Scores live in registers only: what is written are the k best of each split.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.dependent import begin, begin_after


@triton.jit
def pack(scores, index):
    """float32 scores and int32 indices (broadcastable) as int64 candidates; NaN ranks last."""
    scores = tl.where(scores == scores, scores, float("-inf"))
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def limit_of(length_ptr, batch, num_landmarks, exclude_newest, LENGTHS: tl.constexpr):
    """How many landmarks of this row count."""
    limit = num_landmarks
    if LENGTHS:
        limit = tl.minimum(limit, tl.load(length_ptr + batch))
    return limit - exclude_newest


@triton.jit
def rank_of(packed, COUNT: tl.constexpr):
    """How many of COUNT candidates come before each: all different, those that are none last, in some order.

    A sort of COUNT takes log² of it steps, each waiting for the one before; this is one comparison of all with all.
    """
    # no candidate's upper half is 0x80000000, not even with a score of minus infinity, so these stay below them all
    keys = tl.where(packed == -0x8000000000000000, packed + tl.arange(0, COUNT), packed)
    # over axis 0 a thread adds up by itself what over axis 1 a warp would have to exchange
    return tl.sum((keys[:, None] > keys[None, :]).to(tl.int32), 0)


@triton.jit
def span_candidates(query_ptr, base, first, limit, dim, landmark_stride_n, STEPS: tl.constexpr,
                    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Candidates [STEPS, BLOCK_N] of the landmarks from `first`, none for those at `limit` and after."""
    depth = tl.arange(0, BLOCK_D)
    q = tl.load(query_ptr + depth, mask=depth < dim, other=0.0)
    q = q.to(tl.float32)[None, :]
    lanes = tl.arange(0, BLOCK_N)
    steps = tl.arange(0, STEPS)
    scores = tl.full([STEPS, BLOCK_N], float("-inf"), tl.float32)
    for step in tl.range(0, STEPS, num_stages=3):
        index = first + step * BLOCK_N + lanes
        tile = tl.load(
            base + index.to(tl.int64)[:, None] * landmark_stride_n + depth[None, :],
            mask=(index < limit)[:, None] & (depth < dim)[None, :],
            other=0.0,
        )
        own = tl.sum(tile.to(tl.float32) * q, 1)
        scores = tl.where(steps[:, None] == step, own[None, :], scores)
    index = first + steps[:, None] * BLOCK_N + lanes[None, :]
    return tl.where(index < limit, pack(scores, index), -0x8000000000000000)


@triton.jit
def best_of_span(query_ptr, base, first, limit, dim, landmark_stride_n, K: tl.constexpr, STEPS: tl.constexpr,
                 BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """The K best candidates [K] of STEPS * BLOCK_N landmarks from `first`, those at `limit` and after left out."""
    packed = span_candidates(query_ptr, base, first, limit, dim, landmark_stride_n, STEPS, BLOCK_N, BLOCK_D)
    return tl.reshape(tl.topk(tl.reshape(packed, [1, STEPS * BLOCK_N]), K), [K])


@triton.jit
def scan_kernel(
    query_ptr,
    landmark_ptr,
    length_ptr,
    block_ptr,
    part_ptr,
    num_queries,
    num_landmarks,
    exclude_newest,
    dim,
    landmark_stride_b,
    landmark_stride_n,
    K: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LENGTHS: tl.constexpr,
    CHOSEN: tl.constexpr,
    EARLY: tl.constexpr,
    RANKED: tl.constexpr,
    PDL: tl.constexpr,
):
    """The K best of STEPS * BLOCK_N landmarks for one query: the split's own, or (CHOSEN) a named block's.

    EARLY: the next kernels read only what comes of this one and start before it is there. RANKED: ordered by
    comparing all with all, for few landmarks.
    """
    if EARLY:
        begin_after(PDL)
    else:
        begin(PDL)
    split = tl.program_id(0)
    query = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    limit = limit_of(length_ptr, batch, num_landmarks, exclude_newest, LENGTHS)
    line = ((batch * num_queries + query) * tl.num_programs(0) + split).to(tl.int64)
    first = split * (STEPS * BLOCK_N)
    if CHOSEN:
        block = tl.load(block_ptr + line)
        first = tl.maximum(block, 0) * (STEPS * BLOCK_N)
        limit = tl.where(block >= 0, limit, 0)
    own_query = query_ptr + (batch * num_queries + query) * dim
    base = landmark_ptr + batch * landmark_stride_b
    if RANKED:
        packed = span_candidates(
            own_query, base, first, limit, dim, landmark_stride_n, STEPS, BLOCK_N, BLOCK_D
        )
        packed = tl.reshape(packed, [STEPS * BLOCK_N])
        rank = rank_of(packed, STEPS * BLOCK_N)
        tl.store(part_ptr + line * K + rank, packed, mask=rank < K)
    else:
        best = best_of_span(own_query, base, first, limit, dim, landmark_stride_n, K, STEPS, BLOCK_N, BLOCK_D)
        tl.store(part_ptr + line * K + tl.arange(0, K), best)


@triton.jit
def candidate_page(candidate_ptr, slot, COUNT: tl.constexpr):
    """Index of the candidate at place `slot` of COUNT (-1: none): as many maxima as the place asks for."""
    held = tl.load(candidate_ptr + tl.arange(0, COUNT))
    own = tl.max(held, 0)
    for _ in range(0, slot):
        held = tl.where(held >= own, -0x8000000000000000, held)
        own = tl.max(held, 0)
    return page_of(own)


@triton.jit
def ranked_page(candidate_ptr, slot, COUNT: tl.constexpr, K: tl.constexpr):
    """As `candidate_page` for lists of K sorted candidates: the K lists with the best heads, then their best.

    No maximum is looked for before the slot-th, so that the last chunk's program waits no longer than the first's.
    """
    LISTS: tl.constexpr = COUNT // K
    places = tl.arange(0, K)
    rank = rank_of(tl.load(candidate_ptr + tl.arange(0, LISTS) * K), LISTS)
    named = tl.where(rank[:, None] == places[None, :], tl.arange(0, LISTS)[:, None], -1)
    line = tl.max(named, 0)[:, None]
    held = tl.load(candidate_ptr + line * K + places[None, :], mask=line >= 0, other=-0x8000000000000000)
    held = tl.reshape(held, [K * K])
    own = tl.max(tl.where(rank_of(held, K * K) == slot, held, -0x8000000000000000), 0)
    return page_of(own)


@triton.jit
def page_of(own):
    """Index that a candidate carries, -1 for none."""
    return tl.where(own == -0x8000000000000000, -1, 0x7FFFFFFF - (own & 0xFFFFFFFF).to(tl.int32))


@triton.jit
def maxima_kernel(
    query_ptr,
    landmark_ptr,
    length_ptr,
    part_ptr,
    num_queries,
    num_landmarks,
    exclude_newest,
    dim,
    width,
    landmark_stride_b,
    landmark_stride_n,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """The best score of a block of BLOCK_N landmarks for BLOCK_Q queries, packed with the block's number.

    The k best landmarks lie in the k blocks whose best scores are highest, so only these need be scored again.
    EARLY: as in `scan_kernel`.
    """
    if EARLY:
        begin_after(PDL)
    else:
        begin(PDL)
    block = tl.program_id(0)
    batch = tl.program_id(2).to(tl.int64)
    limit = limit_of(length_ptr, batch, num_landmarks, exclude_newest, LENGTHS)
    queries = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_ok = queries < num_queries
    q_row = query_ptr + (batch * num_queries + queries).to(tl.int64)[:, None] * dim
    index = block * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = index < limit
    row = landmark_ptr + batch * landmark_stride_b + index.to(tl.int64)[:, None] * landmark_stride_n
    depth = tl.arange(0, BLOCK_D)
    scores = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
    for d in range(0, dim, BLOCK_D):
        d_ok = (d + depth < dim)[None, :]
        tile = tl.load(row + d + depth[None, :], mask=ok[:, None] & d_ok, other=0.0)
        q = tl.load(q_row + d + depth[None, :], mask=q_ok[:, None] & d_ok, other=0.0)
        scores = tl.dot(q, tl.trans(tile), scores, input_precision=PRECISION)
    scores = tl.where(ok[None, :] & (scores == scores), scores, float("-inf"))
    packed = pack(tl.max(scores, 1), block)
    packed = tl.where(block * BLOCK_N < limit, packed, -0x8000000000000000)
    tl.store(part_ptr + (batch * num_queries + queries).to(tl.int64) * width + block, packed, mask=q_ok)


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
    PDL: tl.constexpr,
):
    """The K best of up to FAN_IN lists of one query; LAST unpacks them into scores and indices."""
    begin(PDL)
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
