"""Forms of the forward pass for Hopper side by side, and what binds them, on one GPU within a minute.

    python3 -m infra.bench.gpu_forward --out DIR [--limit 60] [--compile]

Each way with each k is compiled and checked against the plain reference in a process of its own, which is ended
when its time is over: a kernel that waits for ever costs its way, not the lease. Then one process times what has
passed, ways taking turns, and writes each time as it comes. `forward.json` has the checks, and a row for each
length, k and way: its rounds, their median, and that over the floor.
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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from infra.bench.gpu_forward_ways import CHOSEN, WAYS, WHY, WHY_CHOSEN, check, times

ALLOWED = 1e-2  # relative difference that bf16 allows
SELF = (sys.executable, "-m", "infra.bench.gpu_forward")
CHECK_S = 30.0  # one way's compiling and its check


def rows_of(lines: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each length, k and way of the whole lines: its rounds, their median, and that over the floor."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for text in lines:
        if not text.endswith("\n"):
            continue  # cut off
        line = json.loads(text)
        if "turns" in line:
            rows[line["way"], line["turns"], "turns"] = line
            continue
        key = (line["context"], line["chosen"], line["way"])
        row = rows.setdefault(key, {**line, "rounds_ms": []})
        row["rounds_ms"].append(line["ms"])
        row["ms"] = round(statistics.median(row["rounds_ms"]), 5)
        row["over_floor"] = round(row["ms"] / row["floor_ms"], 3)
    return list(rows.values())


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
    lines = given.out / "forward.jsonl"
    if given.part[:1] == ["times"]:
        pairs = [x.split(":") for x in given.part[1:]]
        times([(way, int(chosen)) for way, chosen in pairs], lines)
        return
    began = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    lines.unlink(missing_ok=True)
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
    found = rows_of(lines.read_text().splitlines(keepends=True)) if lines.exists() else []
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
