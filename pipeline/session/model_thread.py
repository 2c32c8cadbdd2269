"""One thread for all model work of a process: questions before reading, one job at a time.

A job is an article read or an answer written, so a question waits for at most one article. Nobody waits for ever:
where a job neither ends nor tells anything for `silent_limit_s` (a lost GPU, a kernel that hangs), all who wait are
told so, and the thread counts as dead.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

from pipeline.errors import DysraError

T = TypeVar("T")

QUESTION, READING = 0, 1
SILENT_LIMIT_S = 600.0
"""How long one article or one token may take: far above what a loaded machine needs."""
_STOP = 2
_END = object()
_LOOK_S = 1.0


class ModelSilent(DysraError):
    """The model has not moved for longer than it may; what was asked of it may be half done."""


class ModelThread:
    """Runs jobs by priority, and in order within one. `close` when done."""

    def __init__(self, name: str = "model", silent_limit_s: float = SILENT_LIMIT_S) -> None:
        # Bounded by who may ask: `serve.max_questions` and one reader, each with one job at a time.
        self._jobs: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._silent_limit_s = silent_limit_s
        self._look_s = min(_LOOK_S, silent_limit_s / 4)
        self._moved_at: float | None = None  # when the job at hand last told something; None: there is none
        self._order = itertools.count()
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still taken, and done."""
        return self._thread.is_alive() and not self._closed and not self.silent

    @property
    def silent(self) -> bool:
        """Whether the job at hand has told nothing for longer than it may."""
        moved_at = self._moved_at
        return moved_at is not None and time.monotonic() - moved_at > self._silent_limit_s

    def moved(self) -> None:
        """Note that the job at hand goes on."""
        self._moved_at = time.monotonic()

    def watched(self, take: Callable[[float], T], none_yet: type[BaseException]) -> T:
        """What `take(timeout_s)` gives, asked again while it raises `none_yet`; ModelSilent where nothing moves."""
        while True:
            try:
                return take(self._look_s)
            except none_yet:
                if self.silent:
                    raise ModelSilent(
                        f"the model has not moved for {self._silent_limit_s:g} s; its process is to be replaced"
                    ) from None
                if not self._thread.is_alive():
                    raise RuntimeError("the model's thread has ended") from None

    def lane(self, priority: int) -> Lane:
        """A runner (`ports.ModelRunner`) whose jobs have this priority."""
        return Lane(self, priority)

    def submit(self, job: Callable[[], T], priority: int) -> Future[T]:
        """The future result of `job`; RuntimeError once the thread has been closed."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            self.moved()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            finally:
                self._moved_at = None

        with self._closing:  # a job behind the stop would never be done, and its caller wait for ever
            if self._closed:
                raise RuntimeError("model work was asked for after the replica began to stop")
            self._jobs.put((priority, next(self._order), run))
        return future

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish the jobs given so far and end; safe to call twice."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put((_STOP, next(self._order), lambda: None))
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            priority, _, job = self._jobs.get()  # idle; `close` ends it
            if priority == _STOP:
                return
            job()


class Lane:
    """One priority of a model thread, as sessions and questions use it."""

    def __init__(self, thread: ModelThread, priority: int) -> None:
        self._thread = thread
        self._priority = priority

    def call(self, job: Callable[[], T]) -> T:
        """The result of `job`, computed on the model thread."""
        return _result(self._thread, self._thread.submit(job, self._priority))

    def iterate(self, job: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The items of the iterator that `job` makes, each as soon as it is there.

        The iterator is closed when the caller stops early; an error in it is raised here.
        """
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()  # as many as an answer has tokens
        abandoned = threading.Event()

        def drive() -> None:
            iterator = job()
            try:
                for item in iterator:
                    self._thread.moved()
                    if abandoned.is_set():
                        return
                    items.put(item)
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()

        future = self._thread.submit(drive, self._priority)
        future.add_done_callback(lambda _: items.put(_END))
        try:
            while (item := self._thread.watched(partial(items.get, True), queue.Empty)) is not _END:
                yield item
            _result(self._thread, future)
        finally:
            abandoned.set()
            future.cancel()


def _result(thread: ModelThread, future: Future[T]) -> T:
    """The future's result or error; its own TimeoutError is told apart from one of a look at it."""
    thread.watched(lambda limit_s: _done(future, limit_s), _NotYet)
    return future.result(timeout=0)


class _NotYet(Exception):
    """A look at a future that is not done."""


def _done(future: Future[Any], limit_s: float) -> None:
    wait([future], timeout=limit_s)
    if not future.done():
        raise _NotYet
