# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""One launch for a decoding step that retrieves: search, attention and the joining of all parts.

First every program scans a span of landmarks, or attends to a share of the ring and the latents. Programs then
arrive at a counter. The last to arrive, as many as there are chosen chunks times key heads, take one chunk
each: once all programs have arrived, each finds its chunk among the spans' candidates, attends to it, joins a
share of the ring's and latents' sums, and arrives at the counter of its row and key head, where the last joins
the chunks' sums.

No program waits for one that could not start: a program waits only after its own first part, and only as many wait
as there are chunks times key heads, so a device that holds one program more always finishes, in whatever order it
starts them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.landmark_topk.kernel import best_of_span, limit_of
from models.kernels.latent_decode.parts import chunk_page, join, latent_block, ring_tile, turned_queries


@triton.jit
def join_parts(peak, total, acc, part_ptr, peak_ptr, total_ptr, first, last, num_rows, DIM: tl.constexpr,
               BLOCK_R: tl.constexpr, AT_ONCE: tl.constexpr):  # fmt: skip
    """The state after the parts first … last - 1, stored as [part, row(, DIM)]; AT_ONCE are read at a time."""
    lanes = tl.arange(0, AT_ONCE)
    rows = tl.arange(0, BLOCK_R)
    dims = tl.arange(0, DIM)
    for start in range(first, last, AT_ONCE):
        line = (start + lanes)[:, None] * num_rows + rows[None, :]
        ok = (start + lanes < last)[:, None] & (rows < num_rows)[None, :]
        part_peak = tl.load(peak_ptr + line, mask=ok, other=float("-inf"), cache_modifier=".cg")
        part_total = tl.load(total_ptr + line, mask=ok, other=0.0, cache_modifier=".cg")
        part = tl.load(
            part_ptr + line[:, :, None] * DIM + dims[None, None, :],
            mask=ok[:, :, None],
            other=0.0,
            cache_modifier=".cg",
        )
        top = tl.max(part_peak, 0)
        shift = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.math.exp2(part_peak - shift[None, :])
        summed = tl.sum(part * weight[:, :, None], 0)
        mass = tl.sum(part_total * weight, 0)
        peak, total, acc = join(peak, total, acc, top, mass, summed)
    return peak, total, acc


@triton.jit
def store_part(peak, total, acc, part_ptr, peak_ptr, total_ptr, place, num_rows, DIM: tl.constexpr,
               BLOCK_R: tl.constexpr):  # fmt: skip
    """Write a state as part `place`."""
    rows = tl.arange(0, BLOCK_R)
    line = place * num_rows + rows
    ok = rows < num_rows
    tl.store(part_ptr + line[:, None] * DIM + tl.arange(0, DIM)[None, :], acc, mask=ok[:, None])
    tl.store(peak_ptr + line, peak, mask=ok)
    tl.store(total_ptr + line, total, mask=ok)


@triton.jit
def retrieve_decode_kernel(
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
    page_place_ptr,
    page_length_ptr,
    cos_ptr,
    sin_ptr,
    query_ptr,
    landmark_ptr,
    length_ptr,
    candidate_ptr,
    index_ptr,
    out_ptr,
    lse_ptr,
    part_ptr,
    part_peak_ptr,
    part_total_ptr,
    counter_ptr,
    scale_log2,
    num_q,
    ring_slots,
    num_blocks,
    num_places,
    num_pairs,
    num_landmarks,
    exclude_newest,
    landmark_dim,
    landmark_stride_b,
    landmark_stride_n,
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
    PAGE_LENGTHS: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_RUN: tl.constexpr,
    KEY_RANK: tl.constexpr,
    BLOCK_KR: tl.constexpr,
    VALUE_RANK: tl.constexpr,
    BLOCK_VR: tl.constexpr,
    ROTARY: tl.constexpr,
    LENGTHS: tl.constexpr,
    CHOSEN: tl.constexpr,
    K: tl.constexpr,
    SPANS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNITS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PHASE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out, lse and the chosen pages; PHASE 0: all at once, 1 and 2: what comes before and after the counter.

    Programs: SPANS for each row, then UNITS for each pair (row, key head); PHASE 2: CHOSEN for each pair.
    Counters, zero before and after: arrived, pairs done, then one for each pair.
    """
    program = tl.program_id(0)
    num_rows = num_q * GROUP
    rows = tl.arange(0, BLOCK_R)
    row_ok = rows < num_rows
    query = rows // GROUP
    PARTS: tl.constexpr = UNITS + CHOSEN

    if PHASE != 2:
        spans = (num_pairs // KV_HEADS) * SPANS
        if program < spans:
            batch = (program // SPANS).to(tl.int64)
            best = best_of_span(
                query_ptr + batch * landmark_dim, landmark_ptr + batch * landmark_stride_b,
                (program % SPANS) * (STEPS * BLOCK_L),
                limit_of(length_ptr, batch, num_landmarks, exclude_newest, LENGTHS),
                landmark_dim, landmark_stride_n, K, STEPS, BLOCK_L, BLOCK_D,
            )  # fmt: skip
            tl.store(candidate_ptr + program.to(tl.int64) * K + tl.arange(0, K), best)
        else:
            unit = (program - spans) % UNITS
            pair = (program - spans) // UNITS
            batch = (pair // KV_HEADS).to(tl.int64)
            kv_head = pair % KV_HEADS
            step = tl.load(q_place_ptr + batch) + query
            turned1, turned2, q1, q2 = turned_queries(
                q_ptr, batch, kv_head, query, row_ok, step, cos_ptr, sin_ptr, num_places, q_stride_b,
                q_stride_t, q_stride_h, GROUP, DIM, BLOCK_R, ROTARY,
            )  # fmt: skip
            peak = tl.full([BLOCK_R], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_R], tl.float32)
            acc = tl.zeros([BLOCK_R, DIM], tl.float32)
            ring_tiles = tl.cdiv(ring_slots, BLOCK_N)
            for tile in range(unit, ring_tiles, UNITS):
                peak, total, acc = ring_tile(
                    tile, peak, total, acc, q1, q2, step, ring_k_ptr, ring_v_ptr, ring_place_ptr, batch,
                    kv_head, cos_ptr, sin_ptr, num_places, scale_log2, ring_slots, rk_stride_b, rk_stride_m,
                    rk_stride_h, rv_stride_b, rv_stride_m, rv_stride_h, DIM, BLOCK_N, ROTARY, PRECISION,
                )  # fmt: skip
            if RUNS > 0:
                for block in range((unit + UNITS - ring_tiles % UNITS) % UNITS, num_blocks, UNITS):
                    peak, total, acc = latent_block(
                        block, peak, total, acc, q1, q2, turned1, turned2, key_factor_ptr, key_basis_ptr,
                        value_factor_ptr, value_basis_ptr, latent_place_ptr, batch, kv_head, cos_ptr, sin_ptr,
                        num_places, scale_log2, num_blocks, KV_HEADS, DIM, RUNS, RUN, BLOCK_RUN, KEY_RANK,
                        BLOCK_KR, VALUE_RANK, BLOCK_VR, BLOCK_R, ROTARY, PRECISION,
                    )  # fmt: skip
            store_part(
                peak, total, acc, part_ptr, part_peak_ptr, part_total_ptr, pair.to(tl.int64) * PARTS + unit,
                num_rows, DIM, BLOCK_R,
            )  # fmt: skip

    role = program
    if PHASE == 0:
        tl.debug_barrier()  # the counter is raised by one thread, after the stores of all
        ticket = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
        role = ticket + num_pairs * CHOSEN - tl.num_programs(0)
        if role >= 0:
            arrived = ticket + 1
            while arrived < tl.num_programs(0):
                arrived = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
    if PHASE != 1:  # noqa: SIM102 (decided when compiling)
        if role >= 0:
            pair = role // CHOSEN
            slot = role % CHOSEN
            batch = (pair // KV_HEADS).to(tl.int64)
            kv_head = pair % KV_HEADS
            held = tl.load(
                candidate_ptr + batch * (SPANS * K) + tl.arange(0, SPANS * K), cache_modifier=".cg"
            )
            if (
                CHOSEN <= 16
            ):  # as many maxima as the slot asks for: a fifth of the code of a sort, and as fast
                own = tl.max(held, 0)
                for _ in range(0, slot):
                    held = tl.where(held >= own, -0x8000000000000000, held)
                    own = tl.max(held, 0)
            else:
                best = tl.reshape(tl.topk(tl.reshape(held, [1, SPANS * K]), K), [K])
                own = tl.max(tl.where(tl.arange(0, K) == slot, best, -0x8000000000000000), 0)
            page = tl.where(own == -0x8000000000000000, -1, 0x7FFFFFFF - (own & 0xFFFFFFFF).to(tl.int32))
            if kv_head == 0:
                tl.store(index_ptr + batch * CHOSEN + slot, page)
            first = tl.load(page_place_ptr + batch * CHOSEN + slot)
            step = tl.load(q_place_ptr + batch) + query
            _, _, q1, q2 = turned_queries(
                q_ptr, batch, kv_head, query, row_ok, step, cos_ptr, sin_ptr, num_places, q_stride_b,
                q_stride_t, q_stride_h, GROUP, DIM, BLOCK_R, ROTARY,
            )  # fmt: skip
            peak = tl.full([BLOCK_R], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_R], tl.float32)
            acc = tl.zeros([BLOCK_R, DIM], tl.float32)
            peak, total, acc = chunk_page(
                page, first, peak, total, acc, q1, q2, pool_k_ptr, pool_v_ptr, page_length_ptr, kv_head,
                cos_ptr, sin_ptr, num_places, scale_log2, pk_stride_p, pk_stride_c, pk_stride_h, pv_stride_p,
                pv_stride_c, pv_stride_h, DIM, CHUNK, BLOCK_C, PAGE_LENGTHS, ROTARY, PRECISION,
            )  # fmt: skip
            base = pair.to(tl.int64) * PARTS
            share: tl.constexpr = (UNITS + CHOSEN - 1) // CHOSEN
            peak, total, acc = join_parts(
                peak, total, acc, part_ptr, part_peak_ptr, part_total_ptr, base + slot * share,
                base + tl.minimum((slot + 1) * share, UNITS), num_rows, DIM, BLOCK_R, AT_ONCE,
            )  # fmt: skip
            store_part(
                peak, total, acc, part_ptr, part_peak_ptr, part_total_ptr, base + UNITS + slot, num_rows, DIM,
                BLOCK_R,
            )  # fmt: skip
            tl.debug_barrier()
            if tl.atomic_add(counter_ptr + 2 + pair, 1, sem="acq_rel", scope="gpu") == CHOSEN - 1:
                peak = tl.full([BLOCK_R], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_R], tl.float32)
                acc = tl.zeros([BLOCK_R, DIM], tl.float32)
                peak, total, acc = join_parts(
                    peak, total, acc, part_ptr, part_peak_ptr, part_total_ptr, base + UNITS,
                    base + UNITS + CHOSEN, num_rows, DIM, BLOCK_R, AT_ONCE,
                )  # fmt: skip
                acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
                line = (batch * num_q + query) * (KV_HEADS * GROUP) + kv_head * GROUP + rows % GROUP
                target = out_ptr + line[:, None] * DIM + tl.arange(0, DIM)[None, :]
                tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=row_ok[:, None])
                lse = (peak + tl.math.log2(total)) * 0.6931471805599453
                tl.store(lse_ptr + line, tl.where(total > 0.0, lse, float("-inf")), mask=row_ok)
                tl.store(counter_ptr + 2 + pair, 0)
                if tl.atomic_add(counter_ptr + 1, 1, sem="acq_rel", scope="gpu") == num_pairs - 1:
                    tl.store(counter_ptr, 0)
                    tl.store(counter_ptr + 1, 0)
