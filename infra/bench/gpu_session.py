"""Everything that a short lease of a GPU must bring back, in one call: tests, tile sweeps, benchmarks in parallel.

    python3 -m infra.bench.gpu_session tests|tune|forms|rows|pick|bench|kept|keep --out DIR

Contenders are compiled in parallel processes; timing itself is done by one process at a time (a file lock), after
all have compiled. Each process writes its rows as it goes, so that a time limit loses nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 0.65  # of the limit: how long the parts of a session wait for each other's compilers
GPU_TESTS = ("tests/models/kernels",)
PARTS: dict[str, list[list[str]]] = {
    "tune": [
        ["tune-forward", "64"],
        ["tune-forward", "128"],
        ["tune-forward", "256"],
        ["tune-dq", "64"],
        ["tune-dq", "128"],
        ["tune-dq", "256"],
        ["tune-dkv", "64"],
        ["tune-dkv", "128"],
        ["tune-dkv", "256"],
        *(
            ["tune-step", str(tokens), str(batch)]
            for tokens, batch in itertools.product((131_072, 1_048_576, 16_777_216), (1, 8, 64))
        ),
        ["tune-attend"],
        ["flashinfer"],
    ],
    "forms": [
        ["forms-step", "131072"],
        ["forms-step", "1048576"],
        *(  # a process for each k, which kernels are compiled for
            [part, str(chosen)]
            for part, chosen in itertools.product(("forms-forward", "forms-dq"), (8, 16, 32, 64))
        ),
    ],
    "rows": [  # steps of many rows, and of one over codes, in every form
        *(
            ["forms-rows", str(tokens), str(batch)]
            for tokens in (131_072, 1_048_576, 16_777_216)
            for batch in (8, 64)
        ),
        ["forms-coded", "1048576"],
        ["forms-coded", "16777216"],
    ],
    "kept": [["decode", "131072", "1048576"], ["sparse", "65536"]],  # the rows that a change of form touches
    "bench": [  # what the named ratios need comes first: a lease may end early
        ["sparse", "65536", "262144", "1048576", "16384", "4096"],
        ["decode"],
        ["landmarks"],
    ],
}


class Turn:
    """Compiles beside others, then waits for all of them, then has the device to itself."""

    def __init__(self, folder: Path, name: str, others: int, patience_s: float) -> None:
        self.folder, self.name, self.others, self.patience_s = folder, name, others, patience_s
        self.rows = folder / f"{name}.jsonl"
        self.was_alone = False

    def compiled(self) -> None:
        """Say that this process has compiled; return once all have, or, not alone, when patience is over."""
        (self.folder / f"{self.name}.ready").touch()
        limit = time.monotonic() + self.patience_s
        while len(list(self.folder.glob("*.ready"))) < self.others and time.monotonic() < limit:
            time.sleep(0.2)
        self.was_alone = time.monotonic() < limit

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the device while timing."""
        with (self.folder / "device.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


def sparse(turn: Turn, lengths: Sequence[int]) -> dict[str, Any]:
    """All k at these lengths, against every peer: one process, so that FlexAttention tunes itself but once."""
    from infra.bench import sparse_attention

    lock = contextlib.ExitStack()
    # our kernels of each k are compiled by processes of their own while FlexAttention tunes itself here
    compiling = "from infra.bench import sparse_attention; sparse_attention.compile_ours({})"
    warming = [subprocess.Popen([sys.executable, "-c", compiling.format(k)]) for k in sparse_attention.CHOSEN]

    def between() -> None:
        for process in warming:
            process.wait()
        turn.compiled()
        lock.enter_context(turn.alone())

    try:
        return sparse_attention.run(lengths=lengths, between=between, report=turn.write)
    finally:
        lock.close()


def landmarks(turn: Turn) -> dict[str, Any]:
    """The search at every length, compiled by a short run first."""
    from infra.bench import landmarks as bench

    bench.run(tokens=[1_048_576], runs=1, ceilings=(1.0, 1.0))
    turn.compiled()
    with turn.alone():
        return bench.run(report=turn.write)


def decode(turn: Turn, lengths: Sequence[int] = ()) -> dict[str, Any]:
    """Decoding at these lengths (all) and every batch, each compiled by a short run in a process of its own."""
    from infra.bench import decode as bench

    tokens = tuple(lengths) or bench.TOKENS
    short = "from infra.bench import decode; decode.run(tokens=[{}], runs=1, ceilings=(1.0, 1.0))"
    warming = [subprocess.Popen([sys.executable, "-c", short.format(length)]) for length in tokens[1:]]
    bench.run(tokens=tokens[:1], runs=1, ceilings=(1.0, 1.0))
    for process in warming:
        process.wait()
    turn.compiled()
    with turn.alone():
        return bench.run(tokens=tokens, report=turn.write)


def part(arguments: Sequence[str], folder: Path, others: int, patience_s: float) -> None:
    """One process of a session."""
    name = "_".join(arguments)
    from infra.bench import gpu_forms, gpu_forms_rows, gpu_tune

    turn = Turn(folder, name, others, patience_s)
    started = time.monotonic()
    kind, *rest = arguments
    try:
        if kind in ("sparse", "landmarks", "decode"):
            from infra.bench.measure import environment

            turn.write(environment())
        if kind == "sparse":
            result = sparse(turn, [int(length) for length in rest])
        elif kind == "landmarks":
            result = landmarks(turn)
        elif kind == "decode":
            result = decode(turn, [int(length) for length in rest])
        elif kind.startswith("forms-"):
            home = gpu_forms_rows if kind in ("forms-rows", "forms-coded") else gpu_forms
            result = getattr(home, kind.replace("-", "_"))(turn, *map(int, rest))
        elif kind == "tune-step":
            result = gpu_tune.tune_step(turn, int(rest[0]), int(rest[1]))
        elif kind == "tune-attend":
            result = gpu_tune.tune_attend(turn)
        elif kind == "flashinfer":
            result = gpu_tune.flashinfer(turn)
        else:
            result = gpu_tune.tune(turn, kind.removeprefix("tune-"), int(rest[0]))
        result["alone_on_the_device"] = turn.was_alone
        (folder / f"{name}.json").write_text(json.dumps(result))
    finally:
        (folder / f"{name}.ready").touch()
        sys.stdout.write(f"{name}: {time.monotonic() - started:.0f} s\n")


def session(mode: str, out: Path, limit_s: float, only: Sequence[str]) -> None:
    """Start the parts of `mode`, wait for them up to the limit, and join what they wrote into one file."""
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"dysra-session-{os.getpid()}"  # noqa: S108
    folder.mkdir(parents=True)
    deadline = time.monotonic() + limit_s
    if mode == "tests":
        log = (out / ("_".join(["gpu_tests", *only]) + ".log")).open("w")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-v",
            "-rfE",
            "--confcutdir",
            GPU_TESTS[0],
        ]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(min(15, os.cpu_count() or 1))]
        if importlib.util.find_spec(
            "pytest_timeout"
        ):  # a kernel that waits for ever ends its worker, not the session
            command += ["--timeout", "150", "--timeout-method", "thread"]
        if only:
            command += ["-k", " or ".join(only)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*command, *GPU_TESTS], stdout=log, stderr=subprocess.STDOUT, timeout=limit_s, check=False
            )
        return
    parts = [x for x in PARTS[mode] if not only or x[0] in only or "_".join(x) in only]
    running = []
    for arguments in parts:
        log = (folder / ("_".join(arguments) + ".log")).open("w")
        command = [sys.executable, "-m", "infra.bench.gpu_session", "part", *arguments, "--out", str(folder)]
        command += ["--others", str(len(parts)), "--limit", str(limit_s * PATIENCE)]
        running.append(
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        )
    while any(process.poll() is None for process in running) and time.monotonic() < deadline:
        time.sleep(1.0)
        _join(folder, out / f"{mode}.json")  # again and again: a lease may end at any time
    for process in running:
        with contextlib.suppress(ProcessLookupError):  # with what it started: compilers hold the device too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _join(folder, out / f"{mode}.json")


def _join(folder: Path, target: Path) -> None:
    """What the parts have written so far, as one file that is whole at every moment."""
    joined = {
        "results": {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))},
        "rows": {
            path.stem: [
                json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
            ]
            for path in sorted(folder.glob("*.jsonl"))
        },
        "logs": {path.stem: path.read_text()[-3000:] for path in sorted(folder.glob("*.log"))},
    }
    beside = target.with_suffix(".part")
    beside.write_text(json.dumps(joined, indent=1))
    beside.replace(target)


def keep(out: Path, results: Path, date: str) -> None:
    """Write what `bench`, else `kept`, left in `out` as results that count: a JSON file and a page for each.

    A part that was cut off is kept from its rows, marked `partial`, with the ratios that they allow.
    """
    from infra.bench import page
    from infra.training.kept_page import keep_as

    whole = out / "bench.json"
    joined = json.loads((whole if whole.exists() else out / "kept.json").read_text())
    for result in whole_or_partial(joined):
        device = result["device"].split()[-1].lower()
        stem = results / f"{date}_{result['bench']}_{device}"
        cut = "\nPartial: the time ended before all rows were measured.\n" if result.get("partial") else ""
        keep_as(stem, result, page(result) + cut)
        sys.stdout.write(f"{stem}\n")


def whole_or_partial(joined: dict[str, Any]) -> list[dict[str, Any]]:
    """Each benchmark of a session's file: its result, or, where it was cut off, one made from its rows."""
    from infra.bench import decode as decode_bench
    from infra.bench import landmarks as landmarks_bench
    from infra.bench import sparse_attention as sparse_bench

    benches: dict[str, tuple[str, Any]] = {
        "sparse": ("sparse-attention", sparse_bench),
        "decode": ("decode", decode_bench),
        "landmarks": ("landmarks", landmarks_bench),
    }
    found = []
    for kind, (name, bench) in benches.items():
        whole = [x for part, x in joined["results"].items() if part.split("_")[0] == kind and "ratios" in x]
        lines = [line for part, rows in joined["rows"].items() if part.split("_")[0] == kind for line in rows]
        header = {key: value for line in lines if "device" in line for key, value in line.items()}
        rows = [line for line in lines if "device" not in line]
        if whole:
            found.append({**whole[0], "rows": _in_order(whole[0]["rows"])})
        elif rows:
            ratios = bench.ratios(rows)
            found.append(
                {"bench": name, **header, "partial": True, "rows": _in_order(rows), "ratios": ratios}
            )
    return found


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by length, then by batch, queries or k, whatever order they were timed in."""
    keys = ("context", "tokens", "batch", "chunks", "queries", "k")
    return sorted(rows, key=lambda row: [row.get(key, 0) for key in keys])


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "mode", choices=["tests", "tune", "forms", "rows", "pick", "bench", "kept", "keep", "part"]
    )
    parser.add_argument("arguments", nargs="*", help="of a part, or the only parts (tests: words) to run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("infra/bench/results"), help="keep: where to")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"), help="keep: when it was measured")
    parser.add_argument("--others", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    given = parser.parse_args()
    if given.mode == "part":
        part(given.arguments, given.out, given.others, given.limit)
    elif given.mode == "pick":
        from infra.bench import gpu_tune

        gpu_tune.pick(given.out)
    elif given.mode == "keep":
        keep(given.out, given.results, given.date)
    else:
        session(given.mode, given.out, given.limit, given.arguments)


if __name__ == "__main__":
    main()
