"""Sessions of one process: opened, read in turn, saved, put to rest, resumed, limited, removed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DysraError
from pipeline.session.answer import Question
from pipeline.session.places import TooManySessions
from pipeline.session.pool import SessionPool
from pipeline.session.state import SessionKey
from tests.pipeline.session.pool_case import TOPIC, caught_up, library, pool, twin_digest, until
from tests.pipeline.session.support import KEY, STREAM

__all__ = ["library", "pool"]  # fixtures


def test_session_reads_its_topic_to_the_end(pool: Callable[..., SessionPool]) -> None:
    """An opened session reads by itself, and ends where an undisturbed one ends."""
    page = caught_up(pool())
    assert page["articles_read"] == 8 and page["lag"] == {"records": 0, "seconds": 0.0}
    assert page["digest"] == twin_digest()


def test_session_without_a_farewell_comes_back_equal(pool: Callable[..., SessionPool]) -> None:
    """A session whose process ends anywhere is restored, replays, and has the same bytes."""
    topic = list(TOPIC[:3])
    first = pool(topic, "killed")
    caught_up(first)
    first._stopped.set()  # ends as a kill does: nothing is saved on the way out
    first._reader.join(10)
    first._residents.clear()
    page = caught_up(pool(TOPIC, "successor"))
    assert page["restored"] and page["epoch"] == 2
    assert page["digest"] == twin_digest()


def test_closing_saves_what_was_read(pool: Callable[..., SessionPool]) -> None:
    """A drained pool leaves a snapshot of the last article; the next one has nothing to read again."""
    first = pool()
    caught_up(first)
    assert first.close() == []
    second = pool([], "two")
    page = until(lambda: (p := second.open(KEY).info())["articles_read"] == 8 and p, "not restored")
    assert page["restored"] and second.info(KEY, digest=True)["digest"] == twin_digest()  # type: ignore[index]


def test_too_many_sessions_rest_in_their_snapshots(pool: Callable[..., SessionPool]) -> None:
    """Over the limit the session used longest ago is saved and let go, and comes back when asked."""
    crowd = pool(max_resident=2)
    keys = [SessionKey("local", name) for name in ("one", "two", STREAM)]
    for key in keys:
        caught_up(crowd, key)
    until(lambda: len(crowd._residents) == 2, "nobody was put to rest")
    assert crowd.info(keys[0]) == {"stream": "one", "state": "stored"}
    assert crowd.stored("local") == sorted(["one", "two", STREAM])
    page = caught_up(crowd, keys[0])
    assert page["restored"]


def test_resumed_pool_opens_what_was_in_memory(pool: Callable[..., SessionPool]) -> None:
    """After a restart the sessions of the process's own slots go on by themselves, others do not."""
    first = pool()
    for name in (STREAM, "theirs"):
        caught_up(first, SessionKey("local", name))
    first.close()
    second = pool(TOPIC, "two")
    assert second.resume(lambda key: key.stream == STREAM) == [KEY]
    assert list(second._residents) == [KEY]


def test_question_leaves_the_session_as_it_was(pool: Callable[..., SessionPool]) -> None:
    """An answer, and one that is broken off, change no byte; the model is free for the next."""
    one = pool(attend="both")
    before = caught_up(one)["digest"]
    assert [event.kind for event in one.ask(KEY, Question(text="Which pier?"))][-1] == "done"
    cancelled = threading.Event()
    events = one.ask(KEY, Question(text="Which pier opened on Monday?", max_new_tokens=200), cancelled)
    next(events)
    cancelled.set()
    events.close()
    assert one.info(KEY, digest=True)["digest"] == before  # type: ignore[index]
    assert one._residents[KEY].users == 0
    assert [event.kind for event in one.ask(KEY, Question(text="And now?"))][-1] == "done"


def test_tenant_has_no_more_sessions_than_it_may(pool: Callable[..., SessionPool]) -> None:
    """A further session is refused by name; those at rest count, and open as ever; another tenant is free."""
    one = pool(max_per_tenant=2, max_resident=1)
    one.open(KEY)
    one.open(SessionKey(KEY.tenant, "second"))
    until(lambda: one.info(KEY) == {"stream": STREAM, "state": "stored"}, "not put to rest")
    with pytest.raises(TooManySessions, match=r"2 sessions.*session\.max_per_tenant"):
        one.open(SessionKey(KEY.tenant, "third"))
    assert one.info(SessionKey(KEY.tenant, "third")) is None
    one.open(KEY)
    one.open(SessionKey("another", "third"))
    assert sorted(one.stored(KEY.tenant)) == sorted([STREAM, "second"])


def test_no_limit_of_sessions_is_a_setting(pool: Callable[..., SessionPool]) -> None:
    """0 lets a tenant have as many as it asks for."""
    one = pool(max_per_tenant=0)
    for number in range(5):
        one.open(SessionKey(KEY.tenant, f"stream {number}"))
    assert len(one.stored(KEY.tenant)) == 5


def test_removed_session_is_gone_with_its_snapshots(pool: Callable[..., SessionPool], tmp_path: Path) -> None:
    """Answers under way end first, new ones are refused; afterwards the stream is as if it was never opened."""
    one = pool(max_per_tenant=1)
    caught_up(one)
    under_way = one.ask(KEY, Question(text="Which pier?"))
    assert next(under_way).kind == "sources"
    done: list[bool] = []
    removing = threading.Thread(target=lambda: done.append(one.remove(KEY)), daemon=True)
    removing.start()
    until(lambda: one._residents[KEY].unwanted, "not begun")
    with pytest.raises(DysraError, match="being removed"):
        next(one.ask(KEY, Question(text="Which pier?")))
    assert [event.kind for event in under_way][-1] == "done"
    removing.join(30)
    assert done == [True] and one.info(KEY) is None and one.stored(KEY.tenant) == []
    assert list((tmp_path / "sessions").rglob("*.safetensors")) == []
    assert not one.remove(KEY)
    one.open(SessionKey(KEY.tenant, "another"))  # there is room again
    until(lambda: one.info(SessionKey(KEY.tenant, "another"))["state"] != "restoring", "not opened")  # type: ignore[index]
