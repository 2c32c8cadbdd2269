"""Everything that a short lease of a GPU must bring back, in one call: tests, tile sweeps, benchmarks in parallel.

    python3 -m infra.bench.gpu_session tests|tune|pick|bench|keep --out DIR

Contenders are compiled in parallel processes; timing itself is done by one process at a time (a file lock), after
all have compiled. Each process writes its rows as it goes, so that a time limit loses nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    ],
    "bench": [
        ["sparse", "4096", "16384", "65536", "262144", "1048576"],
        ["landmarks"],
        ["decode"],
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

    lock = turn.alone()

    def between() -> None:
        turn.compiled()
        lock.__enter__()

    try:
        return sparse_attention.run(lengths=lengths, between=between, report=turn.write)
    finally:
        lock.__exit__(None, None, None)


def landmarks(turn: Turn) -> dict[str, Any]:
    """The search at every length, compiled by a short run first."""
    from infra.bench import landmarks as bench

    bench.run(tokens=[1_048_576], runs=1, ceilings=(1.0, 1.0))
    turn.compiled()
    with turn.alone():
        return bench.run(report=turn.write)


def decode(turn: Turn) -> dict[str, Any]:
    """Decoding at every length and batch, compiled by a short run first."""
    from infra.bench import decode as bench

    bench.run(tokens=[16_384], runs=1, ceilings=(1.0, 1.0))
    turn.compiled()
    with turn.alone():
        return bench.run(report=turn.write)


def tune(turn: Turn, kernel: str, dim: int) -> dict[str, Any]:
    """Times of one kernel of sparse attention over tile choices: 16 heads over 2, at width 256 4 over 1."""
    import torch

    from infra.bench.measure import copy_bandwidth, matmul_rate, time_cuda
    from models.kernels.sparse_attention import fused, invert_indices
    from models.kernels.sparse_attention.tuning import Tiles

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
        delta = fused.launch_delta(out, grad, None)
        return fused.Saved(q, k, v, None, index, lse, grad, delta), invert_indices(index, num_k // 64)

    inputs = {chosen: prepared(chosen) for chosen in (8, 32)}

    def call(tiles: Tiles, chosen: int) -> None:
        saved, inverse = inputs[chosen]
        chosen_options = {**options, "tiles": {kernel: tiles}}
        if kernel == "forward":
            fused.launch_forward(q, k, v, None, saved.indices, chosen_options)
        elif kernel == "dq":
            fused.launch_dq(saved, chosen_options, None)
        else:
            fused.launch_dkv(saved, chosen_options, inverse)

    working = []
    for tiles in _candidates(kernel, dim):
        try:
            for chosen in inputs:
                call(tiles, chosen)
            torch.cuda.synchronize()
            working.append(tiles)
        except Exception as error:
            turn.write({"kernel": kernel, "dim": dim, "tiles": list(tiles), "error": str(error)[:150]})
    turn.compiled()
    with turn.alone():
        rate, bandwidth = matmul_rate(), copy_bandwidth()
        matmuls = {"forward": 2, "dq": 3, "dkv": 4}[kernel]
        for tiles, chosen in itertools.product(working, inputs):
            timing = time_cuda(lambda t=tiles, c=chosen: call(t, c), runs=10)  # type: ignore[misc]
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
                    "delta": lambda: fused.launch_delta(q, grad, None),
                    "zeros_and_casts": lambda s=sums: [x.to(q.dtype) for x in torch.zeros_like(s)],
                    "dq_with_atomics": lambda s=saved, x=sums: fused.launch_dq(s, options, x),
                }.items():
                    extra[f"{name}_{chosen}_ms"] = time_cuda(function, runs=10).median_ms  # type: ignore[arg-type]
            turn.write(extra)
    return {"bench": "tune", "rate": rate, "bandwidth": bandwidth}


def _candidates(kernel: str, dim: int) -> list[Any]:
    from models.kernels.sparse_attention.tuning import Tiles

    if kernel == "forward":
        shapes = (
            [(128, 8, 2), (128, 8, 3)] if dim == 256 else [(128, 4, 2), (128, 8, 2), (64, 4, 2), (64, 4, 3)]
        )
    elif kernel == "dq":
        shapes = [(128, 8, 1), (64, 4, 2)] if dim == 256 else [(64, 4, 2), (64, 4, 3), (128, 8, 2)]
    else:
        shapes = [(64, 8, 2)] if dim == 256 else [(64, 4, 2), (64, 4, 3)]
    return [Tiles(m, 1, w, s, tma) for m, w, s in shapes for tma in (True, False)]


def pick(out: Path) -> None:
    """Write the fastest tiles of the last sweep (least total over its k) into the table of tuning.py."""
    from models.kernels.sparse_attention import tuning

    rows = json.loads((out / "tune.json").read_text())["rows"]
    best: dict[tuple[str, int], tuple[float, list[Any]]] = {}
    for name in rows:
        total: dict[str, list[float]] = {}
        for row in rows[name]:
            if "ms" in row:
                total.setdefault(json.dumps(row["tiles"]), []).append(row["ms"] / row["chosen"])
        if total:
            kernel, dim = name.removeprefix("tune-").split("_")
            tiles, times = min(total.items(), key=lambda item: sum(item[1]))
            best[kernel, int(dim)] = (sum(times), json.loads(tiles))
    lines = ["_HALF = {"]
    for kernel in ("forward", "dq", "dkv"):
        cells = []
        for dim in (64, 128, 256):
            chosen = (
                tuning.Tiles(*best[kernel, dim][1]) if (kernel, dim) in best else tuning._HALF[kernel][dim]
            )
            cells.append(f"        {dim}: Tiles({', '.join(map(str, chosen))}),")
        lines += [f'    "{kernel}": {{', *cells, "    },"]
    path = Path(tuning.__file__)
    text = path.read_text()
    first, last = text.index("_HALF = {"), text.index("_FLOAT = {")
    path.write_text(text[:first] + "\n".join([*lines, "}"]) + "\n" + text[last:])
    sys.stdout.write("\n".join(lines) + "\n")


def part(arguments: Sequence[str], folder: Path, others: int, patience_s: float) -> None:
    """One process of a session."""
    name = "_".join(arguments)
    turn = Turn(folder, name, others, patience_s)
    started = time.monotonic()
    kind, *rest = arguments
    try:
        if kind == "sparse":
            result = sparse(turn, [int(length) for length in rest])
        elif kind == "landmarks":
            result = landmarks(turn)
        elif kind == "decode":
            result = decode(turn)
        else:
            result = tune(turn, kind.removeprefix("tune-"), int(rest[0]))
        result["alone_on_the_device"] = turn.was_alone
        (folder / f"{name}.json").write_text(json.dumps(result))
    finally:
        (folder / f"{name}.ready").touch()
        sys.stdout.write(f"{name}: {time.monotonic() - started:.0f} s\n")


def session(mode: str, out: Path, limit_s: float, only: Sequence[str]) -> None:
    """Start the parts of `mode`, wait for them up to the limit, and join what they wrote into one file."""
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"dysra-session-{os.getpid()}"  # noqa: S108
    folder.mkdir()
    deadline = time.monotonic() + limit_s
    if mode == "tests":
        log = (out / "gpu_tests.log").open("w")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "12",
            "-m",
            "gpu",
            "-v",
            "-rfE",
            "--confcutdir",
            GPU_TESTS[0],
        ]
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
        command += ["--others", str(len(parts)), "--limit", str(limit_s * 0.6)]
        running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    for process in running:
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    joined = {
        "results": {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))},
        "rows": {
            path.stem: [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(folder.glob("*.jsonl"))
        },
        "logs": {path.stem: path.read_text()[-3000:] for path in sorted(folder.glob("*.log"))},
    }
    (out / f"{mode}.json").write_text(json.dumps(joined, indent=1))


def keep(out: Path, results: Path, date: str) -> None:
    """Write what `bench` left in `out` as results that count: a JSON file and a page for each benchmark."""
    from infra.bench import page

    for result in json.loads((out / "bench.json").read_text())["results"].values():
        if "ratios" not in result:
            continue
        device = result["device"].split()[-1].lower()
        stem = results / f"{date}_{result['bench']}_{device}"
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        stem.with_suffix(".md").write_text(page(result))
        sys.stdout.write(f"{stem}\n")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["tests", "tune", "pick", "bench", "keep", "part"])
    parser.add_argument("arguments", nargs="*", help="of a part, or the only parts to run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("infra/bench/results"), help="keep: where to")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"), help="keep: when it was measured")
    parser.add_argument("--others", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    given = parser.parse_args()
    if given.mode == "part":
        part(given.arguments, given.out, given.others, given.limit)
    elif given.mode == "pick":
        pick(given.out)
    elif given.mode == "keep":
        keep(given.out, given.results, given.date)
    else:
        session(given.mode, given.out, given.limit, given.arguments)


if __name__ == "__main__":
    main()
