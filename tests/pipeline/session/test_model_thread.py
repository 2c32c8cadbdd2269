"""The model thread: one job at a time, questions first, iterators closed, errors handed back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from pipeline.session import model_thread
from pipeline.session.model_thread import QUESTION, READING, ModelSilent, ModelThread


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


def test_who_waits_for_a_model_that_does_not_move_is_told() -> None:
    """The caller of the job, one behind it, and one who waits for items; the thread counts as dead meanwhile."""
    thread, held, raised = ModelThread(silent_limit_s=0.2), threading.Event(), []

    def wait(what: object) -> None:
        lane = thread.lane(QUESTION)
        try:
            if what == "items":
                list(lane.iterate(lambda: iter(range(3))))
            else:
                lane.call(lambda: held.wait(30))
        except ModelSilent as error:
            raised.append(str(error))

    callers = [threading.Thread(target=wait, args=(what,), daemon=True) for what in ("call", "call", "items")]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(10)
    assert len(raised) == 3 and "has not moved for 0.2 s" in raised[0]
    assert thread.silent and not thread.alive
    held.set()
    assert thread.submit(lambda: 1, READING).result(10) == 1
    thread.close()


def test_a_slow_model_is_not_a_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many jobs ahead nor an answer of many tokens are silence, however long they take together."""
    now = [100.0]
    monkeypatch.setattr(model_thread, "time", SimpleNamespace(monotonic=lambda: now[0]))
    thread = ModelThread(silent_limit_s=0.5)
    silent: list[bool] = []

    def work() -> None:
        now[0] += 0.4
        silent.append(thread.silent)

    def tokens() -> Iterator[int]:
        for n in range(8):
            work()
            yield n

    for _ in range(8):
        thread.submit(work, QUESTION)
    assert list(thread.lane(READING).iterate(tokens)) == list(range(8))
    assert silent == [False] * 16 and thread.alive
    thread.close()


def test_a_job_that_times_out_itself_fails_as_itself(model: ModelThread) -> None:
    """An error that looks like that of a wait is the job's own."""

    def late() -> None:
        raise TimeoutError("the shard was late")

    with pytest.raises(TimeoutError, match="shard was late"):
        model.lane(QUESTION).call(late)
