# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""The scan of one query over codes: whole numbers multiplied four at a time, the best of a span scored again."""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.dependent import begin, begin_after
from models.kernels.landmark_topk.kernel import limit_of, pack, rank_of


@triton.jit
def query_words(query_ptr, first, dim, top, WORDS: tl.constexpr):
    """Dimensions from `first` of the query as bytes, four to each of WORDS words; `top` becomes 127."""
    bytes_of = tl.arange(0, 4)[None, :]
    place = first + tl.arange(0, WORDS)[:, None] * 4 + bytes_of
    q = tl.load(query_ptr + place, mask=place < dim, other=0.0).to(tl.float32)
    number = tl.floor(q * (127.0 / top) + 0.5).to(tl.int32)
    return tl.sum((number & 255) << (8 * bytes_of), 1)


@triton.jit
def products(words, low, high, BITS: tl.constexpr, ASM: tl.constexpr):
    """What each word [N, W] adds to its landmark's product with the query's words [1, W] (4 bits: 16 times it)."""
    if ASM:
        if BITS == 4:
            return tl.inline_asm_elementwise(
                "{ .reg .b32 a, b; shl.b32 a, $1, 4; and.b32 a, a, 0xF0F0F0F0; and.b32 b, $1, 0xF0F0F0F0; "
                "dp4a.s32.s32 a, a, $2, 0; dp4a.s32.s32 $0, b, $3, a; }",
                "=r,r,r,r",
                [words, low, high],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
        else:
            return tl.inline_asm_elementwise(
                "dp4a.s32.s32 $0, $1, $2, 0;", "=r,r,r", [words, low], dtype=tl.int32, is_pure=True, pack=1
            )
    else:
        found = words * 0
        for byte in tl.static_range(4):
            if BITS == 4:
                found += ((words << (28 - 8 * byte)) >> 28) * ((low << (24 - 8 * byte)) >> 24) * 16
                found += ((words << (24 - 8 * byte)) >> 28) * ((high << (24 - 8 * byte)) >> 24) * 16
            else:
                found += ((words << (24 - 8 * byte)) >> 24) * ((low << (24 - 8 * byte)) >> 24)
        return found


@triton.jit
def coded_scan_kernel(
    query_ptr,
    landmark_ptr,
    word_ptr,
    scale_ptr,
    length_ptr,
    part_ptr,
    num_landmarks,
    exclude_newest,
    dim,
    landmark_stride_n,
    K: tl.constexpr,
    KEEP: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    STAGES: tl.constexpr,
    LENGTHS: tl.constexpr,
    EARLY: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """The K best, by their own scores, of the KEEP best by code of a span of STEPS * BLOCK_N landmarks.

    Programs (spans, rows); candidates and EARLY as in `scan_kernel`.
    """
    if EARLY:
        begin_after(PDL)
    else:
        begin(PDL)
    SPAN: tl.constexpr = STEPS * BLOCK_N
    split = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    limit = limit_of(length_ptr, batch, num_landmarks, exclude_newest, LENGTHS)
    line = batch * tl.num_programs(0) + split
    first = split * SPAN
    depth = tl.arange(0, BLOCK_D)
    own_query = query_ptr + batch * dim
    q = tl.load(own_query + depth, mask=depth < dim, other=0.0).to(tl.float32)
    top = tl.max(tl.abs(q), 0)
    top = tl.where(top > 0.0, top, 1.0)
    low = query_words(own_query, 0, dim, top, WORDS)[None, :]
    high = query_words(own_query, 4 * WORDS, dim, top, WORDS)[None, :] if BITS == 4 else low
    lanes = tl.arange(0, BLOCK_N)
    steps = tl.arange(0, STEPS)
    scores = tl.full([STEPS, BLOCK_N], float("-inf"), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        index = first + step * BLOCK_N + lanes
        ok = index < limit
        words = tl.load(
            word_ptr + index.to(tl.int64)[:, None] * WORDS + tl.arange(0, WORDS)[None, :],
            mask=ok[:, None],
            other=0,
        )
        scale = tl.load(scale_ptr + index, mask=ok, other=0.0)
        own = tl.sum(products(words, low, high, BITS, ASM), 1).to(tl.float32) * scale
        scores = tl.where(steps[:, None] == step, own[None, :], scores)
    # a score's upper bits above the complement of its place: half the width of a candidate, and enough to choose by
    place = steps[:, None] * BLOCK_N + lanes[None, :]
    scores = tl.where(scores == scores, scores, float("-inf"))
    bits = scores.to(tl.int32, bitcast=True)
    keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) & (-SPAN)) | (SPAN - 1 - place)
    keys = tl.where(first + place < limit, keys, -0x80000000)
    keys = tl.reshape(tl.topk(tl.reshape(keys, [1, SPAN]), KEEP), [KEEP])
    named = keys != -0x80000000
    index = first + (SPAN - 1) - (keys & (SPAN - 1))
    tile = tl.load(
        landmark_ptr + index.to(tl.int64)[:, None] * landmark_stride_n + depth[None, :],
        mask=named[:, None] & (depth < dim)[None, :],
        other=0.0,
    )
    packed = tl.where(named, pack(tl.sum(tile.to(tl.float32) * q[None, :], 1), index), -0x8000000000000000)
    rank = rank_of(packed, KEEP)
    tl.store(part_ptr + line * K + rank, packed, mask=rank < K)
