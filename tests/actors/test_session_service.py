"""The asynchronous face of a replica: order, queues, limits, and clients that hang up."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.serve_config import ServeConfig
from actors.session_service import SessionService
from pipeline.session.answer import Question
from pipeline.session.chooser import HybridChooser
from pipeline.session.model_thread import READING
from pipeline.session.policy_chooser import PolicyChooser
from pipeline.session.state import SessionKey
from pipeline.session.summary import SummaryRequest
from tests.actors.session_support import make_service
from tests.pipeline.session.support import KEY, ShardLibrary, article, record, stocked
from tests.pipeline.session.test_policy_chooser import embed, policy

ASKED = Question(text="Which pier opened?")


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ShardLibrary]:
    """A store with five articles."""
    with stocked(tmp_path / "store", *(article(n) for n in range(5))) as shelf:
        yield shelf


@pytest.fixture
def serve(tmp_path: Path, library: ShardLibrary) -> Iterator[Callable[..., SessionService]]:
    """Makes services; all are closed at the end."""
    made: list[SessionService] = []

    def make(*, attend: str = "chosen", **limits: Any) -> SessionService:
        config = ServeConfig(no_auth=True, sessions_dir=tmp_path, **limits)
        topic = [record(n, article(n)) for n in range(5)]
        made.append(make_service(tmp_path / f"s{len(made)}", library, topic, config, attend=attend))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Gate:
    """Holds every search of a library until it is opened."""

    def __init__(self, library: ShardLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.asked: list[str] = []
        search = library.search

        def held(query: Any, deadline_s: float) -> Any:
            self.asked.append(query.text)
            self.entered.release()
            assert self.open.wait(30)
            return search(query, deadline_s)

        monkeypatch.setattr(library, "search", held)


async def answer(
    service: SessionService, question: Question = ASKED, key: SessionKey = KEY
) -> dict[str, Any]:
    """The last event of an answer."""
    last: dict[str, Any] = {}
    async for event in service.ask(key, question):
        last = event
    return last


async def soon(true: Callable[[], Any], what: str) -> None:
    """Wait for a condition, at most half a minute."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def test_questions_of_one_session_are_answered_in_order(
    serve: Callable[..., SessionService], library: ShardLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second question to a session waits for the first; one to another session does not."""
    service, gate = serve(), Gate(library, monkeypatch)

    async def run() -> None:
        first = asyncio.create_task(answer(service, Question(text="first?")))
        await soon(lambda: gate.asked == ["first?"], "the first question was not begun")
        second = asyncio.create_task(answer(service, Question(text="second?")))
        await service.create(SessionKey("local", "elsewhere"))
        other = asyncio.create_task(
            answer(service, Question(text="other?"), SessionKey("local", "elsewhere"))
        )
        await soon(lambda: "other?" in gate.asked, "the other session waited")
        assert "second?" not in gate.asked
        gate.open.set()
        assert [(await task)["kind"] for task in (first, second, other)] == ["done"] * 3

    asyncio.run(run())
    assert gate.asked == ["first?", "other?", "second?"]


def test_full_queues_are_429_with_a_time_to_wait(
    serve: Callable[..., SessionService], library: ShardLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many questions to a session, or to the replica, are refused at once; the rest are answered."""
    service = serve(max_questions=4, max_waiting_per_session=1, retry_after_s=7)
    gate = Gate(library, monkeypatch)

    async def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        other = [SessionKey("local", f"other{n}") for n in range(3)]
        for key in other:
            await service.create(key)
        here = [asyncio.create_task(answer(service)) for _ in range(3)]
        await soon(lambda: gate.asked, "no question was begun")
        there = [asyncio.create_task(answer(service, key=key)) for key in other]
        refused = [await here[2], await there[2]]
        gate.open.set()
        return refused, [await task for task in (*here[:2], *there[:2])]

    refused, answered = asyncio.run(run())
    assert [event["status"] for event in refused] == [429, 429]
    assert all(event["retry_after_s"] == 7 for event in refused)
    assert [event["kind"] for event in answered] == ["done"] * 4


def test_client_that_hangs_up_changes_nothing_and_frees_its_place(
    serve: Callable[..., SessionService],
) -> None:
    """Generation stops, the session's digest stays, and the next question is served."""
    service = serve(attend="both", max_questions=1, max_waiting_per_session=1)

    async def run() -> None:
        await service.create(KEY)
        await soon(lambda: service.pool.info(KEY)["state"] == "resident", "it did not catch up")  # type: ignore[index]
        before = await service.info(KEY, digest=True)
        asked = Question(text="Which pier opened on Monday?", max_new_tokens=250)
        async with aclosing(service.ask(KEY, asked)) as events:
            assert (await anext(events))["kind"] == "sources"
        task = asyncio.create_task(answer(service, asked))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        after = await service.info(KEY, digest=True)
        assert before is not None and after is not None and before["digest"] == after["digest"]
        assert (await answer(service))["kind"] == "done"

    asyncio.run(run())


def test_answer_that_takes_too_long_is_504(
    serve: Callable[..., SessionService], library: ShardLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question has a limit, and its place is free afterwards."""
    service, gate = serve(answer_timeout_s=0.3), Gate(library, monkeypatch)
    late = asyncio.run(answer(service))
    assert (late["kind"], late["status"]) == ("error", 504)
    gate.open.set()
    assert service._questions == 0 and service._turns == {}


def test_failures_become_refusals(
    serve: Callable[..., SessionService], library: ShardLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreachable store is 503 with a time to wait, an unknown stream 404, a defect 500 without details."""
    from pipeline.errors import DependencyUnreachable

    service = serve()
    assert asyncio.run(answer(service, key=SessionKey("local", "nowhere")))["status"] == 404

    def fail(error: Exception) -> Callable[..., Any]:
        def search(*_: Any) -> Any:
            raise error

        return search

    monkeypatch.setattr(library, "search", fail(DependencyUnreachable("no shard answers")))
    down = asyncio.run(answer(service))
    assert (down["status"], down["retry_after_s"]) == (503, 2) and "no shard" in down["message"]
    monkeypatch.setattr(library, "search", fail(OSError(errno.ENOSPC, "No space left on device", "/secret")))
    full = asyncio.run(answer(service))
    assert full["status"] == 503 and "No space left" in full["message"] and "/secret" not in full["message"]
    monkeypatch.setattr(library, "search", fail(RuntimeError("secret detail")))
    defect = asyncio.run(answer(service))
    assert defect["status"] == 500 and "secret" not in defect["message"]


def test_summary_takes_its_turn(serve: Callable[..., SessionService]) -> None:
    """A summary is served by the same rules as an answer."""
    service = serve()
    summary = asyncio.run(service.summarize(KEY, SummaryRequest(sentences=2)))
    assert len(summary["sources"]) == 2
    refused = asyncio.run(service.summarize(SessionKey("local", "nowhere"), SummaryRequest()))
    assert refused["status"] == 404


def test_health_tells_a_dead_thread(serve: Callable[..., SessionService]) -> None:
    """A replica whose reader has ended is not healthy."""
    service = serve()
    service.check()
    service.close()
    with pytest.raises(RuntimeError, match="reader"):
        service.check()


def test_health_tells_a_model_that_stands_still(serve: Callable[..., SessionService]) -> None:
    """Serve replaces such a replica; the question is refused with a time to wait, and its place is free."""
    service = serve()
    model, held = service.pool.model, threading.Event()
    model._silent_limit_s, model._look_s = 0.2, 0.05
    stuck = model.submit(lambda: held.wait(30), READING)
    try:
        refused = asyncio.run(answer(service))
        assert (refused["status"], refused["retry_after_s"]) == (503, 2)
        assert "has not moved for 0.2 s" in refused["message"]
        with pytest.raises(RuntimeError, match="stands still"):
            service.check()
    finally:
        held.set()
        model._silent_limit_s = 30.0  # on a crowded machine the next answer's tokens take longer than 0.2 s
    assert stuck.result(10)
    assert asyncio.run(answer(service))["kind"] == "done"


def test_a_promotion_reaches_running_sessions_and_changes_nothing_of_them(
    serve: Callable[..., SessionService], tmp_path: Path
) -> None:
    """The next question is chosen for by the new champion, by the same session: its bytes, epoch and place stay."""
    service, now, pointer = serve(attend="both"), [0.0], tmp_path / "champion.json"
    chooser = PolicyChooser(pointer, embed, HybridChooser(), poll_s=5.0, clock=lambda: now[0])
    service.pool.asking = replace(service.pool.asking, chooser=chooser)

    async def run() -> None:
        await service.create(KEY)
        await soon(lambda: service.pool.info(KEY)["state"] == "resident", "it did not catch up")  # type: ignore[index]
        before = await service.info(KEY, digest=True)
        assert (await answer(service))["kind"] == "done" and chooser.serving is None
        for number in (1, 2):
            folder = policy(tmp_path / f"v{number}", number)
            pointer.write_text(json.dumps({"folder": str(folder)}))
            now[0] += 6.0
            assert (await answer(service))["kind"] == "done"
            assert chooser.serving == folder
        after = await service.info(KEY, digest=True)
        assert before is not None and after is not None
        same = ("digest", "epoch", "articles_read", "records_seen", "restored")
        assert [before[name] for name in same] == [after[name] for name in same]

    asyncio.run(run())
