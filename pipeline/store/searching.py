"""Search in one shard: candidates of each list, with exact scores, for the merge over all shards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.store.core import SegmentView, ShardCore
from pipeline.store.records import Candidates, Passage, SearchRequest

_MARGIN = 16
Place = tuple[int, int]
"""A row: the number of its segment in the view, and the row in it."""


def candidates(core: ShardCore, request: SearchRequest) -> Candidates:
    """The best `list_depth` passages of each list; in hybrid mode each passage has both scores.

    Dense scores are inner products of the float16 vectors in float32, whatever index found them, so that
    equal vectors tie exactly and ties fall to the smaller chunk id.
    """
    if request.mode != "dense":
        core.commit_lexical()
    views = core.look(request)
    if (
        request.vectors is not None
        and request.mode != "bm25"
        and request.vectors.shape[1] != core.identity.dim
    ):
        raise ValueError(
            f"questions have vectors of width {request.vectors.shape[1]}; this store holds {core.identity.dim}"
        )
    dense, bm25 = [], []
    found = _nearest(views, request) if request.mode != "bm25" else None
    for number in range(request.num_questions):
        near = found[number] if found is not None else []
        words = _by_words(core, views, request, number) if request.mode != "dense" else {}
        dense_list, bm25_list = _lists(core, views, request, number, near, words)
        dense.append(dense_list)
        bm25.append(bm25_list)
    num_chunks = core.lexical.num_docs
    return Candidates(dense=dense, bm25=bm25, generation=core.checkpoint.generation, num_chunks=num_chunks)


def _nearest(views: list[SegmentView], request: SearchRequest) -> list[list[Place]]:
    """For each question the nearest rows over all segments, a few more than asked for."""
    queries = np.ascontiguousarray(request.vectors, dtype=np.float32)
    fetch = request.list_depth + _MARGIN
    scores, numbers, rows = [], [], []
    for number, view in enumerate(views):
        part, found = view.segment.search(queries, fetch, view.num_rows, view.allowed)
        scores.append(part)
        rows.append(found)
        numbers.append(np.full(found.shape, number, dtype=np.int64))
    if not scores:
        return [[] for _ in queries]
    all_scores, all_rows = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
    all_numbers = np.concatenate(numbers, axis=1)
    best = np.argsort(-all_scores, axis=1, kind="stable")[:, :fetch]
    return [
        [
            (int(all_numbers[question, at]), int(all_rows[question, at]))
            for at in best[question]
            if all_rows[question, at] >= 0
        ]
        for question in range(len(queries))
    ]


def _by_words(
    core: ShardCore, views: list[SegmentView], request: SearchRequest, question: int
) -> dict[Place, float]:
    """Rows that hold words of the question with their BM25 score, best first."""
    assert request.texts is not None
    hits = core.lexical.search(request.texts[question], request.list_depth + _MARGIN, request)
    if not hits:
        return {}
    ids = np.array([hit.chunk_id for hit in hits], dtype=np.int64)
    found: dict[int, Place] = {}
    for number, view in enumerate(views):
        rows = view.segment.find(ids)
        for at in np.flatnonzero((rows >= 0) & (rows < view.num_rows)):
            row = int(rows[at])
            # The index may not have seen the newest commit: only the version that it scored counts.
            visible = view.allowed is None or bool(view.allowed[row])
            if visible and int(view.segment.version_ms[row]) == hits[at].version_ms:
                found[int(at)] = (number, row)
    return {found[at]: hits[at].score for at in sorted(found)}


def _lists(
    core: ShardCore,
    views: list[SegmentView],
    request: SearchRequest,
    question: int,
    near: list[Place],
    words: dict[Place, float],
) -> tuple[list[Passage], list[Passage]]:
    union = list(dict.fromkeys([*near, *words]))
    exact: dict[Place, float] = {}
    if request.mode != "bm25" and request.vectors is not None:
        exact = _exact_scores(views, union, request.vectors[question])
    bm25 = dict(words)
    if request.mode == "hybrid" and request.texts is not None:
        ids = {_chunk_id(views, place): place for place in near if place not in words}
        rest = core.lexical.scores(request.texts[question], list(ids))
        bm25.update({place: rest.get(chunk_id, 0.0) for chunk_id, place in ids.items()})
    depth = request.list_depth
    dense_places = sorted(near, key=lambda p: (-exact[p], _chunk_id(views, p)))[:depth]
    bm25_places = sorted(words, key=lambda p: (-words[p], _chunk_id(views, p)))[:depth]
    passages: dict[Place, Passage] = {}
    for place in dict.fromkeys([*dense_places, *bm25_places]):
        passages[place] = _passage(views, place, exact.get(place), bm25.get(place))
    return [passages[place] for place in dense_places], [passages[place] for place in bm25_places]


def _exact_scores(
    views: list[SegmentView], places: list[Place], query: NDArray[np.float32]
) -> dict[Place, float]:
    scores: dict[Place, float] = {}
    for number in {number for number, _ in places}:
        rows = np.array([row for at, row in places if at == number], dtype=np.int64)
        values = np.einsum("nd,d->n", views[number].segment.vectors(rows), query.astype(np.float32))
        scores.update({(number, int(row)): float(value) for row, value in zip(rows, values, strict=True)})
    return scores


def _chunk_id(views: list[SegmentView], place: Place) -> int:
    return int(views[place[0]].segment.chunk_id[place[1]])


def _passage(
    views: list[SegmentView], place: Place, dense_score: float | None, bm25_score: float | None
) -> Passage:
    segment, row = views[place[0]].segment, place[1]
    chunk = segment.chunk(row)
    article_id, title, source, stream, url = segment.heading(int(segment.article[row]))
    return Passage(
        chunk_id=int(segment.chunk_id[row]),
        article_id=article_id,
        ordinal=chunk.ordinal,
        text=chunk.text,
        title=title,
        source=source,
        stream=stream,
        published_ms=int(segment.published_ms[row]),
        version_ms=int(segment.version_ms[row]),
        url=url,
        score=dense_score if dense_score is not None else (bm25_score or 0.0),
        dense_score=dense_score,
        bm25_score=bm25_score,
        num_tokens=chunk.num_tokens,
    )
