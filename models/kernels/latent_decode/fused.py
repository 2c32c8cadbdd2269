"""Launches the decode kernels: how many splits, which tiles, and stand-ins for absent parts."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch

from models.kernels.dependent import dependent
from models.kernels.dispatch import last_contiguous
from models.kernels.latent_decode.kernel import decode_kernel, merge_kernel
from models.kernels.latent_decode.naive import Rotary
from models.kernels.latent_decode.types import ChosenChunks, Latents

_MAX_SPLITS = 128
_SINGLE = True  # programs with one tile, chunk or block are compiled for that
_SINGLE_DIM = 128  # up to this width; above, what they hold at once does not fit into registers


class Loops(NamedTuple):
    """How programs that go through several tiles, chunks and blocks are launched.

    tile: slots of the ring at a time (None: by width of head). cut: parts of a chunk, one at a time (a power of two
    that leaves each 16 tokens; else 1). programs: how many to a processor; registers: how many a thread may have
    (None: as many as it wants), which decides whether so many fit. num_stages: of the loops.
    """

    tile: int | None = None
    cut: int = 1
    programs: int = 2
    registers: int | None = None
    num_stages: int = 2


DENSE = Loops(tile=32, cut=2, programs=4, registers=128)  # four small programs to a processor, for many rows


def latent_decode_fused(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    *,
    latents: Latents | None,
    chunks: ChosenChunks | None,
    rotary: Rotary | None,
    scale: float,
    splits: int | None = None,
    block_n: int | None = None,
    num_warps: int = 4,
    loops: Loops | None = None,
    candidates: torch.Tensor | None = None,
    early: bool = False,
    single: bool | None = None,
    list_width: int = 0,
    cut: int = 1,
    merge_cut: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `latent_decode_naive`, reading every byte once: latents stay factors, chunks stay in their pool.

    With `candidates` (int64 [B, a power of two], of a search's spans) the chunks' pages are not read but picked
    from them and written. `early`: the kernel launched before was the search that wrote them, `early` too. `single`
    overrides whether a program that has one tile, chunk or block is compiled for that; where it is, `list_width`
    says that candidates are sorted lists of so many, among which a page is found by rank, and `cut` programs share
    a chunk (a power of two that leaves each 16 tokens). `merge_cut` programs join an output row.
    `loops`: how programs that have several are launched (None: `Loops()`); `block_n` goes before its tile.
    """
    batch, num_q, q_heads, dim = q.shape
    slots, kv_heads = ring_k.shape[1], ring_k.shape[2]
    q, ring_k, ring_v = last_contiguous(q), last_contiguous(ring_k), last_contiguous(ring_v)
    ring_place, q_place = ring_place.contiguous(), q_place.contiguous()
    width = q.element_size() * dim
    loops = loops or Loops()
    num_stages = loops.num_stages
    tile = block_n or loops.tile or (16 if width >= 1024 else 32 if width > 256 else 64)
    if width >= 1024:
        num_stages = 1
    group = q_heads // kv_heads

    blocks = latents.key_factor.shape[2] if latents is not None else 0
    chosen = chunks.pages.shape[1] if chunks is not None else 0
    whole = -(-slots // tile) + blocks
    at_once = dim <= _SINGLE_DIM and (_SINGLE if single is None else single)
    most = min(_MAX_SPLITS, (loops.programs * processors(q.device)) // (batch * kv_heads))
    width_c = chunks.keys.shape[1] if chunks is not None else 0
    fits = (
        at_once
        and splits is None
        and whole + cut * chosen <= most
        and width_c == cut * padded(width_c // cut)
    )
    cut = cut if fits else loops.cut if width_c == loops.cut * padded(width_c // loops.cut) else 1
    units = max(whole + cut * chosen, 1)
    if splits is None:
        splits = max(1, min(units, most))
    out = torch.empty((batch, num_q, q_heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, num_q, q_heads), dtype=torch.float32, device=q.device)
    part = part_peak = part_total = lse
    if splits > 1:
        part = torch.empty((batch, num_q, q_heads, splits, dim), dtype=torch.float32, device=q.device)
        part_peak = torch.empty((batch, num_q, q_heads, splits), dtype=torch.float32, device=q.device)
        part_total = torch.empty_like(part_peak)

    factors, latent_constants = latent_arguments(latents, q, ring_place)
    pool = [q, q, ring_place, ring_place, ring_place, ring_place]
    if chunks is not None:
        lengths = chunks.lengths.contiguous() if chunks.lengths is not None else ring_place
        keys, values = last_contiguous(chunks.keys), last_contiguous(chunks.values)
        pages = chunks.pages.contiguous() if candidates is None else chunks.pages
        place = chunks.place.contiguous()
        pool = [keys, values, pages if candidates is None else candidates, pages, place, lengths]
    limits: dict[str, Any] = {}
    if loops.registers is not None and q.is_cuda:
        limits["maxnreg"] = loops.registers
    cos, sin = (table.contiguous() for table in rotary) if rotary is not None else (q, q)

    decode_kernel[(splits, batch * kv_heads)](
        q,
        q_place,
        ring_k,
        ring_v,
        ring_place,
        *factors,
        *pool,
        cos,
        sin,
        out,
        lse,
        part,
        part_peak,
        part_total,
        scale * math.log2(math.e),
        num_q,
        slots,
        blocks,
        chosen,
        cos.shape[0],
        *q.stride()[:3],
        *ring_k.stride()[:3],
        *ring_v.stride()[:3],
        *pool[0].stride()[:3],
        *pool[1].stride()[:3],
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        BLOCK_R=padded(num_q * group),
        BLOCK_N=tile,
        CHUNK=width_c,
        BLOCK_C=padded(width_c // cut),
        LENGTHS=chunks is not None and chunks.lengths is not None,
        **latent_constants,
        ROTARY=rotary is not None,
        DIRECT=splits == 1,
        CANDIDATES=candidates.shape[1] if candidates is not None else 0,
        LIST=list_width,
        CUT=cut,
        SINGLE=splits == units and at_once,
        EARLY=early,
        PRECISION="ieee",
        **dependent(q),
        num_warps=num_warps,
        num_stages=num_stages,
        **limits,
    )
    if splits > 1:
        merge_kernel[(lse.numel(), merge_cut)](
            part,
            part_peak,
            part_total,
            out,
            lse,
            splits,
            DIM=dim,
            BLOCK_D=dim // merge_cut,
            BLOCK_S=1 << (splits - 1).bit_length(),
            num_warps=4,
            **dependent(q),
        )
    return out, lse


def latent_arguments(
    latents: Latents | None, q: torch.Tensor, ring_place: torch.Tensor
) -> tuple[list[torch.Tensor], dict[str, int]]:
    """The latents' factors and places (stand-ins where there are none), and the constants of their shape."""
    factors, ranks, runs = [q] * 4 + [ring_place], (0, 0), (0, 0)
    if latents is not None:
        tensors = (
            latents.key_factor,
            latents.key_basis,
            latents.value_factor,
            latents.value_basis,
            latents.place,
        )
        factors = [tensor.contiguous() for tensor in tensors]
        ranks = (latents.key_factor.shape[-1], latents.value_factor.shape[-1])
        if latents.key_factor.shape[2]:
            runs = (latents.place.shape[-1], latents.key_factor.shape[3] // latents.place.shape[-1])
    return factors, {
        "RUNS": runs[0],
        "RUN": runs[1],
        "BLOCK_RUN": padded(runs[1]),
        "KEY_RANK": ranks[0],
        "BLOCK_KR": padded(ranks[0]),
        "VALUE_RANK": ranks[1],
        "BLOCK_VR": padded(ranks[1]),
    }


def padded(size: int) -> int:
    """The power of two, at least 16, that holds `size`: what a matrix unit takes."""
    return max(16, 1 << max(size - 1, 0).bit_length())


@functools.cache
def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
