"""Articles that a session has read and that change where it does not read: dropped because the store says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.article import Article
from pipeline.errors import DependencyUnreachable
from pipeline.session.answer import Question
from pipeline.session.config import SessionConfig
from pipeline.session.elsewhere import Elsewhere, Watch
from pipeline.session.pool import SessionPool
from pipeline.session.ports import Changed, Place
from pipeline.session.session import Session
from pipeline.session.state import SessionState
from pipeline.source import Record
from tests.actors.session_support import ListTail, make_pool
from tests.pipeline.session.pool_case import caught_up, until
from tests.pipeline.session.support import KEY, ShardLibrary, article, new_session, record, stocked

LATER = {"updated": "2024-03-20T00:00:00Z"}
MOVED = article(1, **LATER, stream="elsewhere", text="Pier 1 stays shut, the other desk now says.")
TOPIC = [record(n, article(n)) for n in range(4)]


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ShardLibrary]:
    """A store with the topic's articles."""
    with stocked(tmp_path / "store", *(article(n) for n in range(4))) as shelf:
        yield shelf


class _Seen:
    """A session that has read TOPIC, its watch, and what looks for it."""

    def __init__(self, library: Any, topic: list[Record]) -> None:
        self.session, self.watch, self.topic = new_session(), Watch(), topic
        self.tail: Any = ListTail(topic)
        self.tail.open(None)
        stopped = threading.Event()
        stopped.set()  # its thread ends at once: the test looks
        self.elsewhere = Elsewhere(
            lambda: [(self.watch, self.session)], lambda: library, lambda: 0.0, stopped
        )
        self.read(len(topic))

    def read(self, limit: int) -> None:
        for reading in self.session.read(self.tail.next_records(limit)):
            if reading.kind != "withdrawal":
                self.watch.note(reading.article_id)

    def due(self) -> list[str]:
        found = self.watch.due(self.session, self.tail)
        for reading in found:
            self.session.drop(reading)
        return [reading.article_id for reading in found]

    def look(self) -> list[str]:
        self.due()  # as its reader does before: what was read earlier is looked up too
        self.elsewhere.look()
        return self.due()


def test_an_article_that_moved_to_another_partition_is_dropped_once(library: ShardLibrary) -> None:
    """No record of the session tells of it; its tokens leave, a rebuild is asked for, its title is forgotten."""
    seen = _Seen(library, TOPIC)
    assert seen.look() == []
    library.add(MOVED)
    counted = seen.session.state.counts.seen
    assert seen.look() == ["a1"]
    state = seen.session.state
    assert state.read["a1"].withdrawn and state.read["a1"].title == "" and state.rebuild_from is not None
    assert state.read["a1"].version_ms == MOVED.version_ms
    assert (state.counts.elsewhere, state.counts.withdrawn, state.counts.seen) == (1, 0, counted)
    assert seen.look() == []
    back = article(1, updated="2024-03-21T00:00:00Z")
    assert [one.kind for one in seen.session.read([record(4, article(1)), record(5, back)])] == ["update"]
    assert SessionState.from_json(state.to_json()).counts.elsewhere == 1


def test_a_withdrawal_published_on_another_partition_is_heard_of(library: ShardLibrary) -> None:
    """The store has no such article any more."""
    seen = _Seen(library, TOPIC)
    library.delete("a2")
    assert seen.look() == ["a2"]


def test_what_the_sessions_own_records_tell_is_left_to_them(library: ShardLibrary) -> None:
    """Corrections of the stream, and withdrawals that are still to be read: in the order of the records."""
    topic = [*TOPIC]
    seen = _Seen(library, topic)
    library.add(article(3, **LATER))
    assert seen.look() == []
    topic += [record(4, article(4)), record(5, None, key=b"a2"), record(6, article(6))]
    library.delete("a2")
    assert seen.look() == []
    seen.read(1)
    assert seen.due() == []
    seen.read(2)
    assert seen.due() == [] and seen.session.state.counts.withdrawn == 1
    twin = new_session()
    twin.read(topic)
    assert seen.session.snapshot() == twin.snapshot()


def test_a_move_is_not_acted_on_before_what_was_published_is_read(library: ShardLibrary) -> None:
    """The order of the session's own records stays, and a stream that never stands still cannot put it off."""
    topic = [*TOPIC]
    seen = _Seen(library, topic)
    library.add(MOVED)
    topic += [record(4, article(4)), record(5, article(5))]
    assert seen.look() == []
    topic.append(record(6, article(6)))  # published after the move was heard of
    seen.read(1)
    assert seen.due() == []
    seen.read(1)
    assert seen.due() == ["a1"] and seen.tail.lag() == 1


def test_an_article_read_after_the_store_was_told_of_the_move_is_looked_up(library: ShardLibrary) -> None:
    """A session behind its stream reads the old form long after the change was made."""
    topic = TOPIC[:1]
    seen = _Seen(library, topic)
    library.add(MOVED)
    assert seen.look() == []
    topic += TOPIC[1:]
    seen.read(3)
    assert seen.look() == ["a1"]


def test_a_restored_session_hears_of_what_moved_meanwhile(library: ShardLibrary) -> None:
    """Whoever takes it over has no cursor of its own: all that stands is looked up once."""
    library.add(MOVED)
    seen = _Seen(library, TOPIC)
    before = Session.restore(KEY, seen.session.parts, seen.session.snapshot())
    again = _Seen(library, [])
    again.session = before
    assert again.look() == ["a1"]


def test_where_changes_were_lost_all_that_stands_is_looked_up(library: ShardLibrary) -> None:
    """The store keeps a bounded list; one that begins after the cursor says so."""
    seen = _Seen(library, TOPIC)
    assert seen.look() == []
    library.add(MOVED)
    library.changes = lambda cursor: Changed(frozenset(), (9,), True)  # type: ignore[method-assign]
    assert seen.look() == []
    assert seen.look() == ["a1"]


def test_an_outage_forgets_nothing(library: ShardLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look begins where the last whole one ended."""
    seen = _Seen(library, TOPIC)
    assert seen.look() == []
    library.add(MOVED)
    with monkeypatch.context() as broken:

        def places(names: Any) -> dict[str, Place]:
            raise DependencyUnreachable("shard 0 does not answer")

        broken.setattr(library, "places", places)
        with pytest.raises(DependencyUnreachable):
            seen.look()
    assert seen.look() == ["a1"]


def _cited(pool: SessionPool, text: str) -> str:
    events = list(pool.ask(KEY, Question(text=text)))
    return " ".join(str(event.data) for event in events)


def test_a_pools_session_drops_it_and_no_answer_cites_it(tmp_path: Path, library: ShardLibrary) -> None:
    """Told in its events and on its page, rebuilt in the background, and saved: a successor has not read it."""
    pool = make_pool(tmp_path / "sessions", library, TOPIC, elsewhere_every_s=0.05, rebuild_within_s=30.0)
    try:
        caught_up(pool)
        assert "quay 1" in _cited(pool, "What did the mayor of quay 1 say?")
        library.add(MOVED)
        until(lambda: (page := pool.info(KEY)) and page["rebuilds"] and not page["rebuilding"], "no rebuild")
        events = pool.events_after(KEY, 0)
        told = [(e["what"], e["article_id"]) for e in events if e["event"] == "retracted"]
        assert told == [("withdrawal", "a1")]
        titles = {e["offset"]: e["title"] for e in events if e["event"] == "read"}
        assert titles[1] is None and titles[2] == "Pier 2 opens"
        page = pool.info(KEY)
        assert page is not None and (page["dropped_elsewhere"], page["retractions"]) == (1, 1)
        assert "quay 1" not in _cited(pool, "What did the mayor of quay 1 say?")
        twin = new_session()
        twin.read([record(n, one) for n, one in enumerate((article(0), article(2), article(3)))])
        assert pool._residents[KEY].session.cache.to_bytes() == twin.cache.to_bytes()
    finally:
        assert pool.close() == []
    again = make_pool(tmp_path / "sessions", library, [], "two", elsewhere_every_s=0.05)
    try:
        until(lambda: (p := again.open(KEY).info()) and p["restored"] and p, "not restored")
        assert again._residents[KEY].session.state.read["a1"].withdrawn
    finally:
        again.close()


def test_a_wrong_interval_is_named() -> None:
    """0 would be a loop without a pause."""
    with pytest.raises(ValueError, match="elsewhere_every_s is 0"):
        SessionConfig(elsewhere_every_s=0)


def test_moved_articles_are_articles_of_another_stream() -> None:
    """What the other tests rest on."""
    assert (
        isinstance(MOVED, Article) and MOVED.stream != KEY.stream and MOVED.version_ms > article(1).version_ms
    )
