"""New forms of the kernels beside those that ship, on one device: first whether they agree, then times in turn.

Parts of `python3 -m infra.bench.gpu_session forms --out DIR`. Every row has the largest relative difference from
a reference (`difference`; a form beyond 1% is not timed) and the median, 10th and 90th percentile of RUNS graph
replays. Two rows of one form (`again`) show the spread: less than that between forms is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.bench.gpu_session import Turn

RUNS = 30
HALVES = 1e-2  # relative difference that bf16 allows
# how a step of one row is launched: forms of retrieve_decode, and other arguments of it
STEPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ships": ({}, {}),
    "ranked": ({"ranked": True}, {}),
    "scan-warps-8": ({"scan_warps": 8}, {}),
    "cut-2": ({"cut": 2}, {}),
    "merge-2": ({"merge_cut": 2}, {}),
    "ranked-scan-8": ({"ranked": True, "scan_warps": 8}, {}),
    "ranked-cut-2": ({"ranked": True, "cut": 2}, {}),
    "ranked-cut-2-merge-2": ({"ranked": True, "cut": 2, "merge_cut": 2}, {}),
    "ranked-cut-2-scan-8": ({"ranked": True, "cut": 2, "scan_warps": 8}, {}),
    "ranked-cut-2-scan-8-merge-2": ({"ranked": True, "cut": 2, "scan_warps": 8, "merge_cut": 2}, {}),
    "ranked-cut-4": ({"ranked": True, "cut": 4}, {}),
    "ranked-cut-2-ring-32": ({"ranked": True, "cut": 2}, {"block_n": 32}),
    "ranked-cut-2-warps-8": ({"ranked": True, "cut": 2}, {"num_warps": 8}),
    "ranked-cut-2-span-16": ({"ranked": True, "cut": 2, "scan_tile": 16}, {}),
    "ranked-cut-2-scans-32": ({"ranked": True, "cut": 2}, {"scans": 32}),
    "again": ({}, {}),
}


def forms_forward(turn: Turn, chosen: int) -> dict[str, Any]:
    """Forward for Hopper at 64k with this k, with k = 8 at 1M too, in forms 1, 2 and 3."""
    return _sparse(turn, "forward", chosen, lambda case: _call(case.ours))


def forms_dq(turn: Turn, chosen: int) -> dict[str, Any]:
    """dq for Hopper alone at 64k with this k, with k = 8 at 1M too, in forms 1, 2 and 3."""
    return _sparse(turn, "dq", chosen, _only_dq)


def forms_backward(turn: Turn, chosen: int) -> dict[str, Any]:
    """Forward with backward at 64k with this k: what ships, the list built beside, rows in other blocks."""
    from infra.bench.measure import matmul_rate, time_cuda
    from infra.bench.sparse_attention import Case
    from models.kernels.sparse_attention import hopper_shared, tuning

    cases = [Case(65_536, chosen)]
    expected = {case.chosen: _gradients(case, None) for case in cases}
    ways: dict[str, tuple[bool, int, int]] = {
        "ships": (False, 32, 0),
        "beside": (True, 32, 0),
        "rows-16": (False, 16, 0),
        "rows-64": (False, 64, 0),
        "form-3": (False, 32, 3),
        "beside-form-3": (True, 32, 3),
        "again": (False, 32, 0),
    }

    def set_way(beside: bool, rows: int) -> None:
        tuning.BESIDE = beside
        hopper_shared.launch_rows.__defaults__ = (rows,)

    working = []
    for name, (beside, rows, form) in ways.items():
        set_way(beside, rows)
        for case in cases:
            row: dict[str, Any] = {"way": name, "chosen": case.chosen}
            try:
                found = _gradients(case, _tiles(form))
                row["difference"] = _difference(found, expected[case.chosen])
                if not row["difference"] <= HALVES:
                    raise ValueError(f"differs by {row['difference']}")
                working.append((name, case, row))
            except Exception as error:
                turn.write({**row, "error": str(error)[:300]})
    turn.compiled()
    with turn.alone():
        rate = matmul_rate()
        for name, case, row in working:
            beside, rows, form = ways[name]
            set_way(beside, rows)
            tiles = _tiles(form)
            call = case.with_backward(lambda c=case, t=tiles: c.ours(t))  # type: ignore[misc]
            floor = case.floors(4e12, rate)[1]
            turn.write(_timed(row, time_cuda(call, runs=RUNS, graph=True), "both", floor))
    set_way(False, tuning.ROWS_BLOCK)
    return {"bench": "forms-backward", "rate": rate}


def forms_step(turn: Turn, tokens: int) -> dict[str, Any]:
    """A decoding step that retrieves, one row, in every form of STEPS, and GCA's step beside them."""
    from infra.bench.decode import WINDOW, Step, Stream
    from infra.bench.measure import time_cuda
    from models.kernels.retrieve_decode import Search
    from models.kernels.retrieve_decode.fused import Form, retrieve_decode_fused

    stream = Stream(tokens)
    step = Step(stream, 1)
    search = Search(
        step.query[0], stream.landmarks, stream.k, stream.v, step.page_place, exclude_newest=WINDOW // 64
    )
    expected = step.attend(step.search()).float()
    calls: list[tuple[dict[str, Any], Callable[[], Any]]] = []
    for name, (form, options) in STEPS.items():

        def call(form: Any = form, options: Any = options) -> Any:
            return retrieve_decode_fused(
                step.q, step.ring_k, step.ring_v, step.ring_place, step.q_place, search, latents=step.latents,
                rotary=step.rotary, scale=128**-0.5, picking=True, form=Form(**form), **options,
            )  # fmt: skip

        row: dict[str, Any] = {"way": name, "tokens": tokens}
        try:
            out, _, pages = call()
            row["difference"] = _difference([out.float()], [expected])
            if not row["difference"] <= HALVES or not bool((pages == step.pages).all()):
                raise ValueError(f"differs by {row['difference']}, pages {pages.tolist()}")
            calls.append((row, call))
        except Exception as error:
            turn.write({**row, "error": str(error)[:300]})
    step.gca()
    turn.compiled()
    with turn.alone():
        for row, launch in calls:
            turn.write(_timed(row, time_cuda(launch, runs=2 * RUNS, graph=True), "step", None))
        turn.write({"way": "gca", "tokens": tokens, **time_cuda(step.gca, runs=RUNS, graph=True).row("step")})
    return {"bench": "forms-step"}


def _sparse(
    turn: Turn, kernel: str, chosen: int, call_of: Callable[[Any], Callable[[Any], Any]]
) -> dict[str, Any]:
    from infra.bench.measure import matmul_rate, time_cuda
    from infra.bench.sparse_attention import Case

    cases = [Case(length, chosen) for length in ((65_536, 1_048_576) if chosen == 8 else (65_536,))]
    working = []
    for case in cases:
        call = call_of(case)
        expected = [x.float() for x in call({kernel: _general(kernel)})]
        for name, form in (("1", 1), ("2", 2), ("3", 3), ("again", 2 if case.chosen <= 8 else 1)):
            row: dict[str, Any] = {"way": name, "context": case.length, "chosen": case.chosen}
            tiles = {kernel: _general(kernel)._replace(hopper=form)}
            try:
                row["difference"] = _difference([x.float() for x in call(tiles)], expected)
                if not row["difference"] <= HALVES:
                    raise ValueError(f"differs by {row['difference']}")
                working.append((row, case, call, tiles))
            except Exception as error:
                turn.write({**row, "error": str(error)[:300]})
    turn.compiled()
    with turn.alone():
        rate = matmul_rate()
        for row, case, call, tiles in working:
            products = {"forward": 1.0, "dq": 1.5}[kernel]
            timing = time_cuda(lambda c=call, t=tiles: c(t), runs=RUNS, graph=True)  # type: ignore[misc]
            turn.write(_timed(row, timing, kernel, products * case.floors(4e12, rate)[0]))
    return {"bench": f"forms-{kernel}", "rate": rate}


def _call(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import torch

    def call(tiles: Any) -> Any:
        with torch.no_grad():
            return [function(tiles)]

    return call


def _only_dq(case: Any) -> Callable[[Any], Any]:
    from models.kernels.sparse_attention import fused
    from models.kernels.sparse_attention import launch_backward as backward
    from models.kernels.sparse_attention.hopper_shared import launch_rows

    options: dict[str, Any] = {
        "chunk_size": 64, "block_q": 64, "scale": case.q.shape[3] ** -0.5, "causal": False, "query_start": 0,
        "deterministic": True, "inverse": None, "tiles": {}, "lse_used": False,
    }  # fmt: skip
    q, k, v = (x.detach() for x in (case.q, case.k, case.v))
    out, lse = fused.launch_forward(q, k, v, None, case.indices, options)
    delta, rows = backward.launch_delta(out, case.grad, None), launch_rows(out, case.grad, lse, None)
    saved = backward.Saved(q, k, v, None, case.indices, lse, case.grad, delta, rows)
    return lambda tiles: backward.launch_dq(saved, {**options, "tiles": tiles}, None)[:1]


def _general(kernel: str) -> Any:
    import torch

    from models.kernels.sparse_attention.tuning import tiles_for

    return tiles_for(kernel, 128, torch.bfloat16, 512, False)._replace(hopper=0)


def _tiles(form: int) -> dict[str, Any] | None:
    """Forward and dq in this form; none: as the table says."""
    kernels = ("forward", "dq")
    return {kernel: _general(kernel)._replace(hopper=form) for kernel in kernels} if form else None


def _gradients(case: Any, tiles: dict[str, Any] | None) -> list[Any]:
    import torch

    out = case.ours(tiles)
    found = [out.detach(), *torch.autograd.grad(out, (case.q, case.k, case.v), case.grad)]
    return [x.float() for x in found]


def _difference(found: list[Any], expected: list[Any]) -> float:
    pairs = zip(found, expected, strict=True)
    return round(max(float((a - b).norm() / b.norm()) for a, b in pairs), 6)


def _timed(row: dict[str, Any], timing: Any, name: str, floor: float | None) -> dict[str, Any]:
    over = {} if floor is None else {"over_floor": round(timing.median_ms / floor, 3)}
    return {**row, **timing.row(name), **over}
