"""Landmark search with top-k fused, against a matrix product followed by torch.topk.

Landmarks: fp16 of width 256, one for each 64 tokens seen; one query (a session that decodes) and 64 queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from infra.bench.measure import copy_bandwidth, environment, floor_ms, matmul_rate, time_cuda
from models.kernels.landmark_topk import landmark_topk

CHUNK = 64
DIM = 256
TOKENS = (16_384, 131_072, 1_048_576, 16_777_216, 67_108_864)
QUERIES = (1, 64)
K = (8, 64)


def run(
    *,
    tokens: Sequence[int] = TOKENS,
    queries: Sequence[int] = QUERIES,
    chosen: Sequence[int] = K,
    runs: int = 20,
    ceilings: tuple[float, float] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Rows for every length, number of queries and k; times of CUDA graph replays, eager ones beside."""
    bandwidth, rate = ceilings or (copy_bandwidth(), matmul_rate())
    rows = []
    for length in tokens:
        landmarks = torch.randn(length // CHUNK, DIM, device="cuda", dtype=torch.float16)
        for num_queries in queries:
            for k in chosen:
                row = _row(landmarks, length, num_queries, k, bandwidth, rate, runs)
                rows.append(row)
                if report is not None:
                    report(row)
        del landmarks
    return {
        "bench": "landmarks",
        **environment(),
        "copy_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "matmul_tflop_s": round(rate / 1e12, 1),
        "rows": rows,
        "ratios": ratios(rows),
    }


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The search's time at 16M tokens (one query, k = 8), over its floor, and the least gain over torch."""
    found = {
        "landmark_search_speedup_over_torch_min": round(
            min(row["torch_ms"] / row["ours_ms"] for row in rows), 3
        )
    }
    for row in rows:
        if row["tokens"] == 16_777_216 and row["queries"] == 1 and row["k"] == 8:
            found["landmark_search_ms_16m"] = row["ours_ms"]
            found["landmark_search_over_floor_16m"] = round(row["ours_ms"] / row["floor_ms"], 3)
    return found


def _row(
    landmarks: torch.Tensor,
    length: int,
    num_queries: int,
    k: int,
    bandwidth: float,
    rate: float,
    runs: int,
) -> dict[str, Any]:
    query = torch.randn(1, num_queries, DIM, device="cuda", dtype=torch.float16)

    def ours() -> Any:
        return landmark_topk(query, landmarks, k)

    def plain() -> Any:
        return torch.topk(query[0] @ landmarks.T, min(k, landmarks.shape[0]), dim=-1)

    expected, found = plain(), ours()
    width = min(k, landmarks.shape[0])
    error = (found[0][0, :, :width] - expected.values.float()).abs().max().item()
    num_bytes = landmarks.numel() * 2 + num_queries * (DIM * 2 + k * 8)
    row: dict[str, Any] = {
        "tokens": length,
        "landmarks": landmarks.shape[0],
        "queries": num_queries,
        "k": k,
        "largest_score_difference": round(error, 4),
        "floor_ms": round(floor_ms(num_bytes, 2 * num_queries * landmarks.numel(), bandwidth, rate), 5),
    }
    row.update(time_cuda(ours, runs=runs, graph=True).row("ours"))
    row.update(time_cuda(plain, runs=runs, graph=True).row("torch"))
    row["ours_eager_ms"] = time_cuda(ours, runs=runs).row("x")["x_ms"]
    row["torch_eager_ms"] = time_cuda(plain, runs=runs).row("x")["x_ms"]
    return row
