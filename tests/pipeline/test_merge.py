"""Merging the shards' candidates."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.merge import merge_candidates
from pipeline.store import Candidates, Passage, SearchConfig, SearchRequest

FUSIONS = [
    SearchConfig(),
    SearchConfig(fusion="rrf"),
    SearchConfig(fusion="convex"),
    SearchConfig(fusion="convex", dense_weight=0.9),
]


def passage(chunk_id: int, dense: float | None, bm25: float | None) -> Passage:
    """A passage with scores and little else."""
    return Passage(
        chunk_id=chunk_id,
        article_id=f"a{chunk_id}",
        ordinal=0,
        text="",
        title="",
        source="",
        stream="",
        published_ms=0,
        version_ms=0,
        dense_score=dense,
        bm25_score=bm25,
    )


def candidates(passages: list[Passage], depth: int) -> Candidates:
    """What a shard with these passages returns: both lists, best first."""
    dense = sorted(passages, key=lambda p: (-(p.dense_score or 0.0), p.chunk_id))[:depth]
    words = [p for p in passages if p.bm25_score]
    bm25 = sorted(words, key=lambda p: (-(p.bm25_score or 0.0), p.chunk_id))[:depth]
    return Candidates(dense=[dense], bm25=[bm25], generation=1)


def request(k: int = 5, mode: str = "hybrid", depth: int = 0) -> SearchRequest:
    """One question."""
    return SearchRequest(
        k=k,
        mode=mode,
        depth=depth,
        vectors=None if mode == "bm25" else np.zeros((1, 2), dtype=np.float32),
        texts=None if mode == "dense" else ["q"],
    )


scores = st.floats(0, 1).map(lambda value: round(value, 1))
corpora = st.lists(st.tuples(scores, scores), min_size=0, max_size=30)


@given(corpus=corpora, num_shards=st.integers(1, 5), seed=st.integers(0, 99), depth=st.integers(5, 40))
@pytest.mark.parametrize("config", FUSIONS, ids=lambda config: f"{config.fusion}-{config.dense_weight}")
@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_sharding_changes_nothing(
    mode: str, config: SearchConfig, corpus: list[tuple[float, float]], num_shards: int, seed: int, depth: int
) -> None:
    """However passages are spread over shards, and in whatever order these answer, the result is the same."""
    passages = [passage(n, *pair) for n, pair in enumerate(corpus)]
    asked = request(5, mode, depth)
    whole = merge_candidates([candidates(passages, depth)], asked, config)
    generator = random.Random(seed)
    parts: list[list[Passage]] = [[] for _ in range(num_shards)]
    for one in passages:
        generator.choice(parts).append(one)
    per_shard = [candidates(part, depth) for part in parts]
    generator.shuffle(per_shard)
    assert merge_candidates(per_shard, asked, config) == whole


def test_reciprocal_ranks_are_weighted_and_counted_over_all_shards() -> None:
    """Exactly weight / (k + rank) over the global lists."""
    one = candidates([passage(1, 0.9, 1.0), passage(2, 0.5, 3.0)], 9)
    two = candidates([passage(3, 0.7, 2.0)], 9)
    config = SearchConfig(fusion="rrf", rrf_k=10.0, dense_weight=0.75)
    merged = merge_candidates([one, two], request(), config)[0]
    expected = {1: 0.75 / 11 + 0.25 / 13, 3: 0.75 / 12 + 0.25 / 12, 2: 0.75 / 13 + 0.25 / 11}
    assert [p.chunk_id for p in merged] == [1, 3, 2]
    assert {p.chunk_id: p.score for p in merged} == pytest.approx(expected)
    assert [(p.dense_rank, p.bm25_rank) for p in merged] == [(1, 3), (2, 2), (3, 1)]


def test_equal_scores_fall_to_the_smaller_chunk_id() -> None:
    """In every mode."""
    passages = [passage(n, 0.5, 1.0) for n in (9, 4, 7)]
    for mode in ("dense", "bm25", "hybrid"):
        merged = merge_candidates([candidates(passages, 9)], request(2, mode), SearchConfig(fusion="convex"))
        assert [p.chunk_id for p in merged[0]] == [4, 7]


@pytest.mark.parametrize("config", FUSIONS, ids=lambda config: f"{config.fusion}-{config.dense_weight}")
def test_hybrid_without_any_matching_word_is_the_dense_order(config: SearchConfig) -> None:
    """And nothing fails where no shard has anything."""
    passages = [passage(n, 1 / (n + 1), 0.0) for n in range(6)]
    merged = merge_candidates([candidates(passages, 9)], request(4), config)[0]
    assert [p.chunk_id for p in merged] == [0, 1, 2, 3]
    assert merge_candidates([candidates([], 9)], request(4), config) == [[]]
    assert merge_candidates([], request(4), config) == [[]]
