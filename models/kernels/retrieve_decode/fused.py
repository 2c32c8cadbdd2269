"""Launches a decoding step that retrieves: in one launch, in two, or search and attention apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from models.kernels.counters import counters
from models.kernels.dispatch import interpreting, last_contiguous
from models.kernels.landmark_topk.fused import landmark_topk_fused
from models.kernels.latent_decode.fused import latent_arguments, latent_decode_fused, padded, processors
from models.kernels.latent_decode.naive import Rotary
from models.kernels.latent_decode.types import ChosenChunks, Latents
from models.kernels.retrieve_decode.kernel import retrieve_decode_kernel
from models.kernels.retrieve_decode.types import Search

_CANDIDATES = 2048  # of all spans of a row, that every chosen chunk's program sorts
_SPAN = 4096  # landmarks of a span at most: their scores stay in registers
_SCANS = 128  # programs that scan, over all rows: about one on each processor of a large card
_REGISTERS = 8192  # float32 of stored parts that a program joins at a time


class Plan(NamedTuple):
    """A step's cut: launches (0: search and attention apart), a row's spans, landmarks of one, a pair's units."""

    launches: int
    spans: int
    span: int
    units: int


def retrieve_decode_fused(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    search: Search,
    *,
    latents: Latents | None,
    rotary: Rotary | None,
    scale: float,
    launches: int | None = None,
    num_warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `retrieve_decode_naive`; `launches` overrides the choice (1, 2; 0: search and attention apart)."""
    tile = 16 if q.element_size() * q.shape[3] >= 1024 else 32
    blocks = latents.key_factor.shape[2] if latents is not None else 0
    plan = plan_step(q, ring_k.shape[2], search, -(-ring_k.shape[1] // tile) + blocks, launches)
    if plan.launches:
        return _launch(
            q, ring_k, ring_v, ring_place, q_place, search, latents, rotary, scale, plan, tile, num_warps
        )
    _, found = landmark_topk_fused(
        search.queries[:, None],
        search.landmarks,
        search.place.shape[1],
        length=search.length,
        exclude_newest=search.exclude_newest,
    )
    pages = found[:, 0]
    chunks = ChosenChunks(search.keys, search.values, pages, search.place, search.page_lengths)
    out, lse = latent_decode_fused(
        q, ring_k, ring_v, ring_place, q_place, latents=latents, chunks=chunks, rotary=rotary, scale=scale
    )
    return out, lse, pages


def plan_step(q: torch.Tensor, kv_heads: int, search: Search, units: int, launches: int | None) -> Plan:
    """One launch where every chosen chunk's program can wait on a processor of its own, else two."""
    batch, chosen = search.place.shape
    landmarks = search.landmarks.shape[-2]
    width = _power(max(chosen, 2))
    roles = batch * kv_heads * chosen
    most = max(2, _CANDIDATES // width)
    spans = min(most, max(2, _power(_SCANS // max(batch, 1)), _power(-(-landmarks // 1024))))
    span = max(8, width, _power(-(-landmarks // spans)))
    allowed = processors(q.device) - 1 if q.is_cuda else 2**30
    if launches is None:
        launches = 1 if roles <= allowed and not interpreting() else 2
        if span > _SPAN or not landmarks or batch > 8:
            launches = 0
    elif launches == 1 and (roles > allowed or interpreting()):
        raise ValueError(
            f"one launch needs {roles} programs that wait at the same time; this device allows {allowed}"
            f"{' but runs them one after the other' if interpreting() else ''}: use launches=2"
        )
    shares = max(1, 2 * processors(q.device) // max(batch * kv_heads, 1))
    return Plan(launches, spans, span, max(1, min(units, 64, shares)))


def _launch(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    search: Search,
    latents: Latents | None,
    rotary: Rotary | None,
    scale: float,
    plan: Plan,
    tile: int,
    num_warps: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, num_q, q_heads, dim = q.shape
    slots, kv_heads = ring_k.shape[1], ring_k.shape[2]
    chosen, chunk = search.place.shape[1], search.keys.shape[1]
    group, pairs = q_heads // kv_heads, batch * kv_heads
    width = _power(max(chosen, 2))
    q, ring_k, ring_v = last_contiguous(q), last_contiguous(ring_k), last_contiguous(ring_v)
    ring_place = ring_place.contiguous()
    keys, values = last_contiguous(search.keys), last_contiguous(search.values)
    landmarks = last_contiguous(search.landmarks)
    queries = search.queries.to(landmarks.dtype).contiguous()
    factors, latent_constants = latent_arguments(latents, q, ring_place)
    cos, sin = (table.contiguous() for table in rotary) if rotary is not None else (q, q)
    block_r = padded(num_q * group)
    block_d = _power(max(landmarks.shape[-1], 16))
    block_l = min(plan.span, max(8, 8192 // block_d // (2 if landmarks.element_size() == 4 else 1)))

    device = q.device
    out = torch.empty((batch, num_q, q_heads, dim), dtype=q.dtype, device=device)
    lse = torch.empty((batch, num_q, q_heads), dtype=torch.float32, device=device)
    pages = torch.empty((batch, chosen), dtype=torch.int32, device=device)
    candidates = torch.empty((batch, plan.spans, width), dtype=torch.int64, device=device)
    parts = torch.empty((pairs, plan.units + chosen, num_q * group, dim), dtype=torch.float32, device=device)
    peaks = torch.empty(parts.shape[:3], dtype=torch.float32, device=device)
    totals = torch.empty_like(peaks)
    counted = counters(device, 2 + pairs)
    grids = {1: batch * plan.spans + pairs * plan.units, 2: pairs * chosen}
    for phase in (0,) if plan.launches == 1 else (1, 2):
        retrieve_decode_kernel[(grids[max(phase, 1)],)](
            q,
            q_place,
            ring_k,
            ring_v,
            ring_place,
            *factors,
            keys,
            values,
            search.place.contiguous(),
            search.page_lengths.contiguous() if search.page_lengths is not None else ring_place,
            cos,
            sin,
            queries,
            landmarks,
            search.length if search.length is not None else ring_place,
            candidates,
            pages,
            out,
            lse,
            parts,
            peaks,
            totals,
            counted,
            scale * math.log2(math.e),
            num_q,
            slots,
            latents.key_factor.shape[2] if latents is not None else 0,
            cos.shape[0],
            pairs,
            landmarks.shape[-2],
            search.exclude_newest,
            landmarks.shape[-1],
            landmarks.stride(0) if landmarks.ndim == 3 else 0,
            landmarks.stride(-2),
            *q.stride()[:3],
            *ring_k.stride()[:3],
            *ring_v.stride()[:3],
            *keys.stride()[:3],
            *values.stride()[:3],
            KV_HEADS=kv_heads,
            GROUP=group,
            DIM=dim,
            BLOCK_R=block_r,
            BLOCK_N=tile,
            CHUNK=chunk,
            BLOCK_C=padded(chunk),
            PAGE_LENGTHS=search.page_lengths is not None,
            **latent_constants,
            ROTARY=rotary is not None,
            LENGTHS=search.length is not None,
            CHOSEN=chosen,
            K=width,
            SPANS=plan.spans,
            STEPS=plan.span // block_l,
            BLOCK_L=block_l,
            BLOCK_D=block_d,
            UNITS=plan.units,
            AT_ONCE=max(1, _REGISTERS // (block_r * dim)),
            PHASE=phase,
            PRECISION="ieee",
            num_warps=num_warps,
            num_stages=2,
        )
    return out, lse, pages


def _power(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()
