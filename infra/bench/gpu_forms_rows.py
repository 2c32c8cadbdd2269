"""New forms of decoding steps beside those that ship: many rows, and one row over landmarks' codes.

Parts of `python3 -m infra.bench.gpu_session rows --out DIR`. Each form is held against the reference (`difference`,
and the same pages; one that differs is not timed); all then take turns in REPEATS rounds of RUNS graph replays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from infra.bench.gpu_forms import RUNS, difference

if TYPE_CHECKING:
    from infra.bench.gpu_session import Turn

# how a step of many rows is launched: whether attention waits for the search, long searches overlap, and its loops
ROWS: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "ships": (False, False, {}),
    "early": (True, False, {}),
    "dense": (False, False, {"tile": 32, "cut": 2, "programs": 4, "registers": 128}),
    "early-dense": (True, False, {"tile": 32, "cut": 2, "programs": 4, "registers": 128}),
    "early-dense-3-stages": (
        True, False, {"tile": 32, "cut": 2, "programs": 4, "registers": 128, "num_stages": 3},
    ),
    "early-three": (True, False, {"programs": 3, "registers": 168}),
    "early-chained": (True, True, {}),
    "early-chained-dense": (True, True, {"tile": 32, "cut": 2, "programs": 4, "registers": 128}),
    "again": (False, False, {}),
}  # fmt: skip
# how a step of 8 rows is launched that picks: loops of its attention, whether programs have one part each, how many
# programs scan, bits of landmarks' codes
PICKED: dict[str, tuple[dict[str, Any] | None, bool | None, int, int | None]] = {
    "picked": (None, None, 128, None),
    "picked-dense": ({"tile": 32, "cut": 2, "programs": 4, "registers": 128}, False, 128, None),
    "picked-dense-scans-256": ({"tile": 32, "cut": 2, "programs": 4, "registers": 128}, False, 256, None),
    "picked-dense-3": ({"tile": 32, "cut": 2, "programs": 3, "registers": 128}, False, 256, None),
    "picked-single": ({"programs": 4, "registers": 168}, True, 256, None),
    "picked-dense-4-bits": ({"tile": 32, "cut": 2, "programs": 4, "registers": 128}, False, 256, 4),
}
# how landmarks of one row are searched: bits of their codes (None: as they are), and other arguments of a step
CODED: dict[str, tuple[int | None, dict[str, Any]]] = {
    "ships": (None, {}),
    "8-bits": (8, {}),
    "4-bits": (4, {}),
    "4-bits-kept-32": (4, {"kept": 32}),
    "4-bits-scans-128": (4, {"scans": 128}),
    "again": (None, {}),
}
REPEATS = 3  # rounds in which forms take turns
QUESTIONS = 64  # random queries over which recall is counted
ROUNDED = 2e-2  # relative difference from the reference that bf16 allows, as in the tests


def forms_rows(turn: Turn, tokens: int, batch: int) -> dict[str, Any]:
    """A step of `batch` rows in every form of ROWS, its attention and search alone, and GCA's step beside them."""
    from infra.bench.decode import Step, Stream
    from models.kernels.landmark_topk.codes import encode_landmarks
    from models.kernels.latent_decode.fused import Loops, latent_decode_fused
    from models.kernels.latent_decode.types import ChosenChunks
    from models.kernels.retrieve_decode.fused import Apart, retrieve_decode_fused

    step = Step(Stream(tokens), batch)
    search, (expected, pages) = _search(step, None), _naive(step)
    chunks = ChosenChunks(step.stream.k, step.stream.v, pages, step.page_place)
    inputs = (step.q, step.ring_k, step.ring_v, step.ring_place, step.q_place)
    given: dict[str, Any] = {"latents": step.latents, "rotary": step.rotary, "scale": 128**-0.5}
    calls: list[tuple[dict[str, Any], Callable[[], Any]]] = []
    row: dict[str, Any] = {"tokens": tokens, "batch": batch}
    for name, (early, chained, own_loops) in ROWS.items():
        own = Apart(early, chained, Loops(**own_loops))

        def call(own: Any = own) -> Any:
            return retrieve_decode_fused(*inputs, search, **given, picking=False, apart=own)

        def attend(own: Any = own) -> Any:
            return latent_decode_fused(*inputs, **given, chunks=chunks, loops=own.loops)

        _checked(turn, calls, {"way": name, **row}, call, expected, pages)
        if not early:
            _checked(turn, calls, {"way": f"attend-{name}", **row}, attend, expected, None)
    for name, (loops, single, scans, bits) in PICKED.items() if batch <= 8 else ():
        codes = None if bits is None else encode_landmarks(step.stream.landmarks, bits)
        coded, given_loops = _search(step, codes), loops and Loops(**loops)

        def picked(
            own: Any = coded, loops: Any = given_loops, single: Any = single, scans: int = scans
        ) -> Any:
            return retrieve_decode_fused(
                *inputs, own, **given, picking=True, loops=loops, single=single, scans=scans
            )

        _checked(turn, calls, {"way": name, **row}, picked, expected, pages)
    calls += [({"way": "search", **row}, step.search), ({"way": "gca", **row}, step.gca)]
    return _in_turn(turn, calls, "forms-rows")


def forms_coded(turn: Turn, tokens: int) -> dict[str, Any]:
    """A step of one row over landmarks and over their codes, in every form of CODED, and GCA's step beside them."""
    from infra.bench.decode import Step, Stream
    from models.kernels.landmark_topk.codes import encode_landmarks
    from models.kernels.retrieve_decode.fused import retrieve_decode_fused

    step = Step(Stream(tokens), 1)
    expected, pages = _naive(step)
    codes: dict[int | None, Any] = {None: None}
    codes.update({bits: encode_landmarks(step.stream.landmarks, bits) for bits in (4, 8)})
    calls: list[tuple[dict[str, Any], Callable[[], Any]]] = []
    for name, (bits, options) in CODED.items():
        search = _search(step, codes[bits])

        def call(search: Any = search, options: Any = options) -> Any:
            return retrieve_decode_fused(
                step.q, step.ring_k, step.ring_v, step.ring_place, step.q_place, search, latents=step.latents,
                rotary=step.rotary, scale=128**-0.5, picking=True, **options,
            )  # fmt: skip

        row: dict[str, Any] = {"way": name, "tokens": tokens, "recall": _recall(step, call)}
        _checked(turn, calls, row, call, expected, pages if row["recall"] == 1.0 else None)
    calls.append(({"way": "gca", "tokens": tokens}, step.gca))
    return _in_turn(turn, calls, "forms-coded")


def _search(step: Any, codes: Any) -> Any:
    from infra.bench.decode import WINDOW
    from models.kernels.retrieve_decode import Search

    stream = step.stream
    return Search(
        step.query[0], stream.landmarks, stream.k, stream.v, step.page_place, exclude_newest=WINDOW // 64,
        codes=codes,
    )  # fmt: skip


def _naive(step: Any) -> tuple[Any, Any]:
    """What the reference gives for this step: outputs and pages."""
    from models.kernels.retrieve_decode import retrieve_decode

    out, _, pages = retrieve_decode(
        step.q, step.ring_k, step.ring_v, step.ring_place, step.q_place, _search(step, None), latents=step.latents,
        rotary=step.rotary, implementation="naive",
    )  # fmt: skip
    return out.float(), pages


def _recall(step: Any, call: Callable[[], Any]) -> float:
    """Share of the best landmarks of QUESTIONS random queries that the step finds; its own query is put back."""
    import torch

    from infra.bench.decode import WINDOW
    from models.kernels.landmark_topk import landmark_topk

    kept, found = step.query.clone(), 0
    for _ in range(QUESTIONS):
        step.query.copy_(torch.randn_like(kept))
        best = landmark_topk(
            step.query, step.stream.landmarks, 8, exclude_newest=WINDOW // 64, implementation="naive"
        )[1].flatten()
        found += int(torch.isin(best, call()[2].flatten()).sum())
    step.query.copy_(kept)
    return round(found / (8 * QUESTIONS), 5)


def _checked(
    turn: Turn,
    calls: list[tuple[dict[str, Any], Callable[[], Any]]],
    row: dict[str, Any],
    call: Callable[[], Any],
    expected: Any,
    pages: Any,
) -> None:
    """Add a form to those that are timed if it gives what the reference gives, else write why not."""
    try:
        found = call()
        row["difference"] = difference([found[0].float()], [expected])
        same = pages is None or bool((found[2] == pages).all())
        if not row["difference"] <= ROUNDED or not same:
            raise ValueError(f"differs by {row['difference']}, same pages: {same}")
        calls.append((row, call))
    except Exception as error:
        turn.write({**row, "error": str(error)[:300]})


def _in_turn(turn: Turn, calls: list[tuple[dict[str, Any], Callable[[], Any]]], bench: str) -> dict[str, Any]:
    """Time all of them REPEATS times, one after the other; a row has the median of each round."""
    from infra.bench.measure import time_cuda

    for _, call in calls:
        call()
    turn.compiled()
    rounds: list[list[float]] = [[] for _ in calls]
    with turn.alone():
        for _ in range(REPEATS):
            for times, (_, call) in zip(rounds, calls, strict=True):
                times.append(round(time_cuda(call, runs=RUNS, graph=True).median_ms, 5))
        for times, (row, _) in zip(rounds, calls, strict=True):
            turn.write({**row, "step_ms": sorted(times)[len(times) // 2], "rounds_ms": times})
    return {"bench": bench}
