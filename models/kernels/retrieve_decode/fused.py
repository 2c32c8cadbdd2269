"""Launches a decoding step that retrieves: spans scanned, candidates picked where a chunk is read, sums joined."""

from __future__ import annotations

from typing import NamedTuple

import torch

from models.kernels.landmark_topk.fused import Spans, landmark_topk_fused
from models.kernels.latent_decode.fused import DENSE, Loops, latent_decode_fused
from models.kernels.latent_decode.naive import Rotary
from models.kernels.latent_decode.types import ChosenChunks, Latents
from models.kernels.retrieve_decode.types import Search

_CANDIDATES = 2048  # of a row's spans, among which each chosen chunk's program looks for its own
_SPAN = 2048  # landmarks of a span at most: their scores stay in registers
_SCANS = 128  # programs that scan, over all rows: about one on each processor of a large card
_LONG = 131_072  # landmarks from which twice as many scan
_CHOSEN = 16  # chunks that are picked one maximum after the other; more are sorted by a launch of their own
_PICKED_ROWS = 4  # rows up to which picking was measured to be faster at any number of landmarks
_EARLY = True  # where candidates are picked, what does not read them does not wait for the search
_TOGETHER = (
    4,
    16_384,
)  # rows above which, and landmarks from which, one search for all was measured to be faster


class Form(NamedTuple):
    """How a picked step is launched.

    ranked: candidates are ordered by comparing all with all, up to _RANKED_WIDTH chunks and _RANKED lists or
    landmarks of a span (else a sort, and one maximum after the other). cut: programs that share a chunk.
    merge_cut: programs that join an output row.
    """

    ranked: bool = False
    cut: int = 1
    merge_cut: int = 1


class Apart(NamedTuple):
    """How a step is launched whose search has launches of its own.

    early: the ring and latents do not wait for the search. chained: the launches of long searches of many rows
    overlap too, so that attention starts when the last landmarks are read. loops: of its attention.
    """

    early: bool = False
    chained: bool = False
    loops: Loops = Loops()


class Plan(NamedTuple):
    """What a step does whose caller leaves the choice: whether it picks, over codes, and how it is launched."""

    picking: bool = False
    coded: bool = False
    scans: int | None = None
    single: bool | None = None
    loops: Loops | None = None
    apart: Apart = Apart()


# What ships, by rows and landmarks of a step: the fastest of the forms of infra/bench/gpu_forms_rows.py on an H200
# (2026-12-01; 1, 8 and 64 rows over 2,048, 16,384 and 262,144 landmarks; between them the nearer one is taken).
_SOME_ROWS = 16  # rows up to which those of 8 are taken, above those of 64
_SOME_PICKED = 4_096  # landmarks up to which some rows pick (2,048: .0232 ms, beside the search .0245)
_BESIDE = 65_536  # landmarks up to which some rows overlap with their search (16,384: .0299 ms for .0343)
# landmarks from which few rows read codes, by bits (262,144: .0305 and .0392 ms, without .0553), and some rows
_CODED = {4: 65_536, 8: 16_384}
_CODED_SOME = {4: 16_384}  # (16,384: .0284 ms)
_CODED_WIDTH = (
    256  # of landmarks from which codes are read: no narrower ones were timed, and those save fewer bytes
)
_SCANS_SOME = 256
_PICKED_DENSE = DENSE._replace(programs=3)
_MANY_DENSE = DENSE._replace(num_stages=3)  # many rows, searches of up to _BESIDE landmarks (.0664 for .0754)
_DENSE_BYTES = 256  # of a head: wider ones do not fit into the registers of the dense loops

_RANKED, _RANKED_WIDTH = 128, 8
_NEAR = Form(ranked=True, cut=2, merge_cut=2)  # of one row with few candidates to look through
_FAR = Form(merge_cut=2)  # of one row with more of them
_ROWS = Form()  # of more rows, for which the others have not been timed
_NEAR_LISTS = 64  # spans, and landmarks of one, up to which candidates are few
_LEAST_SPAN = 64  # landmarks of one row's span at least: half the lists at 128k tokens


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
    picking: bool | None = None,
    scans: int | None = None,
    early: bool = _EARLY,
    single: bool | None = None,
    block_n: int | None = None,
    num_warps: int = 4,
    form: Form | None = None,
    apart: Apart | None = None,
    loops: Loops | None = None,
    kept: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `retrieve_decode_naive`. `picking` overrides whether chunks' programs pick their candidates themselves.

    Where it is None, `plan_for` says so, and how; where it is not, the other arguments and defaults alone do.

    `early`: where they do, programs of the ring and of latents do not wait for the search. `single`, `block_n` and
    `num_warps` as in `latent_decode_fused`. `form`: how a step that picks is launched (None: as `_form_for` says);
    `loops`: of its attention; `kept`: of a span's codes, landmarks that are scored again. `apart`: how a step that
    does not pick is launched.
    """
    batch, chosen = search.place.shape
    count = search.landmarks.shape[-2]
    found = Spans(
        search.queries[:, None].to(search.landmarks.dtype).contiguous(),
        search.landmarks,
        chosen,
        search.length,
        search.exclude_newest,
    )
    plan = Plan(picking=bool(picking), coded=True)
    if picking is None:
        head_bytes = q.element_size() * q.shape[-1]
        codes = search.codes if search.landmarks.shape[-1] >= _CODED_WIDTH else None
        bits = None if codes is None else codes.bits
        plan = plan_for(batch, count, head_bytes, bits)
        if plan.picking and not _fits(found, count, batch, scans or plan.scans):
            # codes whose spans do not fit are no reason to search otherwise than without them
            plan = plan_for(batch, count, head_bytes, None)
            plan = plan._replace(picking=plan.picking and _fits(found, count, batch, scans or plan.scans))
    picking, coded = plan.picking, plan.coded and search.codes is not None
    scans, loops, apart = scans or plan.scans, loops or plan.loops, apart or plan.apart
    single = plan.single if single is None else single
    span = _span(found, count, batch, scans)
    form = form or _form_for(batch, found.width, span, count)
    if picking and not _fits(found, count, batch, scans):
        raise ValueError(
            f"{chosen} chunks of {count} landmarks: picking takes up to {_CHOSEN} chunks and {_SPAN} landmarks in "
            f"each of {_CANDIDATES // found.width} spans"
        )
    candidates, ranked, at_once = None, False, False
    if picking:
        pages = torch.empty((batch, chosen), dtype=torch.int32, device=q.device)
        spans = 1 << max(-(-count // span) - 1, 1).bit_length()
        ranked = form.ranked and found.width <= _RANKED_WIDTH and max(span, spans) <= _RANKED
        if coded and search.codes is not None:
            candidates = found.coded_scan(search.codes, span, spans, early, kept=kept).view(batch, -1)
        else:
            candidates = found.scan(span, None, spans, early, ranked).view(batch, -1)
    else:
        shared = search.landmarks.ndim == 2 and search.length is None
        at_once = apart.early and _laid_out(q, ring_k, ring_v, ring_place, q_place, search, latents, rotary)
        together = shared and batch > _TOGETHER[0] and count >= _TOGETHER[1]
        _, index = landmark_topk_fused(
            search.queries[None] if together else search.queries[:, None],
            search.landmarks,
            chosen,
            length=search.length,
            exclude_newest=search.exclude_newest,
            early=at_once,
            chained=apart.chained,
        )
        pages = index[0] if together else index[:, 0]
    out, lse = latent_decode_fused(
        q,
        ring_k,
        ring_v,
        ring_place,
        q_place,
        latents=latents,
        chunks=ChosenChunks(search.keys, search.values, pages, search.place, search.page_lengths),
        rotary=rotary,
        scale=scale,
        candidates=candidates,
        early=early if picking else at_once,
        loops=loops if picking else apart.loops,
        # programs that wait for nothing would write where the search's last launches may still read
        single=False if at_once and not picking else single,
        block_n=block_n,
        num_warps=num_warps,
        list_width=found.width if ranked else 0,
        cut=form.cut if picking else 1,
        merge_cut=form.merge_cut if picking else 1,
    )
    return out, lse, pages


def plan_for(batch: int, count: int, head_bytes: int, bits: int | None) -> Plan:
    """What ships for so many rows, landmarks, bytes of a head, and bits of the landmarks' codes (None: no codes).

    Whether spans fit what a step that picks holds is for the caller to see.
    """
    if batch <= _PICKED_ROWS:
        return Plan(picking=True, coded=bits is not None and count >= _CODED[bits])
    dense = head_bytes <= _DENSE_BYTES
    if batch > _SOME_ROWS:
        loops = (_MANY_DENSE if count <= _BESIDE else DENSE) if dense else Loops()
        return Plan(apart=Apart(early=True, chained=True, loops=loops))
    if dense and bits in _CODED_SOME and _CODED_SOME[bits] <= count <= _BESIDE:
        return Plan(picking=True, coded=True, scans=_SCANS_SOME, single=False, loops=DENSE)
    if dense and count <= _SOME_PICKED:
        beside = Apart(early=True)  # where chunks are too many to pick
        return Plan(picking=True, scans=_SCANS_SOME, single=False, loops=_PICKED_DENSE, apart=beside)
    if count <= _BESIDE:
        long_search = dense and count > _SOME_PICKED  # over short ones the dense loops lose (.0254 for .0246)
        return Plan(apart=Apart(early=True, loops=DENSE if long_search else Loops()))
    return Plan()


def _fits(found: Spans, count: int, batch: int, scans: int | None) -> bool:
    """Whether a step that picks can hold its candidates and the scores of a span."""
    return found.k <= _CHOSEN and _span(found, count, batch, scans) <= _SPAN


def _span(found: Spans, count: int, batch: int, scans: int | None) -> int:
    """Landmarks of one span, a power of two: as many spans as `scans` says (None: as were measured to be fastest).

    Never more spans than leave _CANDIDATES of a row. One row's hold _LEAST_SPAN landmarks or more: where there are
    few, half as many lists are sooner looked through than twice as many landmarks scanned. More rows share the
    programs that scan, and keep the spans that were timed for them.
    """
    least_span = _LEAST_SPAN if scans is None and batch == 1 else 1
    scans = scans or (_SCANS if count < _LONG else 2 * _SCANS)
    wanted = min(max(2, scans // batch), _CANDIDATES // found.width)
    least = -(-count // (_CANDIDATES // found.width))
    return max(found.block_n, found.width, _power(max(-(-count // wanted), least, least_span)))


def _form_for(batch: int, width: int, span: int, count: int) -> Form:
    """The fastest form seen for so many rows, lists of this width and `count` landmarks in spans of this length."""
    if batch > 1:
        return _ROWS
    near = width <= _RANKED_WIDTH and max(span, -(-count // span)) <= _NEAR_LISTS
    return _NEAR if near else _FAR


def _laid_out(
    q: torch.Tensor,
    ring_k: torch.Tensor,
    ring_v: torch.Tensor,
    ring_place: torch.Tensor,
    q_place: torch.Tensor,
    search: Search,
    latents: Latents | None,
    rotary: Rotary | None,
) -> bool:
    """Whether attention copies nothing before it starts: a copy behind the search would be a launch to wait for."""
    rows = [q, ring_k, ring_v, search.keys, search.values]
    whole = [ring_place, q_place, search.place, *(rotary or ())]
    if search.page_lengths is not None:
        whole.append(search.page_lengths)
    if latents is not None:
        whole += [
            latents.key_factor,
            latents.key_basis,
            latents.value_factor,
            latents.value_basis,
            latents.place,
        ]
    return all(x.stride(-1) == 1 for x in rows) and all(x.is_contiguous() for x in whole)


def _power(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()
