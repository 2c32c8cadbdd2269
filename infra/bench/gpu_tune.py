"""Sweeps of a GPU session: tiles of sparse attention, launches of a decoding step, splits of its attention."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.bench.gpu_session import Turn


def tune_step(turn: Turn, tokens: int, batch: int) -> dict[str, Any]:
    """A decoding step that retrieves: who picks the candidates, in how many spans, and what does not wait."""
    import torch

    from infra.bench.decode import WINDOW, Step, Stream
    from infra.bench.measure import time_cuda
    from models.kernels.retrieve_decode import Search
    from models.kernels.retrieve_decode.fused import retrieve_decode_fused

    stream = Stream(tokens)
    step = Step(stream, batch)
    search = Search(
        step.query[0], stream.landmarks, stream.k, stream.v, step.page_place, exclude_newest=WINDOW // 64
    )
    expected = step.attend(step.search()).float()
    calls = {}
    ways: list[tuple[bool, int | None, bool, bool, int | None, int]] = [(False, None, False, False, None, 4)]
    if batch <= 4:
        ways += [(True, None, early, True, None, 4) for early in (False, True)]
        ways += [(True, scans, True, True, None, 4) for scans in (64, 128, 256)]
        ways += [
            (True, None, True, True, *cut)
            for cut in ((64, 4), (64, 8), (None, 8), (None, 2), (16, 4), (16, 2))
        ]
    for way in ways:

        def call(way: Any = way) -> Any:
            picking, scans, early, single, block_n, num_warps = way
            return retrieve_decode_fused(
                step.q, step.ring_k, step.ring_v, step.ring_place, step.q_place, search, latents=step.latents,
                rotary=step.rotary, scale=128**-0.5, picking=picking, scans=scans, early=early, single=single,
                block_n=block_n, num_warps=num_warps,
            )[0]  # fmt: skip

        name = {
            "tokens": tokens,
            "batch": batch,
            **dict(zip(("picking", "scans", "early", "single", "block_n", "num_warps"), way, strict=True)),
        }
        try:
            found = call().float()
            difference = float((found - expected).norm() / expected.norm())
            calls[json.dumps({**name, "difference": round(difference, 5)})] = call
        except Exception as error:
            turn.write({**name, "error": str(error)[:200]})
    torch.cuda.synchronize()
    turn.compiled()
    with turn.alone():
        for key, call in calls.items():
            turn.write({**json.loads(key), **time_cuda(call, graph=True).row("step")})
    return {"bench": "tune-step"}


def tune_attend(turn: Turn) -> dict[str, Any]:
    """Attention without search: splits, tiles, warps and stages, at each batch."""
    import torch

    from infra.bench.decode import Step, Stream
    from infra.bench.measure import time_cuda
    from models.kernels.latent_decode.fused import Loops, latent_decode_fused
    from models.kernels.latent_decode.types import ChosenChunks

    stream = Stream(131_072)
    calls = {}
    for batch, splits in ((1, (10, 20, 40)), (8, (8, 16, 20, 40)), (64, (1, 2, 4, 8))):
        step = Step(stream, batch)
        chunks = ChosenChunks(stream.k, stream.v, step.pages, step.page_place)
        for split, block, warps, stages in itertools.product(splits, (32, 64), (4, 8), (2, 3)):
            if warps == 8 and (stages == 3 or block == 32):
                continue

            def call(s: Any = step, c: Any = chunks, x: Any = (split, block, warps, stages)) -> Any:
                return latent_decode_fused(
                    s.q, s.ring_k, s.ring_v, s.ring_place, s.q_place, latents=s.latents, chunks=c,
                    rotary=s.rotary, scale=128**-0.5, splits=x[0], block_n=x[1], num_warps=x[2],
                    loops=Loops(num_stages=x[3]),
                )  # fmt: skip

            name = {"batch": batch, "splits": split, "block": block, "warps": warps, "stages": stages}
            try:
                call()
                torch.cuda.synchronize()
                calls[json.dumps(name)] = call
            except Exception as error:
                turn.write({**name, "error": str(error)[:200]})
    turn.compiled()
    with turn.alone():
        for key, call in calls.items():
            turn.write({**json.loads(key), **time_cuda(call, graph=True).row("attend")})
    return {"bench": "tune-attend"}


def flashinfer(turn: Turn) -> dict[str, Any]:
    """Whether FlashInfer imports and compiles here, how long that takes, and its time over 1M tokens."""
    from infra.bench import decode as bench

    started = time.monotonic()
    bench.against_flashinfer(step := bench.Step(bench.Stream(16_384), 1), step.dense(), 1)
    took = time.monotonic() - started
    turn.compiled()
    with turn.alone():
        step = bench.Step(bench.Stream(1_048_576), 1)
        turn.write({"compile_s": round(took, 1), **bench.against_flashinfer(step, step.dense(), 20)})
    return {"bench": "flashinfer"}


def tune(turn: Turn, kernel: str, dim: int) -> dict[str, Any]:
    """Times of one kernel of sparse attention over tile choices: 16 heads over 2, at width 256 4 over 1."""
    import torch

    from infra.bench.measure import copy_bandwidth, matmul_rate, time_cuda
    from models.kernels.sparse_attention import fused, invert_indices
    from models.kernels.sparse_attention import launch_backward as backward
    from models.kernels.sparse_attention.hopper_shared import launch_rows
    from models.kernels.sparse_attention.tuning import Tiles, tiles_for

    heads, kv_heads = (4, 1) if dim == 256 else (16, 2)
    num_q, num_k = 16_384, 65_536
    q, grad = (torch.randn(1, num_q, heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.randn(1, num_k, kv_heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    options: dict[str, Any] = {
        "chunk_size": 64, "block_q": 64, "scale": dim**-0.5, "causal": False, "query_start": 0,
        "deterministic": True, "inverse": None, "tiles": {}, "lse_used": False,
    }  # fmt: skip

    def prepared(chosen: int) -> tuple[Any, Any]:
        index = torch.rand(num_q // 64, num_k // 64, device="cuda").topk(chosen).indices.int()
        index = index.view(1, -1, 1, chosen)
        out, lse = fused.launch_forward(q, k, v, None, index, options)
        delta = backward.launch_delta(out, grad, None)
        rows = launch_rows(out, grad, lse, None)
        return backward.Saved(q, k, v, None, index, lse, grad, delta, rows), invert_indices(
            index, num_k // 64
        )

    inputs = {chosen: prepared(chosen) for chosen in (8, 32)}

    def call(tiles: Tiles | None, chosen: int) -> Any:
        saved, inverse = inputs[chosen]
        chosen_options = {**options, "tiles": {kernel: tiles}}
        if kernel == "forward":
            return fused.launch_forward(q, k, v, None, saved.indices, chosen_options)
        if kernel == "dq":
            return backward.launch_dq(saved, chosen_options, None)[:1]
        return backward.launch_dkv(saved, chosen_options, inverse)

    general = tiles_for(kernel, dim, torch.bfloat16, 512, False)._replace(hopper=0)
    expected = {chosen: [x.float() for x in call(general, chosen)] for chosen in inputs}
    working = []
    for tiles in _candidates(kernel, dim):
        try:
            for chosen, parts in expected.items():
                for found, part in zip(call(tiles, chosen), parts, strict=True):
                    difference = float((found.float() - part).norm() / part.norm())
                    if not difference < 1e-2:
                        raise ValueError(
                            f"differs by {difference:.3g} from the general kernel at k = {chosen}"
                        )
            torch.cuda.synchronize()
            working.append(tiles)
        except Exception as error:
            turn.write({"kernel": kernel, "dim": dim, "tiles": list(tiles), "error": str(error)[:150]})
    turn.compiled()
    with turn.alone():
        rate, bandwidth = matmul_rate(), copy_bandwidth()
        matmuls = {"forward": 2, "dq": 3, "dkv": 4}[kernel]
        for tiles, chosen in itertools.product(working, inputs):
            timing = time_cuda(lambda t=tiles, c=chosen: call(t, c), runs=10, graph=True)  # type: ignore[misc]
            ops = 2 * matmuls * num_q * heads * chosen * 64 * dim
            turn.write(
                {
                    "kernel": kernel,
                    "dim": dim,
                    "chosen": chosen,
                    "tiles": list(tiles),
                    "ms": timing.median_ms,
                    "rate_share": round(ops / timing.median_ms * 1e3 / rate, 4),
                }
            )
        if kernel == "dkv":
            extra: dict[str, Any] = {"kernel": "others", "dim": dim}
            for chosen, (saved, _) in inputs.items():
                sums = torch.zeros((2, *k.shape), dtype=torch.float32, device="cuda")
                for name, function in {
                    "invert": lambda s=saved: invert_indices(s.indices, num_k // 64),
                    "delta": lambda: backward.launch_delta(q, grad, None),
                    "rows": lambda s=saved: launch_rows(q, grad, s.lse, None),
                    "zeros_and_casts": lambda s=sums: [x.to(q.dtype) for x in torch.zeros_like(s)],
                    "dq_with_atomics": lambda s=saved, x=sums: backward.launch_dq(s, options, x),
                }.items():
                    extra[f"{name}_{chosen}_ms"] = time_cuda(function, runs=10, graph=True).median_ms  # type: ignore[arg-type]
            turn.write(extra)
    return {"bench": "tune", "rate": rate, "bandwidth": bandwidth}


# block_m, warps, stages and copy engine of those that were within a tenth of the fastest in an earlier, wider sweep
_NEAR_BEST: dict[tuple[str, int], list[tuple[int, int, int, bool]]] = {
    ("forward", 64): [(64, 4, 2, True), (64, 4, 3, True), (64, 4, 3, False)],
    ("forward", 128): [(128, 4, 2, True), (64, 4, 3, True)],
    ("forward", 256): [(128, 8, 2, True), (128, 8, 3, True)],
    ("dq", 64): [(64, 4, 2, True), (64, 4, 3, True), (64, 4, 2, False)],
    ("dq", 128): [(64, 4, 3, True), (64, 4, 2, True)],
    ("dq", 256): [(128, 8, 1, False), (64, 4, 2, True)],
    ("dkv", 64): [(64, 4, 2, True), (64, 4, 3, True)],
    ("dkv", 128): [(64, 4, 2, True), (64, 4, 3, True)],
    ("dkv", 256): [(64, 8, 2, True), (64, 8, 2, False)],
}


def _candidates(kernel: str, dim: int) -> list[Any]:
    from models.kernels.sparse_attention.tuning import Tiles

    tiles = [Tiles(m, 1, w, s, tma) for m, w, s, tma in _NEAR_BEST[kernel, dim]]
    if dim == 256:
        return tiles
    forms = (2,) if kernel == "dkv" else (1, 2)
    return [*tiles, *(tiles[0]._replace(hopper=form) for form in forms)]


def fastest_tiles(rows: dict[str, list[dict[str, Any]]]) -> dict[tuple[str, int], list[Any]]:
    """The tiles with the least total time, each k alike, of each (kernel, width), among those timed at every k."""
    best = {}
    for name, part in rows.items():
        kernel, _, dim = name.removeprefix("tune-").partition("_")
        if kernel not in ("forward", "dq", "dkv"):
            continue
        total: dict[str, list[float]] = {}
        for row in part:
            if "ms" in row:
                total.setdefault(json.dumps(row["tiles"]), []).append(row["ms"] / row["chosen"])
        most = max(map(len, total.values()), default=0)
        whole = {tiles: sum(times) for tiles, times in total.items() if len(times) == most}
        if whole:
            best[kernel, int(dim)] = json.loads(min(whole, key=lambda tiles: whole[tiles]))
    return best


def fastest_step(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """How steps of one row were fastest: EARLY and SINGLE by their times over all lengths; empty without steps.

    PICKED_LANDMARKS: the number of landmarks above which picking won at every length that was timed.
    """
    steps = [
        row for name, part in rows.items() if name.startswith("tune-step") for row in part if "step_ms" in row
    ]
    usual = {"batch": 1, "scans": None, "block_n": None, "num_warps": 4}
    steps = [row for row in steps if all(row[key] == value for key, value in usual.items())]
    if not steps:
        return {}
    lengths = sorted({row["tokens"] for row in steps})

    def total(**want: Any) -> float:
        fitting = [row for row in steps if all(row[key] == value for key, value in want.items())]
        times = [
            min((r["step_ms"] for r in fitting if r["tokens"] == x), default=float("inf")) for x in lengths
        ]
        return sum(times)

    early = total(picking=True, early=True) < total(picking=True, early=False)
    single = min(total(picking=p, single=True) for p in (False, True)) < min(
        total(picking=p, single=False) for p in (False, True)
    )
    best = {
        tokens: min(
            (
                row
                for row in steps
                if row["tokens"] == tokens and row["single"] == single and row["early"] in (False, early)
            ),
            key=lambda row: row["step_ms"],
        )["picking"]
        for tokens in lengths
    }
    apart = [tokens for tokens in lengths if not best[tokens]]
    landmarks = apart[-1] // 64 if apart else 0
    return {"EARLY": early, "SINGLE": single, "PICKED_LANDMARKS": landmarks}


def pick(out: Path) -> None:
    """Write the fastest tiles of the last sweep into the table of tuning.py, and how steps are launched."""
    from models.kernels.latent_decode import fused as decode_launch
    from models.kernels.retrieve_decode import fused as step_launch
    from models.kernels.sparse_attention import tuning

    swept = json.loads((out / "tune.json").read_text())["rows"]
    for name, value in fastest_step(swept).items():
        for module in (decode_launch, step_launch):
            source = Path(str(module.__file__))
            text = source.read_text()
            changed = re.sub(rf"(?m)^_{name} = \w+", f"_{name} = {value!r}", text)
            if changed != text:
                source.write_text(changed)
        sys.stdout.write(f"_{name} = {value!r}\n")
    best = fastest_tiles(swept)
    lines = ["_HALF = {"]
    for kernel in ("forward", "dq", "dkv"):
        cells = []
        for dim in (64, 128, 256):
            chosen = tuning.Tiles(*best.get((kernel, dim), tuning._HALF[kernel][dim]))
            cells.append(f"        {dim}: Tiles({', '.join(map(str, chosen))}),")
        lines += [f'    "{kernel}": {{', *cells, "    },"]
    path = Path(tuning.__file__)
    text = path.read_text()
    first, last = text.index("_HALF = {"), text.index("_FLOAT = {")
    path.write_text(text[:first] + "\n".join([*lines, "}"]) + "\n" + text[last:])
    sys.stdout.write("\n".join(lines) + "\n")
