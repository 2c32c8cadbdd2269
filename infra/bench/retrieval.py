"""Recall@1, @5, @20 and MRR of BM25, dense and hybrid search on four question sets, over one shard.

    DYSRA_DATA=FOLDER dysra bench retrieval --out infra/bench/results

Only questions of the half that never tuned the fusion count. The passages are the whole Wikipedia corpus of the
data folder (83,073), so every set is searched among the others' passages too.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from infra.bench.measure import commit
from infra.evaluation.recall import COMPARED
from infra.evaluation.retrieval import METHODS, run_sets
from models.embed import load_embedder
from pipeline.errors import UsageError
from pipeline.store import SearchConfig

SETS = ("nq_open", "squad2", "hotpotqa", "musique")


def run(
    embedder: str = "minilm", num_questions: int = 5_000, num_passages: int = 1_000_000
) -> dict[str, Any]:
    """One row a set and method; the ratios are hybrid's over the better of the other two."""
    root = os.environ.get("DYSRA_DATA")
    if not root:
        raise UsageError("bench retrieval reads the question sets: set DYSRA_DATA to the data folder")
    sets = [Path(root) / "qa" / f"{name}.jsonl.zst" for name in SETS]
    results = run_sets(
        sets,
        Path(root) / "corpus" / "passages_wiki.jsonl.zst",
        METHODS,
        embedder=load_embedder(embedder),
        num_questions=num_questions,
        num_passages=num_passages,
    )
    rows, ratios, gains = [], {}, []
    for name, result in zip(SETS, results, strict=True):
        for method, scores in result["scores"].items():
            rows.append({"set": name, "n": result["n"], "method": method, **scores, **result["cost"][method]})
        gains += [{"set": name, "figure": figure, **gain} for figure, gain in result["gains"].items()]
        for figure in COMPARED:
            best = max(result["scores"][method][figure] for method in ("bm25", "dense"))
            ratios[f"{name} {figure}: hybrid / better single"] = round(
                result["scores"]["hybrid"][figure] / best, 4
            )
    search = SearchConfig()
    return {
        "bench": "retrieval",
        "device": "cpu",
        "machine": platform.processor() or platform.machine(),
        "commit": commit(),
        "embedder": results[0]["embedder"],
        "passages": results[0]["passages"],
        "chunks": results[0]["chunks"],
        "half": "report",
        "fusion": search.fusion,
        "bm25_weight": search.bm25_weight,
        "bm25_fade": search.bm25_fade,
        "rows": rows,
        "gains": gains,
        "ratios": ratios,
    }
