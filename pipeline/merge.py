"""One list of passages out of all shards' candidates: global lists first, then their fusion. Pure.

Ranks are counted over all shards, never within one, so the same passages come out however they are
sharded; equal scores fall to the smaller chunk id.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from pipeline.store.config import SearchConfig
from pipeline.store.records import Candidates, Passage, SearchRequest


def merge_candidates(
    per_shard: Sequence[Candidates], request: SearchRequest, config: SearchConfig | None = None
) -> list[list[Passage]]:
    """The best `request.k` passages of each question, best first, with the ranks of both lists.

    hybrid fuses as `config.fusion` says. `adaptive`: dense + bm25_weight * (1 - best dense) ** bm25_fade * BM25 /
    ln(1 + chunks): a question whose nearest chunk is near is the dense search's, others lean on their words, and
    BM25 keeps its size, which tells a good match of words from the best of bad ones. `convex` sums weighted scores,
    BM25 divided by its best (Bruch et al., arXiv 2210.11934); `rrf` sums weight / (rrf_k + rank) (Cormack et al.,
    2009).
    """
    config = config or SearchConfig()
    merged = []
    sizes = [candidates.num_chunks for candidates in per_shard if candidates.num_chunks]
    unit = math.log1p(sum(sizes) / len(sizes)) if sizes else 1.0
    for question in range(request.num_questions):
        dense = _global_list([c.dense[question] for c in per_shard], request.list_depth, _dense_score)
        bm25 = _global_list([c.bm25[question] for c in per_shard], request.list_depth, _bm25_score)
        merged.append(_fuse(dense, bm25, request, config, unit))
    return merged


def _fuse(
    dense: list[Passage], bm25: list[Passage], request: SearchRequest, config: SearchConfig, unit: float
) -> list[Passage]:
    dense_rank = {passage.chunk_id: rank for rank, passage in enumerate(dense, 1)}
    bm25_rank = {passage.chunk_id: rank for rank, passage in enumerate(bm25, 1)}
    passages = {passage.chunk_id: passage for passage in (*dense, *bm25)}
    if request.mode == "dense":
        scores = {passage.chunk_id: _dense_score(passage) for passage in dense}
    elif request.mode == "bm25":
        scores = {passage.chunk_id: _bm25_score(passage) for passage in bm25}
    elif config.fusion == "rrf":
        scores = _reciprocal_ranks(dense_rank, bm25_rank, config)
    elif config.fusion == "convex":
        scores = _convex(passages, config)
    else:
        scores = _adaptive(passages, config, unit)
    best = sorted(scores, key=lambda chunk_id: (-scores[chunk_id], chunk_id))[: request.k]
    return [
        dataclasses.replace(
            passages[chunk_id],
            score=scores[chunk_id],
            dense_rank=dense_rank.get(chunk_id),
            bm25_rank=bm25_rank.get(chunk_id),
        )
        for chunk_id in best
    ]


def _reciprocal_ranks(
    dense_rank: dict[int, int], bm25_rank: dict[int, int], config: SearchConfig
) -> dict[int, float]:
    scores: dict[int, float] = {}
    for ranks, weight in ((dense_rank, config.dense_weight), (bm25_rank, 1 - config.dense_weight)):
        for chunk_id, rank in ranks.items():
            scores[chunk_id] = scores.get(chunk_id, 0.0) + weight / (config.rrf_k + rank)
    return scores


def _adaptive(passages: dict[int, Passage], config: SearchConfig, unit: float) -> dict[int, float]:
    nearest = max((_dense_score(passage) for passage in passages.values()), default=0.0)
    weight = config.bm25_weight * max(0.0, 1 - nearest) ** config.bm25_fade / unit
    return {
        chunk_id: _dense_score(passage) + weight * _bm25_score(passage)
        for chunk_id, passage in passages.items()
    }


def _convex(passages: dict[int, Passage], config: SearchConfig) -> dict[int, float]:
    """Both scores are there for every candidate, so nothing is guessed for one that a list missed."""
    best = max((_bm25_score(passage) for passage in passages.values()), default=0.0) or 1.0
    return {
        chunk_id: config.dense_weight * _dense_score(passage)
        + (1 - config.dense_weight) * _bm25_score(passage) / best
        for chunk_id, passage in passages.items()
    }


def _global_list(
    lists: Sequence[list[Passage]], depth: int, score: Callable[[Passage], float]
) -> list[Passage]:
    every = {passage.chunk_id: passage for one in lists for passage in one}
    return sorted(every.values(), key=lambda passage: (-score(passage), passage.chunk_id))[:depth]


def _dense_score(passage: Passage) -> float:
    return passage.dense_score if passage.dense_score is not None else 0.0


def _bm25_score(passage: Passage) -> float:
    return passage.bm25_score if passage.bm25_score is not None else 0.0
