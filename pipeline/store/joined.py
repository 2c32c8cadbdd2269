"""Searches that wait are answered together: one product, one scan and one look at the segments for all of them.

No thread of its own and no waiting for company: a caller that finds a place free searches at once; one that finds
none waits, and the first of those that still wait takes the place over when it falls free, and others along. With
one client nothing changes; with many, the searches of one batch share what they cost.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.store.records import Candidates, SearchRequest

_CPU_WORKERS = 4


def kind(request: SearchRequest) -> tuple[object, ...]:
    """Requests of one kind can be joined: they see the same rows and ask for the same lists."""
    width = None if request.vectors is None else request.vectors.shape[1]
    return request.mode, request.streams, request.sources, request.since_ms, request.as_of_ms, width


def join(requests: Sequence[SearchRequest]) -> SearchRequest:
    """All questions of requests of one kind as one request, as deep as the deepest."""
    first = requests[0]
    if len(requests) == 1:
        return first
    deepest = max(request.list_depth for request in requests)
    return dataclasses.replace(
        first,
        k=max(request.k for request in requests),
        depth=deepest,
        vectors=None
        if first.vectors is None
        else np.concatenate([r.vectors for r in requests if r.vectors is not None]),
        texts=None if first.texts is None else [text for r in requests for text in r.texts or ()],
    )


def part(found: Candidates, requests: Sequence[SearchRequest]) -> list[Candidates]:
    """What `join(requests)` found, for each request: its own questions, no deeper than it asked."""
    parts, at = [], 0
    for request in requests:
        end, depth = at + request.num_questions, request.list_depth
        parts.append(
            dataclasses.replace(
                found,
                dense=[passages[:depth] for passages in found.dense[at:end]],
                bm25=[passages[:depth] for passages in found.bm25[at:end]],
            )
        )
        at = end
    return parts


@dataclass(slots=True, eq=False)
class _Waiting:
    """A caller: its request, and what became of it."""

    request: SearchRequest
    woken: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    found: Candidates | None = None
    error: BaseException | None = None

    @property
    def over(self) -> bool:
        return self.found is not None or self.error is not None


class SearchQueue:
    """Lets a few searches run at a time, and joins those that wait meanwhile."""

    def __init__(
        self, answer: Callable[[SearchRequest], Candidates], *, workers: int, max_questions: int
    ) -> None:
        if workers < 1 or max_questions < 1:
            raise ValueError(
                f"workers is {workers} and max_questions {max_questions}; both must be at least 1"
            )
        self._answer = answer
        self._max_questions = max_questions
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._free = self._workers = workers
        self.num_requests = 0
        self.num_batches = 0
        """How often several searches became one: requests answered, and the searches that were made for them."""

    @classmethod
    def on(cls, device: str, answer: Callable[[SearchRequest], Candidates]) -> SearchQueue:
        """As a shard on this device wants it: a GPU is kept busy by two, and by more questions at once."""
        cores = os.cpu_count() or 1
        if device == "cpu":
            return cls(answer, workers=min(_CPU_WORKERS, cores), max_questions=64)
        return cls(answer, workers=min(2, cores), max_questions=256)

    def ask(self, request: SearchRequest, limit_s: float | None = None) -> Candidates:
        """What the shard finds; TimeoutError where `limit_s` is over before the search has begun or ended.

        A request that is given up before its turn costs nothing; one that is being answered is answered for the
        others, and not waited for.
        """
        deadline = None if limit_s is None else time.monotonic() + limit_s
        one = _Waiting(request)
        with self._lock:
            self._waiting.append(one)
            if self._free:
                self._free -= 1
                one.leads = True
        if not one.leads and not self._woken(one, deadline):
            raise TimeoutError(f"the shard did not get to this search within {limit_s} s")
        if one.leads:
            self._lead(one)
        if one.error is not None:
            raise one.error
        assert one.found is not None
        return one.found

    def _woken(self, one: _Waiting, deadline: float | None) -> bool:
        """Wait until it is answered or has to lead; False where its time was over first."""
        if one.woken.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            return True
        with self._lock:
            if one.leads or one.over:  # it came between the end of the wait and the lock
                return True
            if one in self._waiting:
                self._waiting.remove(one)
            return False

    def _lead(self, one: _Waiting) -> None:
        """Search for this caller and for others of its kind that wait; then hand the place over."""
        try:
            with self._lock:
                batch = self._take(one)
            self._search(batch)
        finally:
            with self._lock:
                self._hand_over()

    def _take(self, leader: _Waiting) -> list[_Waiting]:
        """The leader and, oldest first, its share of those that it can take along."""
        self._waiting.remove(leader)
        wanted, questions = kind(leader.request), leader.request.num_questions
        # The other places fall free soon too: one that took all would leave them idle.
        share = -(-len(self._waiting) // self._workers)
        batch, left = [leader], deque[_Waiting]()
        while self._waiting and len(batch) <= share:
            one = self._waiting.popleft()
            joins = questions + one.request.num_questions <= self._max_questions
            # One that has been asked to lead will come and take for itself.
            if joins and not one.leads and kind(one.request) == wanted:
                batch.append(one)
                questions += one.request.num_questions
            else:
                left.append(one)
        self._waiting.extendleft(reversed(left))
        return batch

    def _search(self, batch: list[_Waiting]) -> None:
        requests = [one.request for one in batch]
        try:
            parts = part(self._answer(join(requests)), requests)
        except BaseException as error:
            for one in batch:
                one.error = error
        else:
            for one, found in zip(batch, parts, strict=True):
                one.found = found
        with self._lock:
            self.num_requests += len(batch)
            self.num_batches += 1
        for one in batch:
            one.woken.set()

    def _hand_over(self) -> None:
        """Give the place to the oldest caller that has none, or set it free."""
        heir = next((one for one in self._waiting if not one.leads), None)
        if heir is None:
            self._free += 1
        else:
            heir.leads = True
            heir.woken.set()
