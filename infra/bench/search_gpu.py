"""The store's vector search on one GPU against a bare matrix product and faiss' flat index; no Ray, no Kafka.

    python3 -m infra.bench.search_gpu --device cuda:0 --rows 10000000 --out DIR [--stages proof,speed,live,ivf]

Writes DIR/search_gpu.json and DIR/search_gpu.md as it goes. Stages: `proof` (a real shard: appends, updates,
deletes, sealing, compaction, expiry and a restart, each compared with brute force), `speed` (rows in segments of
a million, no log and no files: searches as the store makes them, beside the bare peers over the same vectors and
batches; then with a tenth deleted and a segment expired, compared with brute force in float32), `live` (searches
while 200 articles a second are appended to a real shard), `ivf` (one segment with faiss' IVF on the GPU). On a CPU:
--device cpu:0 and few rows. Needs numpy, torch, pyarrow, msgpack, xxhash, and faiss, tantivy, orjson, crc32c,
zstandard, structlog of PyPI.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra import bench as benches
from infra.bench.held_store import fill
from infra.bench.measure import environment
from infra.bench.search_gpu_shard import live, proof
from infra.bench.search_gpu_speed import BATCHES, K, speed, timed
from infra.bench.vectors import DIM, clustered_on
from pipeline.store.flat_peer import VERSION
from pipeline.store.gpu_index import DeviceMatrix
from pipeline.store.vector_index import FaissIndex, device_index


def ivf(rows: int, device: str, runs: int, note: Callable[[dict[str, Any]], None]) -> None:
    """One sealed segment: the IVF that faiss holds on the GPU against the plain product over the same rows."""
    vectors = clustered_on(device, rows, 77).cpu().numpy()
    started = time.perf_counter()
    built = FaissIndex.build(vectors, ivf=True, probes=32)
    build_s = time.perf_counter() - started
    index = device_index(built, vectors, "cpu" if device.startswith("cpu") else device)
    matrix = fill(DeviceMatrix(DIM, rows, device), vectors)
    generator = np.random.default_rng(5)
    questions = vectors[generator.integers(0, rows, max(BATCHES))].astype(np.float32)
    for batch in BATCHES:
        given = np.ascontiguousarray(questions[:batch])
        times = timed(
            {
                "ivf": partial(index.search, given, K, None),
                "matrix": partial(matrix.search, given, K, None),
            },
            device,
            runs,
        )
        exact, near = matrix.search(given, K, None)[1], index.search(given, K, None)[1]
        recall = np.mean(
            [len(set(a) & set(b)) / K for a, b in zip(exact.tolist(), near.tolist(), strict=True)]
        )
        note(
            {
                "stage": "ivf", "rows": rows, "batch": batch, "kind": type(index).__name__, "build_s": build_s,
                "ivf_ms": times["ivf"][0], "matrix_ms": times["matrix"][0], "recall_at_10": float(recall),
            }
        )  # fmt: skip


def run(
    *,
    rows: int = 200_000,
    device: str = "cpu:0",
    shard_chunks: int = 20_000,
    runs: int = 20,
    stages: str = "proof,speed,live,ivf",
    out: Path | None = None,
) -> dict[str, Any]:
    """Run the stages; what fails is noted as a row and the next stage goes on."""
    result: dict[str, Any] = {"bench": "search-gpu", **environment(), "rows": [], "ratios": {}}
    result["faiss"] = VERSION

    def note(row: dict[str, Any]) -> None:
        result["rows"].append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        sys.stdout.write(json.dumps(result["rows"][-1]) + "\n")
        sys.stdout.flush()
        result["ratios"] = ratios(result["rows"])
        if out is not None:
            (out / "search_gpu.json").write_text(json.dumps(result, indent=1))
            (out / "search_gpu.md").write_text(benches.page(result))

    for stage in stages.split(","):
        try:
            with tempfile.TemporaryDirectory() as folder:
                if stage == "proof":
                    proof(Path(folder), shard_chunks, device, note)
                elif stage == "speed":
                    speed(rows, device, runs, note)
                elif stage == "live":
                    live(Path(folder), shard_chunks, device, note)
                elif stage == "ivf":
                    ivf(min(rows, 1_048_576), device, runs, note)
        except Exception as error:
            traceback.print_exc()
            note({"stage": stage, "error": f"{type(error).__name__}: {error}"[:400]})
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return result


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figures that the issue names: the worst over batches, and each batch's own."""
    named: dict[str, float] = {}
    timed_rows = [row for row in rows if "over_bare" in row]
    if timed_rows:
        named["search_over_bare_faiss_gpu"] = max(row["over_bare"] for row in timed_rows)
        named["passages_over_bare_faiss_gpu"] = max(row["passages_over_bare"] for row in timed_rows)
    for row in timed_rows:
        named[f"search_over_bare_b{row['batch']}_{row['state']}"] = row["over_bare"]
    checks = [row for row in rows if "deleted_or_expired_returned" in row]
    if checks:
        named["deleted_or_expired_returned"] = sum(row["deleted_or_expired_returned"] for row in checks)
        named["worst_recall_at_10"] = min(row["recall_at_10"] for row in checks)
    return named


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shard-chunks", type=int, default=200_000, help="chunks of the real shard")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--stages", default="proof,speed,live,ivf")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    result = run(
        rows=given.rows, device=given.device, shard_chunks=given.shard_chunks, runs=given.runs,
        stages=given.stages, out=given.out,
    )  # fmt: skip
    sys.stdout.write(json.dumps(result["ratios"], indent=1) + "\n")


if __name__ == "__main__":
    main()
