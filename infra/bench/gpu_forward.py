"""Forms of the forward pass for Hopper side by side: whether each agrees, then their times in turn, in one minute.

    python3 -m infra.bench.gpu_forward --out DIR [--limit 60] [--compile]

Each way with each k is compiled and checked against the plain reference in a process of its own, which is ended
when its time is over: a kernel that waits for ever costs its form, not the lease. Then one process times what has
passed, ways taking turns, ROUNDS times. `forward.json` has the checks, and a row for each length, k and way: the
medians of the rounds, their median, and that over the floor. WHY's ways say what binds: fewer stages, and kernels
without softmaxes or without fetching, whose results mean nothing and are not compared.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LENGTHS = (65_536, 1_048_576, 4_096)
CHOSEN = (8, 32)
ROUNDS, RUNS = 3, 20
WAYS: dict[str, tuple[int, dict[str, Any]]] = {  # form (`Tiles.hopper`) and options of its launch
    "1": (1, {}),  # ships above k = 8
    "2": (2, {}),  # ships up to k = 8
    "4": (4, {}),
    "5": (5, {}),
    "5-ahead-6": (5, {"ahead": 6}),
}
WHY_LENGTH, WHY_CHOSEN = 65_536, 32
WHY: dict[str, tuple[int, dict[str, Any]]] = {
    "1-stages-3": (1, {"stages": 3}),
    "1-stages-2": (1, {"stages": 2}),
    "2-stages-2": (2, {"stages": 2}),
    "4-stages-2": (4, {"stages": 2}),
    "5-stages-3": (5, {"stages": 3}),
    "5-stages-2": (5, {"stages": 2}),
    "5-no-softmax": (5, {"without": ("softmax",)}),
    "5-no-fetching": (5, {"without": ("fetching",)}),
    "5-neither": (5, {"without": ("softmax", "fetching")}),
    "5-late": (5, {"without": ("early scores",)}),
    "5-turns": (5, {"without": ("early scores", "free order")}),
}
TURNS = (1, 2, 8)
SHAPE = {"heads": 16, "kv_heads": 2, "dim": 128}
QUERIES = 16_384
ALLOWED = 1e-2  # relative difference that bf16 allows
SELF = (sys.executable, "-m", "infra.bench.gpu_forward")
CHECK_S = 30.0  # one way's compiling and its check
_NEXT = "s0 = _scores(q_smem.index(half_of * 3 + place % 3), k_smem.index(after % STAGES), zeros)"
# what is left out of a copy of overlap_deep.py's text: weights without a softmax, stages given without being filled
_LEFT_OUT = {
    "softmax": [
        (
            "from models.kernels.sparse_attention.overlap import _indices, _scores, _weigh\n",
            "from models.kernels.sparse_attention.overlap import _indices, _scores\n",
        ),
        (
            "@gluon.jit\ndef _consumer",
            "@gluon.jit\n"
            "def _weigh(s, acc, peak, total, bias, scale_log2, o_layout: gl.constexpr, dtype: gl.constexpr):\n"
            "    p = gl.convert_layout((s * (scale_log2 + bias)).to(dtype), gl.DotOperandLayout(0, o_layout, 2))\n"
            "    return p, acc, peak, total\n\n\n@gluon.jit\ndef _consumer",
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
    "early scores": [  # the next first scores are asked for after the second half's softmax: fewer products queue
        (
            f"            {_NEXT}\n            s1 = warpgroup_mma_wait(2, deps=[s1])\n",
            "            s1 = warpgroup_mma_wait(1, deps=[s1])\n",
        ),
        (
            "            acc1 = warpgroup_mma(p, v_smem.index(here), acc1, is_async=True)\n",
            f"            {_NEXT}\n"
            "            acc1 = warpgroup_mma(p, v_smem.index(here), acc1, is_async=True)\n",
        ),
    ],
    "free order": [  # groups ask for products in turn, each batch at once: one's softmax under the other's products
        (
            "    q_full = gl.allocate_shared_memory(gl.int64, [6, 1]",
            "    q_full = gl.allocate_shared_memory(gl.int64, [8, 1]",
        ),
        (
            "    for i in gl.static_range(STAGES):\n",
            "    mbarrier.init(q_full.index(6), count=1)\n"
            "    mbarrier.init(q_full.index(7), count=1)\n    for i in gl.static_range(STAGES):\n",
        ),
        ("            s1 = _scores(q1, k_smem.index(here), zeros)\n            bias", "            bias"),
        (
            "            acc0 = warpgroup_mma(p, v_smem.index(here), acc0, is_async=True)\n",
            "            mbarrier.wait(q_full.index(6 + half_of), half_of ^ 1)\n"
            "            s1 = _scores(q1, k_smem.index(here), zeros)\n"
            "            acc0 = warpgroup_mma(p, v_smem.index(here), acc0, is_async=True)\n"
            "            mbarrier.arrive(q_full.index(7 - half_of), count=1)\n",
        ),
        (
            "            s1 = warpgroup_mma_wait(1, deps=[s1])\n",
            "            s1, acc0 = warpgroup_mma_wait(0, deps=[s1, acc0])\n",
        ),
        (
            f"            {_NEXT}\n",
            f"            mbarrier.wait(q_full.index(6 + half_of), half_of)\n            {_NEXT}\n",
        ),
        (
            "            acc1 = warpgroup_mma(p, v_smem.index(here), acc1, is_async=True)\n"
            "            s0, acc0, acc1 = warpgroup_mma_wait(0, deps=[s0, acc0, acc1])\n",
            "            acc1 = warpgroup_mma(p, v_smem.index(here), acc1, is_async=True)\n"
            "            mbarrier.arrive(q_full.index(7 - half_of), count=1)\n"
            "            s0, acc1 = warpgroup_mma_wait(0, deps=[s0, acc1])\n",
        ),
    ],
}


def launcher(way: str) -> Callable[..., None]:
    """Launch of a way: (q, k, v, indices, out, lse, scale_log2)."""
    from models.kernels.sparse_attention import ahead, hopper, overlap, overlap_deep

    form, options = {**WAYS, **WHY}[way]
    if "without" in options:
        return without(options["without"])
    launch: Callable[..., None] = {
        1: hopper.launch_hopper,
        2: ahead.launch_ahead,
        4: overlap.launch_overlap,
        5: overlap_deep.launch_deep,
    }[form]
    return lambda *given: launch(*given, **options)


def without(parts: Sequence[str]) -> Callable[..., None]:
    """Form 5 with parts of it left out: what it costs without them."""
    from models.kernels.sparse_attention import overlap_deep

    text = left_out(Path(overlap_deep.__file__).read_text(), parts)
    file = (
        Path(tempfile.gettempdir()) / f"deep_without_{'_'.join(parts)}.py"
    )  # one name: compiled once for all
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(text)
    beside.replace(file)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    launch: Callable[..., None] = module.launch_deep
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
    """Largest relative difference from the reference in float32, with fewer tiles than processors and with more."""
    import math

    import torch

    from models.kernels.sparse_attention import sparse_attention

    worst = 0.0
    compared = "without" not in {**WAYS, **WHY}[way][1]
    for batch, num_q, num_k in ((1, 128, 4_096), (2, 1_152, 4_096)):
        q, k, v, indices = inputs(batch, num_q, num_k, chosen, 2, chosen)
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


def times(passed: Sequence[tuple[str, int]], rows: Path) -> None:
    """Append a row for each length, k and way that passed (way, k), then rows of whole turns at k = 8.

    A turn is a tile for each of 132 processors; what does not grow with turns is a launch's own. `twice_ms` is two
    launches in one graph.
    """
    import torch

    from infra.bench.measure import matmul_rate, time_cuda

    rate = matmul_rate()
    for length in LENGTHS:
        for chosen in CHOSEN:
            given = inputs(1, QUERIES, length, chosen, 1, chosen)
            floor = 4 * QUERIES * SHAPE["heads"] * chosen * 64 * SHAPE["dim"] / rate * 1e3
            here = (length, chosen) == (WHY_LENGTH, WHY_CHOSEN)
            ways = [way for way, k in passed if k == chosen and (way in WAYS or here)]
            calls = {way: call_of(way, given) for way in ways}
            medians: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way in ways:
                    medians[way].append(time_cuda(calls[way][0], runs=RUNS, graph=True).median_ms)
            reference = calls[ways[0]][1].float()
            for way in ways:
                row = row_of(length, chosen, way, medians[way], floor)
                row["apart"] = float((calls[way][1].float() - reference).norm() / reference.norm())
                row["tflop_s"] = round(rate / 1e12, 1)
                if here and way in ("1", "5", "5-neither"):
                    row["under_load"] = under_load(calls[way][0], torch)
                with rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    for turns in TURNS if ("2", 8) in passed else ():
        given = inputs(1, turns * 132 * 16, WHY_LENGTH, 8, 1, turns)
        for way in [way for way in WAYS if (way, 8) in passed]:
            call = call_of(way, given)[0]
            once, twice = (
                time_cuda(both, runs=RUNS, graph=True).median_ms for both in (call, lambda c=call: (c(), c()))
            )
            with rows.open("a") as file:
                row = {
                    "way": way,
                    "chosen": 8,
                    "turns": turns,
                    "ms": round(once, 5),
                    "twice_ms": round(twice, 5),
                }
                file.write(json.dumps(row) + "\n")


def under_load(call: Callable[[], None], torch: Any) -> list[tuple[int, int]]:
    """Clock of the processors in MHz and power in W, read while 0.3 s of calls run."""
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(
            int(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
        )
        for _ in range(600):
            call()
        found = []
        for _ in range(5):
            time.sleep(0.04)
            clock = pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM)
            found.append((int(clock), int(pynvml.nvmlDeviceGetPowerUsage(device) // 1000)))
    except Exception as error:
        found = []
        sys.stdout.write(f"no clock: {error}\n")
    torch.cuda.synchronize()
    return found


def row_of(length: int, chosen: int, way: str, found: Sequence[float], floor: float) -> dict[str, Any]:
    """One way's medians of the rounds in ms, their median, and that over the floor."""
    middle = statistics.median(found)
    return {
        "context": length,
        "chosen": chosen,
        "way": way,
        "ms": round(middle, 5),
        "rounds_ms": [round(x, 5) for x in found],
        "floor_ms": round(floor, 5),
        "over_floor": round(middle / floor, 3),
    }


def ended(command: Sequence[str], limit_s: float) -> tuple[int | None, str]:
    """Exit code (None: ended when its time was over) and the end of what a command wrote; nothing of it goes on."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        return process.returncode, output[-1500:]
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, (output or "")[-1500:]


def checked(way: str, chosen: int, limit_s: float) -> dict[str, Any]:
    """`check` in a process of its own; an `error` where it did not end, or ended badly."""
    began = time.monotonic()
    code, said = ended([*SELF, "check", way, str(chosen)], limit_s)
    lines = [line for line in said.splitlines() if line.startswith('{"way"')]
    row: dict[str, Any] = {"way": way, "chosen": chosen}
    if code == 0 and lines:
        row = json.loads(lines[-1])
    else:
        row["error"] = "not done in its time" if code is None else f"exit code {code}: {said[-600:]}"
    return {**row, "seconds": round(time.monotonic() - began, 1)}


def passes(row: dict[str, Any]) -> bool:
    """Whether a way may be timed."""
    return bool(row.get("difference", float("nan")) <= ALLOWED)


def main() -> None:
    """Read the arguments and run."""
    from concurrent.futures import ThreadPoolExecutor

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", help="check WAY K, or times WAY:K ... (of a run's own processes)")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--limit", type=float, default=60.0, help="seconds")
    parser.add_argument(
        "--compile", action="store_true", help="only check; times, with the same --out, later"
    )
    given = parser.parse_args()
    if given.part[:1] == ["check"]:
        sys.stdout.write(json.dumps(check(given.part[1], int(given.part[2]))) + "\n")
        return
    rows = given.out / "forward.jsonl"
    if given.part[:1] == ["times"]:
        pairs = [x.split(":") for x in given.part[1:]]
        times([(way, int(chosen)) for way, chosen in pairs], rows)
        return
    began = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    rows.unlink(missing_ok=True)
    known = given.out / "checks.json"
    if known.exists():
        checks = json.loads(known.read_text())
    else:
        wanted = [(way, k) for k in CHOSEN for way in WAYS] + [(way, WHY_CHOSEN) for way in WHY]
        with ThreadPoolExecutor(len(wanted)) as pool:
            limit_s = given.limit if given.compile else min(CHECK_S, given.limit / 2)
            checks = list(pool.map(lambda x: checked(x[0], x[1], limit_s), wanted))
        known.write_text(json.dumps(checks) + "\n")
    for row in checks:
        sys.stdout.write(json.dumps(row) + "\n")
    if given.compile:
        return
    passed = [f"{row['way']}:{row['chosen']}" for row in checks if passes(row)]
    left = given.limit - (time.monotonic() - began)
    code, said = (
        ended([*SELF, "times", *passed, "--out", str(given.out)], left) if passed else (1, "nothing to time")
    )
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    result = {"checks": checks, "rows": found, "times_exit_code": code, "times_said": said}
    (given.out / "forward.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in found:
        where = f"{row['turns']} turns" if "turns" in row else f"{row['context']} k={row['chosen']}"
        sys.stdout.write(
            f"{where} way {row['way']}: {row['ms']} {row.get('over_floor', row.get('twice_ms'))}\n"
        )
    if code != 0:
        raise SystemExit(f"times: exit code {code}: {said[-400:]}")


if __name__ == "__main__":
    main()
