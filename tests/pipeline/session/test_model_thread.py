"""The model thread: one job at a time, questions first, iterators closed, errors handed back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from pipeline.session.model_thread import QUESTION, READING, ModelThread


@pytest.fixture
def model() -> Iterator[ModelThread]:
    """A running thread, closed at the end."""
    thread = ModelThread()
    yield thread
    thread.close()


def test_questions_go_before_reading(model: ModelThread) -> None:
    """What waits is done by priority, and in order within one; the job at hand is finished first."""
    held, order = threading.Event(), []
    first = model.submit(lambda: held.wait(10), READING)
    futures = [
        model.submit(lambda n=name: order.append(n), priority)
        for name, priority in (("r1", READING), ("r2", READING), ("q1", QUESTION), ("q2", QUESTION))
    ]
    held.set()
    for future in [first, *futures]:
        future.result(10)
    assert order == ["q1", "q2", "r1", "r2"]


def test_all_jobs_run_on_one_thread(model: ModelThread) -> None:
    """Both lanes share one thread, so a model is never used twice at once."""
    lanes = [model.lane(QUESTION), model.lane(READING)]
    seen = {lane.call(threading.get_ident) for lane in lanes}
    seen |= set(lanes[0].iterate(lambda: iter([threading.get_ident()])))
    assert seen == {model._thread.ident}


def test_errors_reach_the_caller_and_the_thread_goes_on(model: ModelThread) -> None:
    """A job that fails fails its caller alone."""
    lane = model.lane(QUESTION)

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    got = []
    with pytest.raises(ValueError, match="broken"):
        for item in lane.iterate(broken):
            got.append(item)
    with pytest.raises(ZeroDivisionError):
        lane.call(lambda: 1 // 0)
    assert got == [1] and lane.call(lambda: 5) == 5


def test_abandoned_iterator_is_closed(model: ModelThread) -> None:
    """A caller that stops early ends the work, and the next job runs."""
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            closed.set()

    lane = model.lane(QUESTION)
    items = lane.iterate(endless)
    assert [next(items), next(items)] == [0, 1]
    items.close()  # type: ignore[attr-defined]
    assert closed.wait(10) and lane.call(lambda: "next") == "next"


def test_closed_thread_takes_no_more_work() -> None:
    """After the end a job is refused at once instead of waiting for ever."""
    thread = ModelThread()
    thread.close()
    with pytest.raises(RuntimeError, match="stop"):
        thread.lane(QUESTION).call(lambda: 1)
    assert not thread.alive


def test_no_job_is_given_to_a_thread_that_has_ended() -> None:
    """Of jobs that come while it closes each is done or refused; none is waited for in vain."""
    for _ in range(20):
        thread = ModelThread()
        futures: list[Future[int]] = []

        def give(thread: ModelThread = thread, futures: list[Future[int]] = futures) -> None:
            with contextlib.suppress(RuntimeError):
                while True:
                    futures.append(thread.submit(lambda: 1, QUESTION))

        giver = threading.Thread(target=give)
        giver.start()
        thread.close()
        giver.join(10)
        assert not giver.is_alive() and [future.result(10) for future in futures] == [1] * len(futures)
