# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""Triton kernels of the decode: split-K over ring tiles, chunks and latent blocks, then the merge of the splits."""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.dependent import begin, begin_early, results
from models.kernels.landmark_topk.kernel import candidate_page
from models.kernels.latent_decode.parts import (
    chunk_tokens,
    latent_basis,
    latent_factors,
    latent_run,
    raw_queries,
    raw_step,
    ring_keys,
    ring_values,
    table,
    turned,
)
from models.kernels.latent_decode.single import single_chunk, single_latent_block, single_ring_tile


@triton.jit
def decode_kernel(
    q_ptr,
    q_place_ptr,
    ring_k_ptr,
    ring_v_ptr,
    ring_place_ptr,
    key_factor_ptr,
    key_basis_ptr,
    value_factor_ptr,
    value_basis_ptr,
    latent_place_ptr,
    pool_k_ptr,
    pool_v_ptr,
    page_ptr,
    chosen_ptr,
    page_place_ptr,
    page_length_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    lse_ptr,
    part_ptr,
    part_peak_ptr,
    part_total_ptr,
    scale_log2,
    num_q,
    ring_slots,
    num_blocks,
    num_chosen,
    num_places,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    rk_stride_b,
    rk_stride_m,
    rk_stride_h,
    rv_stride_b,
    rv_stride_m,
    rv_stride_h,
    pk_stride_p,
    pk_stride_c,
    pk_stride_h,
    pv_stride_p,
    pv_stride_c,
    pv_stride_h,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LENGTHS: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_RUN: tl.constexpr,
    KEY_RANK: tl.constexpr,
    BLOCK_KR: tl.constexpr,
    VALUE_RANK: tl.constexpr,
    BLOCK_VR: tl.constexpr,
    ROTARY: tl.constexpr,
    DIRECT: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIST: tl.constexpr,
    CUT: tl.constexpr,
    SINGLE: tl.constexpr,
    EARLY: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Unnormalised sums of one split for the rows (query t, head of the group) of one (batch row, key head).

    CANDIDATES: page_ptr holds so many candidates of a search for each row, from which the pages are picked here and
    written to chosen_ptr; 0: page_ptr names the pages. SINGLE: as many splits as ring tiles, chunks and blocks, so
    that each has one and reads it beside the queries. Only there: LIST, candidates are in sorted lists of so
    many (0: not). CUT: parts of a chunk, each a unit of its own. EARLY: only what names the chunks comes from the
    kernel before this one, which lets this one start after everything earlier is done: nothing else waits for it.
    """
    if EARLY:
        begin_early(PDL)
    else:
        begin(PDL)
    split = tl.program_id(0)
    splits = tl.num_programs(0)
    pair = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = pair % KV_HEADS
    HALF: tl.constexpr = DIM // 2
    dtype: tl.constexpr = q_ptr.dtype.element_ty

    rows = tl.arange(0, BLOCK_R)
    query = rows // GROUP
    row_ok = query < num_q
    head = kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, DIM)
    tokens = tl.arange(0, BLOCK_C)
    peak = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, DIM], tl.float32)
    ring_tiles = tl.cdiv(ring_slots, BLOCK_N)
    before = ring_tiles + num_chosen * CUT
    # ring tiles, chunks and blocks are dealt out in turn, as one list, so that every split gets its share of each

    if SINGLE:
        if split < ring_tiles:
            peak, total, acc = single_ring_tile(
                split, peak, total, acc, q_ptr, q_place_ptr, ring_k_ptr, ring_v_ptr, ring_place_ptr, cos_ptr,
                sin_ptr, batch, kv_head, query, row_ok, num_places, scale_log2, ring_slots, q_stride_b, q_stride_t,
                q_stride_h, rk_stride_b, rk_stride_m, rk_stride_h, rv_stride_b, rv_stride_m, rv_stride_h, GROUP,
                DIM, BLOCK_R, BLOCK_N, ROTARY, PRECISION,
            )  # fmt: skip
        elif split < before:
            if CHUNK > 0:
                peak, total, acc = single_chunk(
                    split - ring_tiles, peak, total, acc, q_ptr, q_place_ptr, pool_k_ptr, pool_v_ptr, page_ptr,
                    chosen_ptr, page_place_ptr, page_length_ptr, cos_ptr, sin_ptr, batch, kv_head, query, row_ok,
                    num_places, num_chosen, scale_log2, q_stride_b, q_stride_t, q_stride_h, pk_stride_p,
                    pk_stride_c, pk_stride_h, pv_stride_p, pv_stride_c, pv_stride_h, GROUP, DIM, BLOCK_R, CHUNK,
                    BLOCK_C, LENGTHS, CANDIDATES, LIST, CUT, ROTARY, PRECISION, PDL and EARLY,
                )  # fmt: skip
        else:
            if RUNS > 0:
                peak, total, acc = single_latent_block(
                    split - before, peak, total, acc, q_ptr, q_place_ptr, key_factor_ptr, key_basis_ptr,
                    value_factor_ptr, value_basis_ptr, latent_place_ptr, cos_ptr, sin_ptr, batch, kv_head, query,
                    row_ok, num_places, num_blocks, scale_log2, q_stride_b, q_stride_t, q_stride_h, KV_HEADS,
                    GROUP, DIM, BLOCK_R, RUNS, RUN, BLOCK_RUN, KEY_RANK, BLOCK_KR, VALUE_RANK, BLOCK_VR, ROTARY,
                    PRECISION,
                )  # fmt: skip
    else:
        step, q1, q2 = raw_queries(
            q_ptr, q_place_ptr, batch, kv_head, query, row_ok, q_stride_b, q_stride_t, q_stride_h, GROUP, DIM,
            BLOCK_R,
        )  # fmt: skip
        own_cos, own_sin = table(step, cos_ptr, sin_ptr, num_places, HALF, ROTARY)
        turned1, turned2 = turned(q1, q2, own_cos, own_sin, ROTARY)
        q1 = turned1.to(dtype)
        q2 = turned2.to(dtype)
        for tile in range(split, ring_tiles, splits):
            place, k1, k2 = ring_keys(
                tile, ring_k_ptr, ring_place_ptr, batch, kv_head, ring_slots, rk_stride_b, rk_stride_m,
                rk_stride_h, DIM, BLOCK_N,
            )  # fmt: skip
            v = ring_values(
                tile, place, ring_v_ptr, batch, kv_head, rv_stride_b, rv_stride_m, rv_stride_h, DIM, BLOCK_N
            )
            cos, sin = table(place, cos_ptr, sin_ptr, num_places, HALF, ROTARY)
            ok = (place >= 0)[None, :] & (place[None, :] <= step[:, None])
            peak, total, acc = raw_step(
                ok, k1, k2, v, cos, sin, q1, q2, peak, total, acc, scale_log2, ROTARY, PRECISION
            )
        if RUNS > 0:
            for block in range((split + splits - before % splits) % splits, num_blocks, splits):
                base = (batch * KV_HEADS + kv_head) * num_blocks + block
                b1, b2, expand = latent_basis(
                    base, key_basis_ptr, value_basis_ptr, DIM, KEY_RANK, BLOCK_KR, VALUE_RANK, BLOCK_VR
                )
                summed = tl.zeros([BLOCK_R, BLOCK_VR], tl.float32)
                for run in range(0, RUNS):
                    place, u, factor = latent_factors(
                        base, run, batch * num_blocks + block, key_factor_ptr, value_factor_ptr, latent_place_ptr,
                        RUNS, RUN, BLOCK_RUN, KEY_RANK, BLOCK_KR, VALUE_RANK, BLOCK_VR,
                    )  # fmt: skip
                    peak, total, acc, summed = latent_run(
                        place, u, factor, b1, b2, turned1, turned2, cos_ptr, sin_ptr, num_places, scale_log2, peak,
                        total, acc, summed, dtype, DIM, RUN, BLOCK_RUN, ROTARY, PRECISION,
                    )  # fmt: skip
                acc = tl.dot(summed.to(dtype), expand, acc, input_precision=PRECISION)
        results(PDL and EARLY)
        if CHUNK > 0:
            for unit in range((split + splits - ring_tiles % splits) % splits, num_chosen * CUT, splits):
                slot = unit // CUT
                part = unit % CUT * BLOCK_C
                if CANDIDATES > 0:
                    page = candidate_page(page_ptr + batch * CANDIDATES, slot, CANDIDATES)
                    if kv_head + part == 0:
                        tl.store(chosen_ptr + batch * num_chosen + slot, page)
                else:
                    page = tl.load(page_ptr + batch * num_chosen + slot)
                first = tl.load(page_place_ptr + batch * num_chosen + slot) + part
                ok, k1, k2, v = chunk_tokens(
                    page, pool_k_ptr, pool_v_ptr, page_length_ptr, kv_head, pk_stride_p, pk_stride_c, pk_stride_h,
                    pv_stride_p, pv_stride_c, pv_stride_h, DIM, CHUNK, BLOCK_C, LENGTHS, part,
                )  # fmt: skip
                cos, sin = table(first + tokens, cos_ptr, sin_ptr, num_places, HALF, ROTARY)
                peak, total, acc = raw_step(
                    ok[None, :], k1, k2, v, cos, sin, q1, q2, peak, total, acc, scale_log2, ROTARY, PRECISION
                )

    out_rows = (batch * num_q + query) * (KV_HEADS * GROUP) + head
    if DIRECT:
        acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        tl.store(out_ptr + out_rows[:, None] * DIM + dims[None, :], acc.to(dtype), mask=row_ok[:, None])
        lse = tl.where(total > 0.0, (peak + tl.math.log2(total)) * 0.6931471805599453, float("-inf"))
        tl.store(lse_ptr + out_rows, lse, mask=row_ok)
    else:
        part_rows = out_rows * splits + split
        tl.store(part_ptr + part_rows[:, None] * DIM + dims[None, :], acc, mask=row_ok[:, None])
        tl.store(part_peak_ptr + part_rows, peak, mask=row_ok)
        tl.store(part_total_ptr + part_rows, total, mask=row_ok)


@triton.jit
def merge_kernel(part_ptr, part_peak_ptr, part_total_ptr, out_ptr, lse_ptr, splits,
                 DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """BLOCK_D columns of an output row: joins the splits' sums under their common peak."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_S)
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    peak = tl.load(part_peak_ptr + row * splits + lanes, mask=lanes < splits, other=float("-inf"))
    total = tl.load(part_total_ptr + row * splits + lanes, mask=lanes < splits, other=0.0)
    top = tl.max(peak, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.math.exp2(peak - shift)
    mass = tl.sum(total * weight, 0)
    part = tl.load(
        part_ptr + (row * splits + lanes)[:, None] * DIM + dims[None, :],
        mask=(lanes < splits)[:, None],
        other=0.0,
    )
    out = tl.sum(part * weight[:, None], 0) / tl.where(mass > 0.0, mass, 1.0)
    tl.store(out_ptr + row * DIM + dims, out.to(out_ptr.dtype.element_ty))
    lse = tl.where(mass > 0.0, (top + tl.math.log2(mass)) * 0.6931471805599453, float("-inf"))
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + row, lse)
