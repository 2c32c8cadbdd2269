"""Searching a shard: filters, both lists, ties, odd questions, and appends beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.merge import merge_candidates
from pipeline.store import (
    SearchRequest,
    Shard,
    Upsert,
    ids,
)
from tests.pipeline.store import make


@pytest.mark.parametrize("sealed", [False, True])
def test_filters_hold_in_both_lists(shard: Shard, sealed: bool) -> None:
    """Stream, source, publication time and version as of a date."""
    make.put(
        shard,
        make.upsert("a", 0, stream="one", source="X", num_chunks=1),
        make.upsert("b", 1, stream="two", source="X", hours=5, num_chunks=1),
        make.upsert("c", 2, stream="two", source="Y", hours=10, num_chunks=1, version=60),
    )
    if sealed:
        shard.seal()
    start = make.article("a").published_ms
    cases = [
        ({}, "abc"),
        ({"streams": frozenset({"two"})}, "bc"),
        ({"streams": frozenset({"one", "nowhere"})}, "a"),
        ({"streams": frozenset()}, ""),
        ({"sources": frozenset({"X"})}, "ab"),
        ({"since_ms": start + 1}, "bc"),
        ({"since_ms": start + 5 * 3_600_000}, "bc"),
        ({"as_of_ms": start + 10 * 3_600_000}, "ab"),
        ({"as_of_ms": start + 10 * 3_600_000 + 60_000}, "abc"),
        ({"as_of_ms": start - 1}, ""),
        ({"sources": frozenset({"X"}), "streams": frozenset({"two"}), "since_ms": start}, "b"),
    ]
    for filters, expected in cases:
        for request in (make.near("a", k=10, **filters), make.says("says", k=10, **filters)):
            names = "".join(sorted(name for name, _ in make.found(shard, request)))
            assert names == expected, (filters, request.mode)


def test_hybrid_candidates_have_both_scores(shard: Shard) -> None:
    """Each list's passages carry the other search's score, also where that search did not list them."""
    make.put(shard, *(make.upsert(name, n, num_chunks=1) for n, name in enumerate("abcdef")))
    shard.seal()
    make.put(shard, *(make.upsert(name, n, num_chunks=1) for n, name in enumerate("ghijkl", 6)))
    question = make.vectors("b", 0, 1).astype(np.float32)
    request = SearchRequest(k=2, depth=2, vectors=question, texts=["markerk"])
    candidates = shard.candidates(request)
    assert candidates.dense[0][0].article_id == "b"
    assert candidates.dense[0][0].bm25_score == 0.0
    assert [passage.article_id for passage in candidates.bm25[0]] == ["k"]
    expected = float(make.vectors("k", 0, 1)[0].astype(np.float32) @ question[0])
    assert candidates.bm25[0][0].dense_score == pytest.approx(expected, abs=1e-6)


def test_equal_scores_fall_to_the_smaller_chunk_id(shard: Shard) -> None:
    """The order of equal vectors does not depend on the segment that holds them."""
    same = make.vectors("same", 0, 1)
    records = []
    for n, name in enumerate("abcdefgh"):
        made = make.upsert(name, n, num_chunks=1)
        records.append(
            Upsert(coordinate=made.coordinate, article=made.article, chunks=made.chunks, vectors=same)
        )
    make.put(shard, *records[:4])
    shard.seal()
    make.put(shard, *records[4:])
    passages = shard.candidates(make.near("same", k=5, depth=5)).dense[0]
    assert len({passage.score for passage in passages}) == 1
    assert [p.chunk_id for p in passages] == sorted(ids.chunk_id(name, 0) for name in "abcdefgh")[
        : len(passages)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "AND OR NOT",
        '"',
        "title:(",
        "a:b^2~ *?",
        "\x00\ud800",
        "(" * 5000,
        "词 слово",
        "[1 TO",
        "-x +y",
        "\\",
    ],
)
def test_no_question_makes_keyword_search_raise(shard: Shard, text: str) -> None:
    """Untrusted text is words, never a query language."""
    make.put(shard, make.upsert("a", 0))
    shard.candidates(make.says(text))


def test_words_are_found_by_their_stem_and_without_accents(shard: Shard) -> None:
    """English stems; letters fold to ASCII."""
    made = make.upsert("a", 0, num_chunks=1)
    chunk = type(made.chunks[0])(0, "Négotiations collapsed", 3, 0, 3)
    make.put(
        shard, Upsert(coordinate=made.coordinate, article=made.article, chunks=[chunk], vectors=made.vectors)
    )
    for text in ("negotiation", "collapsing", "COLLAPSE", "title", "of", "who collapsed?"):
        assert make.found(shard, make.says(text)) == [("a", 0)], text


def test_searches_beside_appends_see_each_version_whole(tmp_path: Path) -> None:
    """While versions replace each other, a search sees exactly one of them: never none, never two."""
    shard = make.open_shard(tmp_path, seal_rows=32, merge_segments=2)
    make.put(shard, make.upsert("a", 0, num_chunks=3, stream="solo"))
    failures: list[str] = []
    done = threading.Event()

    def search() -> None:
        request = make.near("a", k=50, streams=frozenset({"solo"}))
        while not done.is_set():
            passages = shard.candidates(request).dense[0]
            texts = [p.text for p in passages if p.article_id == "a"]
            versions = {text.split("says ")[1].split()[0] for text in texts}
            if len(texts) != 3 or len(versions) != 1:
                failures.append(f"{texts}")
            done.wait(0.002)  # without it two that search take the interpreter from the one that writes

    searchers = [threading.Thread(target=search) for _ in range(2)]
    for thread in searchers:
        thread.start()
    for version in range(1, 41):
        make.put(
            shard,
            make.upsert("a", 2 * version - 1, version, 3, stream="solo"),
            make.upsert(f"n{version}", 2 * version, 0, 2),
        )
        if version % 15 == 0:
            shard.compact()
    done.set()
    for thread in searchers:
        thread.join(timeout=60)
    assert failures == []
    assert shard.stats()["live_chunks"] == 3 + 40 * 2
    shard.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "dense"},
        {"mode": "bm25"},
        {"mode": "hybrid", "texts": ["a", "b"], "vectors": np.zeros((1, 8), dtype=np.float32)},
        {"mode": "other", "texts": ["a"]},
        {"mode": "bm25", "texts": ["a"], "k": 0},
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(fields: dict) -> None:
    """Missing vectors or texts, unequal numbers, an unknown mode, no results."""
    with pytest.raises(ValueError, match=r"mode|hybrid|k is"):
        SearchRequest(**fields)


def test_questions_of_another_width_are_refused(shard: Shard) -> None:
    """Vectors of another embedder cannot be compared."""
    with pytest.raises(ValueError, match="width 3; this store holds 8"):
        shard.candidates(SearchRequest(mode="dense", vectors=np.zeros((1, 3), dtype=np.float32)))


def test_a_store_without_embedding_answers_hybrid_questions_by_words(tmp_path: Path) -> None:
    """Zero vectors of width 1 (embedder "none") score nothing, so BM25 alone orders what is found."""
    with contextlib.closing(Shard.open(tmp_path, make.config(), 0, 1, "none-1", 1)) as shard:
        for offset, name in enumerate(("one", "two", "three")):
            record = make.upsert(name, offset)
            zeros = np.zeros((len(record.chunks), 1), dtype=np.float16)
            make.put(shard, dataclasses.replace(record, vectors=zeros))
        asked = SearchRequest(
            mode="hybrid", k=2, vectors=np.zeros((1, 1), dtype=np.float32), texts=["markertwo"]
        )
        found = merge_candidates([shard.candidates(asked)], asked)[0]
        assert {passage.article_id for passage in found} == {"two"}
