"""Search in one shard: candidates of each list, with exact scores, for the merge over all shards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.store.asking_words import ask_words
from pipeline.store.core import SegmentView, ShardCore
from pipeline.store.lexical import LexicalHit
from pipeline.store.records import Candidates, Passage, SearchRequest
from pipeline.store.segment import Fields
from pipeline.store.vector_index import Part

_MARGIN = 16
Place = tuple[int, int]
"""A row: the number of its segment in the view, and the row in it."""


@dataclass(slots=True)
class _Found:
    """Of one question: the places of each list, best first, and the scores of every place in them."""

    dense: list[Place] = field(default_factory=list)
    bm25: list[Place] = field(default_factory=list)
    dense_scores: dict[Place, float] = field(default_factory=dict)
    bm25_scores: dict[Place, float] = field(default_factory=dict)


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
    near = nearest(views, request) if request.mode != "bm25" else None
    words = [
        _by_words(core, views, request, number) if request.mode != "dense" else {}
        for number in range(request.num_questions)
    ]
    found = _scored(views, request, near, words)
    if request.mode == "hybrid":
        for number, one in enumerate(found):
            _complete(core, views, request, number, one)
    for one in found:
        _cut(views, one, request.list_depth)
    return _answer(core, views, found)


def nearest(views: list[SegmentView], request: SearchRequest) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each question the nearest rows over all segments, a few more than asked for.

    Returns segment numbers and rows [Q, f]; row -1 where fewer are visible.
    """
    queries = np.ascontiguousarray(request.vectors, dtype=np.float32)
    fetch = request.list_depth + _MARGIN
    if len(views) > 1:
        parts = [Part(view.segment.index, view.num_rows, view.allowed) for view in views]
        together = parts[0].held.begin_together(parts, queries, fetch)
        if together is not None:
            _, found_in, found_at = together()
            return found_in, found_at
    begun = [view.segment.begin(queries, fetch, view.num_rows, view.allowed) for view in views]
    scores, numbers, rows = [], [], []
    for number, finish in enumerate(begun):
        part, found = finish()
        scores.append(part)
        rows.append(found)
        numbers.append(np.full(found.shape, number, dtype=np.int64))
    if not scores:
        return np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0), dtype=np.int64)
    if len(scores) == 1:
        return numbers[0], rows[0].astype(np.int64, copy=False)
    all_scores, all_rows = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
    best = np.argsort(-all_scores, axis=1, kind="stable")[:, :fetch]
    all_numbers = np.concatenate(numbers, axis=1)
    return np.take_along_axis(all_numbers, best, 1), np.take_along_axis(all_rows, best, 1)


def _by_words(
    core: ShardCore, views: list[SegmentView], request: SearchRequest, question: int
) -> dict[Place, float]:
    """Rows that hold words of the question with their BM25 score, best first."""
    assert request.texts is not None
    text = request.texts[question]
    hits: list[LexicalHit] = ask_words(
        core,
        lambda index: index.search(text, request.list_depth + _MARGIN, request),
        otherwise=None if request.mode == "bm25" else [],
    )
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


def _scored(
    views: list[SegmentView],
    request: SearchRequest,
    near: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    words: list[dict[Place, float]],
) -> list[_Found]:
    """What either search found, with exact products where questions have vectors."""
    found = [_Found(bm25=list(one), bm25_scores=dict(one)) for one in words]
    if near is None or request.vectors is None:
        return found
    questions: dict[int, list[int]] = defaultdict(list)
    rows: dict[int, list[int]] = defaultdict(list)
    for question, one in enumerate(found):
        pairs = zip(near[0][question].tolist(), near[1][question].tolist(), strict=True)
        one.dense = [(number, row) for number, row in pairs if row >= 0]
        for number, row in dict.fromkeys([*one.dense, *one.bm25]):
            questions[number].append(question)
            rows[number].append(row)
    queries = request.vectors.astype(np.float32)
    for number, wanted in rows.items():
        vectors = views[number].segment.vectors(np.array(wanted, dtype=np.int64))
        scores = np.einsum("nd,nd->n", vectors, queries[questions[number]]).tolist()
        for question, row, score in zip(questions[number], wanted, scores, strict=True):
            found[question].dense_scores[number, row] = score
    return found


def _complete(
    core: ShardCore, views: list[SegmentView], request: SearchRequest, number: int, found: _Found
) -> None:
    """Give what only the vectors found its BM25 score too."""
    assert request.texts is not None
    ids = {_chunk_id(views, place): place for place in found.dense if place not in found.bm25_scores}
    text, nothing = request.texts[number], dict[int, float]()
    rest = ask_words(core, lambda index: index.scores(text, list(ids)), otherwise=nothing)
    found.bm25_scores.update({place: rest.get(chunk_id, 0.0) for chunk_id, place in ids.items()})


def _cut(views: list[SegmentView], found: _Found, depth: int) -> None:
    """Put both lists in order, ties by chunk id, and cut them."""
    for places, scores in ((found.dense, found.dense_scores), (found.bm25, found.bm25_scores)):
        places.sort(key=lambda p: (-scores[p], _chunk_id(views, p)))
        del places[depth:]


def _answer(core: ShardCore, views: list[SegmentView], found: list[_Found]) -> Candidates:
    fields = _fields(views, (place for one in found for place in (*one.dense, *one.bm25)))
    dense, bm25 = [], []
    for one in found:
        passages = {
            place: _passage(
                views, place, fields[place], one.dense_scores.get(place), one.bm25_scores.get(place)
            )
            for place in dict.fromkeys([*one.dense, *one.bm25])
        }
        dense.append([passages[place] for place in one.dense])
        bm25.append([passages[place] for place in one.bm25])
    return Candidates(
        dense=dense, bm25=bm25, generation=core.checkpoint.generation, num_chunks=core.lexical.num_docs
    )


def _fields(views: list[SegmentView], places: Iterable[Place]) -> dict[Place, Fields]:
    """What passages show of each place, read segment by segment."""
    rows: dict[int, list[int]] = defaultdict(list)
    for number, row in dict.fromkeys(places):
        rows[number].append(row)
    fields: dict[Place, Fields] = {}
    for number, wanted in rows.items():
        values = views[number].segment.passage_fields(wanted)
        fields.update(zip(((number, row) for row in wanted), values, strict=True))
    return fields


def _chunk_id(views: list[SegmentView], place: Place) -> int:
    return int(views[place[0]].segment.chunk_id[place[1]])


def _passage(
    views: list[SegmentView],
    place: Place,
    fields: Fields,
    dense_score: float | None,
    bm25_score: float | None,
) -> Passage:
    segment, row = views[place[0]].segment, place[1]
    ordinal, text, num_tokens, article_id, title, source, stream, url = fields
    return Passage(
        chunk_id=int(segment.chunk_id[row]),
        article_id=article_id,
        ordinal=ordinal,
        text=text,
        title=title,
        source=source,
        stream=stream,
        published_ms=int(segment.published_ms[row]),
        version_ms=int(segment.version_ms[row]),
        url=url,
        score=dense_score if dense_score is not None else (bm25_score or 0.0),
        dense_score=dense_score,
        bm25_score=bm25_score,
        num_tokens=num_tokens,
    )
