"""Ways of the forward pass for Hopper that `gpu_forward` compares, how each is checked, and how they are timed.

WHY's ways say what binds: fewer stages, and form 1 without softmaxes or without fetching, whose results mean
nothing and are not compared.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LENGTHS = (65_536, 1_048_576, 4_096)
CHOSEN = (8, 32)
ROUNDS, RUNS = 3, 20
WAYS: dict[str, tuple[int, dict[str, Any]]] = {  # form (`Tiles.hopper`) and options of its launch
    "1": (1, {}),  # ships above k = 8
    "2": (2, {}),  # ships up to k = 8
}
WHY_LENGTH, WHY_CHOSEN = 65_536, 32
WHY: dict[str, tuple[int, dict[str, Any]]] = {
    "1-stages-3": (1, {"stages": 3}),
    "1-stages-2": (1, {"stages": 2}),
    "2-stages-2": (2, {"stages": 2}),
    "1-no-softmax": (1, {"without": ("softmax",)}),
    "1-no-fetching": (1, {"without": ("fetching",)}),
    "1-neither": (1, {"without": ("softmax", "fetching")}),
}
TURNS = (1, 2, 8)
SHAPE = {"heads": 16, "kv_heads": 2, "dim": 128}
QUERIES = 16_384
# what is left out of a copy of hopper.py's text: weights without a softmax, stages given without being filled
_LEFT_OUT = {
    "softmax": [
        (
            "    new_peak = gl.maximum(peak, gl.max(s, 1) * scale_log2 + bias)\n",
            "    one = gl.full([64], 1.0, gl.float32, layout=peak.type.layout)\n"
            "    return s * (scale_log2 + bias), one, peak, total\n"
            "    new_peak = gl.maximum(peak, gl.max(s, 1) * scale_log2 + bias)\n",
        ),
    ],
    "fetching": [
        (
            f"            mbarrier.expect({x}_full.index(stage), {x}_desc.block_type.nbytes)\n"
            "            tma.async_copy_global_to_shared(\n"
            f"                {x}_desc, [line, kv_head * DIM], {x}_full.index(stage), {x}_smem.index(stage)\n"
            "            )\n",
            f"            mbarrier.arrive({x}_full.index(stage), count=1)\n",
        )
        for x in "kv"
    ],
}


def launcher(way: str) -> Callable[..., None]:
    """Launch of a way: (q, k, v, indices, out, lse, scale_log2)."""
    from models.kernels.sparse_attention import ahead, hopper

    form, options = {**WAYS, **WHY}[way]
    if "without" in options:
        return without(options["without"])
    launch: Callable[..., None] = {1: hopper.launch_hopper, 2: ahead.launch_ahead}[form]
    return lambda *given: launch(*given, **options)


def without(parts: Sequence[str]) -> Callable[..., None]:
    """Form 1 with parts of it left out: what it costs without them."""
    from models.kernels.sparse_attention import hopper

    text = left_out(Path(hopper.__file__).read_text(), parts)
    file = (
        Path(tempfile.gettempdir()) / f"hopper_without_{'_'.join(parts)}.py"
    )  # one name: compiled once for all
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(text)
    beside.replace(file)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    launch: Callable[..., None] = module.launch_hopper
    return launch


def left_out(text: str, parts: Sequence[str]) -> str:
    """The kernel's text without these parts; ValueError where what is to go is not there once."""
    for part in parts:
        for old, new in _LEFT_OUT[part]:
            if text.count(old) != 1:
                raise ValueError(f"{old!r} is {text.count(old)} times in the kernel's text, not once")
            text = text.replace(old, new)
    return text


def inputs(batch: int, num_q: int, num_k: int, chosen: int, index_heads: int, seed: int) -> list[Any]:
    """Random q, k, v in bf16 and chosen chunks, on the device."""
    import torch

    make = torch.Generator("cuda").manual_seed(seed)
    q, k, v = (
        torch.randn(batch, length, heads, SHAPE["dim"], generator=make, device="cuda", dtype=torch.bfloat16)
        for length, heads in ((num_q, SHAPE["heads"]), (num_k, SHAPE["kv_heads"]), (num_k, SHAPE["kv_heads"]))
    )
    scores = torch.rand(batch, num_q // 64, index_heads, num_k // 64, generator=make, device="cuda")
    return [q, k, v, scores.topk(chosen).indices.int()]


def call_of(way: str, given: Sequence[Any]) -> tuple[Callable[[], None], Any, Any]:
    """The forward pass in this way, and where its out and lse (base 2) will be."""
    import torch

    from models.kernels.sparse_attention.launching import LOG2E

    q, *_ = given
    out, lse = torch.full_like(q, float("nan")), q.new_full(q.shape[:3], float("nan"), dtype=torch.float32)
    launch = launcher(way)
    return (lambda: launch(*given, out, lse, SHAPE["dim"] ** -0.5 * LOG2E)), out, lse


def check(way: str, chosen: int) -> dict[str, Any]:
    """Largest relative difference from the reference in float32, with fewer tiles than processors and with more.

    What Triton compiles by is in the second case as in `times` (one index for all heads, numbers of blocks and
    tiles that are multiples of 16), so that nothing is compiled again there.
    """
    import torch

    from models.kernels.sparse_attention import sparse_attention

    worst = 0.0
    compared = "without" not in {**WAYS, **WHY}[way][1]
    for batch, num_q, heads in ((1, 128, 2), (2, 2_048, 1)):
        q, k, v, indices = inputs(batch, num_q, 4_096, chosen, heads, chosen)
        indices[torch.rand(indices.shape, device="cuda") < 0.1] = -1
        indices[0, 0] = -1
        rows = [  # one by one: many processes do this at once, beside other jobs
            sparse_attention(
                q[row : row + 1].float(),
                k[row : row + 1].float(),
                v[row : row + 1].float(),
                indices[row : row + 1],
                return_lse=True,
                implementation="naive",
            )
            for row in range(batch if compared else 0)
        ]
        for _ in range(3):
            call, out, lse = call_of(way, (q, k, v, indices))
            call()
            torch.cuda.synchronize()
            if not compared:
                continue
            exact, exact_lse = (torch.cat(x) for x in zip(*rows, strict=True))
            if not torch.equal(lse.isinf(), exact_lse.isinf()):
                return {"way": way, "chosen": chosen, "error": "rows that see nothing differ"}
            seen = ~exact_lse.isinf()
            for found, expected in ((out.float(), exact), (lse[seen] * math.log(2), exact_lse[seen])):
                difference = float((found - expected).norm() / expected.norm())
                worst = difference if not difference <= worst else worst  # not a number counts as worst
    return {"way": way, "chosen": chosen, "difference": worst}


def times(passed: Sequence[tuple[str, int]], lines: Path) -> None:
    """Append a line for each time: of each length, k and way that passed, round by round; of whole turns at k = 8.

    A turn is a tile for each of 132 processors; what does not grow with turns is a launch's own. `twice_ms` is two
    launches in one graph.
    """
    from infra.bench.measure import matmul_rate, time_cuda

    def write(**line: Any) -> None:
        with lines.open("a") as file:
            file.write(json.dumps(line) + "\n")

    rate = matmul_rate()
    for length in LENGTHS:
        for chosen in CHOSEN:
            given = inputs(1, QUERIES, length, chosen, 1, chosen)
            floor = 4 * QUERIES * SHAPE["heads"] * chosen * 64 * SHAPE["dim"] / rate * 1e3
            here = (length, chosen) == (WHY_LENGTH, WHY_CHOSEN)
            ways = [way for way, k in passed if k == chosen and (way in WAYS or here)]
            calls = {way: call_of(way, given)[0] for way in ways}
            for _ in range(ROUNDS):
                for way in ways:
                    found = time_cuda(calls[way], runs=RUNS, graph=True).median_ms
                    write(
                        context=length, chosen=chosen, way=way, ms=round(found, 5), floor_ms=round(floor, 5)
                    )
    for turns in TURNS:
        given = inputs(1, turns * 132 * 16, WHY_LENGTH, 8, 1, turns)
        for way in [way for way in WAYS if (way, 8) in passed]:
            call = call_of(way, given)[0]
            once, twice = (
                time_cuda(both, runs=RUNS, graph=True).median_ms for both in (call, lambda c=call: (c(), c()))
            )
            write(turns=turns, chosen=8, way=way, ms=round(once, 5), twice_ms=round(twice, 5))
