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
# how a step of one row is launched: forms of retrieve_decode (None: its own choice), and other arguments of it
STEPS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "ships": (None, {}),
    "plain": ({}, {"scans": 128}),
    "plain-scans-32": ({}, {"scans": 32}),
    "merge-2": ({"merge_cut": 2}, {"scans": 128}),
    "merge-2-scans-32": ({"merge_cut": 2}, {"scans": 32}),
    "ranked-merge-2-scans-32": ({"ranked": True, "merge_cut": 2}, {"scans": 32}),
    "cut-2-merge-2-scans-32": ({"cut": 2, "merge_cut": 2}, {"scans": 32}),
    "ranked-cut-2-scans-32": ({"ranked": True, "cut": 2}, {"scans": 32}),
    "ranked-cut-2-merge-2-scans-32": ({"ranked": True, "cut": 2, "merge_cut": 2}, {"scans": 32}),
    "ranked-cut-4-merge-2-scans-32": ({"ranked": True, "cut": 4, "merge_cut": 2}, {"scans": 32}),
    "again": (None, {}),
}


def forms_forward(turn: Turn, chosen: int) -> dict[str, Any]:
    """Forward for Hopper at 64k with this k, with k = 8 at 1M too, in forms 1 and 2."""
    return _sparse(turn, "forward", chosen, lambda case: _call(case.ours))


def forms_dq(turn: Turn, chosen: int) -> dict[str, Any]:
    """dq for Hopper alone at 64k with this k, with k = 8 at 1M too, in forms 1 and 2."""
    return _sparse(turn, "dq", chosen, _only_dq)


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
        own = None if form is None else Form(**form)

        def call(own: Any = own, options: Any = options) -> Any:
            return retrieve_decode_fused(
                step.q, step.ring_k, step.ring_v, step.ring_place, step.q_place, search, latents=step.latents,
                rotary=step.rotary, scale=128**-0.5, picking=True, form=own, **options,
            )  # fmt: skip

        row: dict[str, Any] = {"way": name, "tokens": tokens}
        try:
            out, _, pages = call()
            row["difference"] = difference([out.float()], [expected])
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
        for name, form in (("1", 1), ("2", 2), ("again", 2 if case.chosen <= 8 else 1)):
            row: dict[str, Any] = {"way": name, "context": case.length, "chosen": case.chosen}
            tiles = {kernel: _general(kernel)._replace(hopper=form)}
            try:
                row["difference"] = difference([x.float() for x in call(tiles)], expected)
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


def difference(found: list[Any], expected: list[Any]) -> float:
    pairs = zip(found, expected, strict=True)
    return round(max(float((a - b).norm() / b.norm()) for a, b in pairs), 6)


def _timed(row: dict[str, Any], timing: Any, name: str, floor: float | None) -> dict[str, Any]:
    over = {} if floor is None else {"over_floor": round(timing.median_ms / floor, 3)}
    return {**row, **timing.row(name), **over}
