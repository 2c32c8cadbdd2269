"""Benchmarks: each module has `run(...) -> dict` with keys bench, device, commit, rows and ratios.

BENCHES names them; `needs_cuda` says which refuse to run without a CUDA device.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """One benchmark: where its `run` is, whether it needs a CUDA device, and what it measures."""

    module: str
    needs_cuda: bool
    about: str


BENCHES: dict[str, Bench] = {
    "sparse-attention": Bench(
        module="infra.bench.sparse_attention",
        needs_cuda=True,
        about="attention over chosen chunks against gather + SDPA, FlexAttention and dense SDPA",
    ),
    "decode": Bench(
        module="infra.bench.decode",
        needs_cuda=True,
        about="one token over ring, latents and chosen chunks against GCA and dense SDPA, 16k to 16M tokens seen",
    ),
    "landmarks": Bench(
        module="infra.bench.landmarks",
        needs_cuda=True,
        about="landmark search with top-k fused against a matrix product and torch.topk",
    ),
    "cache": Bench(
        module="infra.bench.cache",
        needs_cuda=False,
        about="reading and answering through the cache, share of evictions, compressors at equal bytes",
    ),
    "session-bytes": Bench(
        module="infra.bench.session_bytes",
        needs_cuda=False,
        about="16M tokens through one session's cache: bytes, reading speed, share of evictions in decode time",
    ),
    "retrieval": Bench(
        module="infra.bench.retrieval",
        needs_cuda=False,
        about="recall and MRR of BM25, dense and hybrid search on four question sets (reads DYSRA_DATA)",
    ),
    "ingest": Bench(
        module="infra.bench.ingest",
        needs_cuda=False,
        about="the ingest job without embedding against a bare kafka-python loop over the same topic",
    ),
    "search": Bench(
        module="infra.bench.search",
        needs_cuda=False,
        about="search at 1, 8 and 64 clients while articles arrive, against flat faiss and LanceDB",
    ),
    "search-gpu": Bench(
        module="infra.bench.search_gpu",
        needs_cuda=False,
        about="vector search on one device against bare products; deletes and expiry against brute force",
    ),
    "freshness": Bench(
        module="infra.bench.freshness",
        needs_cuda=False,
        about="published to searchable at steady rates",
    ),
    "hostile": Bench(
        module="infra.bench.hostile",
        needs_cuda=False,
        about="generated hostile records through the validator, a broker and ingest: each accounted for",
    ),
    "scaling": Bench(
        module="infra.bench.scaling",
        needs_cuda=False,
        about="unit costs of ingester, shard and search, and a simulation that shows where a system bends",
    ),
    "soak": Bench(
        module="infra.bench.soak",
        needs_cuda=False,
        about="hours of articles as fast as they go: memory of every process, files under retention",
    ),
    "faults": Bench(
        module="infra.bench.faults",
        needs_cuda=False,
        about="kills, pauses, damaged files and full disks; then every id and version against what was published",
    ),
    "subq": Bench(
        module="infra.bench.subq",
        needs_cuda=False,
        about="sub-quadratic backbone: time and bytes by length, and the fit over lengths",
    ),
}


def available() -> dict[str, Bench]:
    """The benchmarks whose module is installed."""
    return {name: bench for name, bench in BENCHES.items() if importlib.util.find_spec(bench.module)}


def load(name: str) -> ModuleType:
    """The module of benchmark `name` (KeyError for an unknown one)."""
    return importlib.import_module(BENCHES[name].module)


def page(result: dict[str, Any]) -> str:
    """A result as a Markdown page: what ran where, the ratios, and a table with one column for each figure."""
    rows = result["rows"]
    columns = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if not key.endswith(("_low_ms", "_high_ms"))
    ]
    where = ", ".join(
        f"{key} {result[key]}"
        for key in (
            *("device", "commit", "torch", "cuda", "copy_bandwidth_gb_s", "matmul_tflop_s"),
            *("cores", "ingesters", "partitions", "shards"),
        )
        if key in result
    )
    lines = [f"# {result['bench']}", "", where, "", "| ratio | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in result["ratios"].items()]
    lines += ["", "Medians; in brackets the 10th and 90th percentile.", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row, column) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column, "")
    low, high = (row.get(column.replace("_ms", f"_{end}_ms")) for end in ("low", "high"))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if low is None or high is None or low == value else f"{text} ({low:.4g}-{high:.4g})"
