"""Searches that wait are joined: the same answers as alone, nobody forgotten, limits kept, no wait for company."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import Candidates, SearchRequest, Shard
from pipeline.store.joined import SearchQueue, join, kind, part
from tests.pipeline.store import make

LIMIT_S = 20.0


def filled(shard: Shard) -> None:
    """Sealed and growing rows, one withdrawn and one changed."""
    names = [f"{letter}{n}" for n in range(6) for letter in "abcdef"]
    make.put(shard, *(make.upsert(name, n, stream=name[0], num_chunks=2) for n, name in enumerate(names)))
    shard.seal()
    make.put(shard, make.delete("a0", 40), make.upsert("b1", 41, version=60, num_chunks=2), *(
        make.upsert(f"g{n}", 42 + n, stream="g", num_chunks=1) for n in range(5)
    ))  # fmt: skip


def requests() -> list[SearchRequest]:
    """Of several kinds and depths; no more rows tie than a list has room for, whose choice is the index's own."""
    made = []
    for number, name in enumerate(["a1", "b1", "c2", "g3", "f5", "d4", "a0", "e1"]):
        vector = make.vectors(name, 0, 1).astype(np.float32)
        made.append(SearchRequest(mode="dense", k=1 + number, vectors=vector))
        made.append(SearchRequest(mode="bm25", k=9 - number, texts=[f"marker{name} markerc2"]))
        made.append(SearchRequest(k=3, depth=3 + number, vectors=vector, texts=[f"marker{name} markerg1"]))
        made.append(SearchRequest(mode="dense", k=4, vectors=vector, streams=frozenset("ab")))
    return made


def told(found: Candidates) -> list[list[tuple[int, float | None, float | None]]]:
    """Both lists of each question, scores included."""
    return [
        [(p.chunk_id, p.dense_score, p.bm25_score) for p in one]
        for question in zip(found.dense, found.bm25, strict=True)
        for one in question
    ]


def test_joined_requests_find_what_each_finds_alone(shard: Shard) -> None:
    """Every kind and depth, sealed and growing, with rows that died: the same passages, scores and order."""
    filled(shard)
    by_kind: dict[object, list[SearchRequest]] = {}
    for request in requests():
        by_kind.setdefault(kind(request), []).append(request)

    assert len(by_kind) == 4
    for alike in by_kind.values():
        together = part(shard.candidates(join(alike)), alike)
        assert [told(one) for one in together] == [told(shard.candidates(request)) for request in alike]


def test_many_threads_get_their_own_answers(shard: Shard) -> None:
    """Each of 48 threads gets what it asked for, while others of its kind and of other kinds ask too."""
    filled(shard)
    asked = requests() * 12
    alone = {id(request): told(shard.candidates(request)) for request in asked[: len(requests())]}
    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda request: shard.candidates(request, LIMIT_S), asked))

    assert [told(answer) for answer in answers] == [alone[id(request)] for request in asked]


class Held:
    """Answers nothing until it is let go, and notes what it was asked."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[list[str]] = []
        self.failure: Exception | None = None

    def __call__(self, request: SearchRequest) -> Candidates:
        texts = list(request.texts or ())
        self.asked.append(texts)
        assert self.go.wait(LIMIT_S)
        if self.failure is not None:
            raise self.failure
        return Candidates(dense=[[] for _ in texts], bm25=[[] for _ in texts], generation=len(self.asked))


def ask(queue: SearchQueue, pool: ThreadPoolExecutor, *texts: str, limit_s: float | None = LIMIT_S, **fields):
    """A keyword search in a thread of its own, and the time for it to get in line."""
    request = SearchRequest(mode="bm25", texts=list(texts), **fields)
    future = pool.submit(queue.ask, request, limit_s)
    time.sleep(0.05)
    return future


def test_what_waits_behind_a_search_becomes_one_search() -> None:
    """While one runs, the next three of its kind wait; then they are one search. Another kind is not mixed in."""
    held = Held()
    queue = SearchQueue(held, workers=1, max_questions=64)
    with ThreadPoolExecutor(8) as pool:
        first = ask(queue, pool, "one")
        waiting = [ask(queue, pool, text) for text in ("two", "three", "four")]
        other = ask(queue, pool, "five", streams=frozenset("x"))
        held.go.set()
        for future in (first, *waiting, other):
            future.result(LIMIT_S)

    assert held.asked == [["one"], ["two", "three", "four"], ["five"]]
    assert (queue.num_requests, queue.num_batches) == (5, 3)


def test_a_search_that_finds_a_place_free_does_not_wait_for_others() -> None:
    """With two places the second search begins while the first still runs."""
    held = Held()
    queue = SearchQueue(held, workers=2, max_questions=64)
    with ThreadPoolExecutor(8) as pool:
        futures = [ask(queue, pool, "one"), ask(queue, pool, "two")]
        assert held.asked == [["one"], ["two"]]
        held.go.set()
        for future in futures:
            future.result(LIMIT_S)


def test_a_batch_holds_no_more_questions_than_allowed() -> None:
    """Five questions are allowed at once: of requests of two, two are joined."""
    held = Held()
    queue = SearchQueue(held, workers=1, max_questions=5)
    with ThreadPoolExecutor(8) as pool:
        futures = [ask(queue, pool, "one")]
        futures += [ask(queue, pool, text, text) for text in ("a", "b", "c")]
        held.go.set()
        for future in futures:
            future.result(LIMIT_S)

    assert held.asked == [["one"], ["a", "a", "b", "b"], ["c", "c"]]


def test_a_search_whose_time_is_over_is_neither_made_nor_waited_for() -> None:
    """One that waits longer than its limit raises, and the shard never searches for it."""
    held = Held()
    queue = SearchQueue(held, workers=1, max_questions=64)
    with ThreadPoolExecutor(8) as pool:
        first = ask(queue, pool, "one")
        late = ask(queue, pool, "late", limit_s=0.1)
        patient = ask(queue, pool, "patient")
        with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
            late.result(LIMIT_S)
        held.go.set()
        first.result(LIMIT_S)
        patient.result(LIMIT_S)

    assert held.asked == [["one"], ["patient"]]


def test_an_error_reaches_all_that_were_joined_and_the_next_search_is_made() -> None:
    """A failing search fails for those it was made for; the place is given on."""
    held = Held()
    queue = SearchQueue(held, workers=1, max_questions=64)
    with ThreadPoolExecutor(8) as pool:
        futures = [ask(queue, pool, text) for text in ("one", "two", "three")]
        held.failure = RuntimeError("broken")
        held.go.set()
        for future in futures:
            with pytest.raises(RuntimeError, match="broken"):
                future.result(LIMIT_S)
        held.failure = None
        ask(queue, pool, "four").result(LIMIT_S)

    assert held.asked == [["one"], ["two", "three"], ["four"]]


@settings(max_examples=20, deadline=None)
@given(
    workers=st.integers(1, 4),
    limit=st.integers(1, 8),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=40),
)
def test_every_caller_is_answered_once(workers: int, limit: int, sizes: list[tuple[int, bool]]) -> None:
    """Whatever arrives in whatever order: each caller gets its own questions' lists, and no search is lost."""

    def answer(request: SearchRequest) -> Candidates:
        texts = list(request.texts or ())
        time.sleep(0.0005)
        lists = [[text] for text in texts]
        return Candidates(dense=[[] for _ in texts], bm25=lists, generation=1)  # type: ignore[arg-type]

    queue = SearchQueue(answer, workers=workers, max_questions=limit)
    made = [
        SearchRequest(
            mode="bm25",
            texts=[f"{number}-{n}" for n in range(size)],
            streams=frozenset("x") if chosen else None,
        )
        for number, (size, chosen) in enumerate(sizes)
    ]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: queue.ask(request, LIMIT_S), made))

    assert [[one[0] for one in answer.bm25] for answer in answers] == [request.texts for request in made]
    assert queue.num_requests == len(made)
