"""Forms of the forward pass for Hopper side by side: whether each agrees, then their times in turn, in one minute.

    python3 -m infra.bench.gpu_forward --out DIR [--limit 60]

Each form with each k is compiled and checked against the plain reference in a process of its own, which is ended
when its time is over: a kernel that waits for ever costs its form, not the lease. Then one process times what
passed, forms taking turns, ROUNDS times. `forward.json` has the checks, and a row for each length, k and form: the
medians of the rounds, their median, and that over the floor.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHOSEN = (8, 16, 32)
LENGTHS = (65_536, 262_144, 1_048_576)
ROUNDS, RUNS = 3, 20
FORMS = (1, 2, 4)  # `Tiles.hopper`; what ships is 2 up to k = 8, 1 above
ALLOWED = 1e-2  # relative difference that bf16 allows
SELF = (sys.executable, "-m", "infra.bench.gpu_forward")
CHECK_S = 30.0  # one form's compiling and its check


def check(form: int, chosen: int) -> dict[str, Any]:
    """Largest relative difference from the reference in float32, with fewer tiles than processors and with more."""
    import torch

    from models.kernels.sparse_attention import sparse_attention

    make = torch.Generator().manual_seed(form * 100 + chosen)
    worst = 0.0
    for batch, num_q, num_k in ((1, 128, 4_096), (2, 2_560, 4_096)):
        q, k, v = (
            torch.randn(batch, length, heads, 128, generator=make).to("cuda", torch.bfloat16)
            for length, heads in ((num_q, 16), (num_k, 2), (num_k, 2))
        )
        indices = torch.rand(batch, num_q // 64, 2, num_k // 64, generator=make).topk(chosen).indices.int()
        indices[torch.rand(indices.shape, generator=make) < 0.1] = -1
        indices[0, 0] = -1
        indices = indices.cuda()
        exact, exact_lse = sparse_attention(
            q.float(), k.float(), v.float(), indices, return_lse=True, implementation="naive"
        )
        for _ in range(3):
            out, lse = sparse_attention(q, k, v, indices, return_lse=True, tiles=tiles_of(form))
            if not torch.equal(lse.isinf(), exact_lse.isinf()):
                return {"form": form, "chosen": chosen, "error": "rows that see nothing differ"}
            seen = ~exact_lse.isinf()
            for found, expected in ((out.float(), exact), (lse[seen], exact_lse[seen])):
                difference = float((found - expected).norm() / expected.norm())
                worst = difference if not difference <= worst else worst  # not a number counts as worst
    return {"form": form, "chosen": chosen, "difference": worst}


def tiles_of(form: int) -> dict[str, Any]:
    """The argument that insists on this form of the forward pass."""
    import torch

    from models.kernels.sparse_attention.tuning import tiles_for

    return {"forward": tiles_for("forward", 128, torch.bfloat16, 512, False)._replace(hopper=form)}


def times(passed: Sequence[tuple[int, int]], rows: Path) -> None:
    """Append a row for each length, k and form that passed (form, k), the shortest length first."""
    import torch

    from infra.bench.measure import matmul_rate, time_cuda
    from infra.bench.sparse_attention import Case

    with torch.no_grad():
        rate = matmul_rate()
        for length in LENGTHS:
            for chosen in CHOSEN:
                case = Case(length, chosen)
                floor = case.floors(4.2e12, rate)[0]
                calls = {form: call_of(case, form) for form, k in passed if k == chosen}
                outs = {form: call().float() for form, call in calls.items()}
                medians: dict[int, list[float]] = {form: [] for form in calls}
                for _ in range(ROUNDS):
                    for form, call in calls.items():
                        medians[form].append(time_cuda(call, runs=RUNS, graph=True).median_ms)
                for form, found in medians.items():
                    row = row_of(length, chosen, form, found, floor)
                    row["apart"] = max(
                        float((outs[form] - x).norm() / x.norm()) for x in outs.values()
                    )  # from any other form
                    row["tflop_s"] = round(rate / 1e12, 1)
                    with rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def call_of(case: Any, form: int) -> Callable[[], Any]:
    """The forward pass of a case in this form."""
    tiles = tiles_of(form)
    return lambda: case.ours(tiles)


def row_of(length: int, chosen: int, form: int, found: Sequence[float], floor: float) -> dict[str, Any]:
    """One form's medians of the rounds in ms, their median, and that over the floor."""
    middle = statistics.median(found)
    return {
        "context": length,
        "chosen": chosen,
        "form": form,
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


def checked(form: int, chosen: int, limit_s: float) -> dict[str, Any]:
    """`check` in a process of its own; an `error` where it did not end, or ended badly."""
    began = time.monotonic()
    code, said = ended([*SELF, "check", str(form), str(chosen)], limit_s)
    lines = [line for line in said.splitlines() if line.startswith('{"form"')]
    row: dict[str, Any] = {"form": form, "chosen": chosen}
    if code == 0 and lines:
        row = json.loads(lines[-1])
    else:
        row["error"] = "not done in its time" if code is None else f"exit code {code}: {said[-600:]}"
    return {**row, "seconds": round(time.monotonic() - began, 1)}


def passes(row: dict[str, Any]) -> bool:
    """Whether a form may be timed."""
    return bool(row.get("difference", float("nan")) <= ALLOWED)


def main() -> None:
    """Read the arguments and run."""
    from concurrent.futures import ThreadPoolExecutor

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "part", nargs="*", help="check FORM K, or times FORM:K ... (of a run's own processes)"
    )
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--limit", type=float, default=60.0, help="seconds")
    given = parser.parse_args()
    if given.part[:1] == ["check"]:
        sys.stdout.write(json.dumps(check(*map(int, given.part[1:]))) + "\n")
        return
    rows = given.out / "forward.jsonl"
    if given.part[:1] == ["times"]:
        pairs = [x.split(":") for x in given.part[1:]]
        times([(int(form), int(chosen)) for form, chosen in pairs], rows)
        return
    began = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    rows.unlink(missing_ok=True)
    with ThreadPoolExecutor(len(FORMS) * len(CHOSEN)) as pool:
        checks = list(
            pool.map(
                lambda x: checked(x[0], x[1], min(CHECK_S, given.limit / 2)),
                [(f, k) for k in CHOSEN for f in FORMS],
            )
        )
    for row in checks:
        sys.stdout.write(json.dumps(row) + "\n")
    passed = [f"{row['form']}:{row['chosen']}" for row in checks if passes(row)]
    left = given.limit - (time.monotonic() - began)
    code, said = (
        ended([*SELF, "times", *passed, "--out", str(given.out)], left) if passed else (1, "nothing to time")
    )
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    result = {"checks": checks, "rows": found, "times_exit_code": code, "times_said": said}
    (given.out / "forward.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in found:
        sys.stdout.write(
            f"{row['context']} k={row['chosen']} form {row['form']}: {row['ms']} {row['over_floor']}\n"
        )
    if code != 0:
        raise SystemExit(f"times: exit code {code}: {said[-400:]}")


if __name__ == "__main__":
    main()
