"""One thread for all model work of a process: questions before reading, one job at a time.

A job is an article read or an answer written, so a question waits for at most one article.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

QUESTION, READING = 0, 1
_STOP = 2
_END = object()


class ModelThread:
    """Runs jobs by priority, and in order within one. `close` when done."""

    def __init__(self, name: str = "model") -> None:
        self._jobs: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still taken."""
        return self._thread.is_alive() and not self._closed

    def lane(self, priority: int) -> Lane:
        """A runner (`ports.ModelRunner`) whose jobs have this priority."""
        return Lane(self, priority)

    def submit(self, job: Callable[[], T], priority: int) -> Future[T]:
        """The future result of `job`; RuntimeError once the thread has been closed."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

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
            priority, _, job = self._jobs.get()
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
        return self._thread.submit(job, self._priority).result()

    def iterate(self, job: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The items of the iterator that `job` makes, each as soon as it is there.

        The iterator is closed when the caller stops early; an error in it is raised here.
        """
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        abandoned = threading.Event()

        def drive() -> None:
            iterator = job()
            try:
                for item in iterator:
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
            while (item := items.get()) is not _END:
                yield item
            future.result()
        finally:
            abandoned.set()
            future.cancel()
