"""Sessions: what they read, what they remember, and that a restart changes no byte."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.session.session import OtherModel, Session
from pipeline.session.snapshot import Snapshot
from pipeline.source import Record
from tests.pipeline.session.support import CACHE, KEY, article, backbone, new_session, parts, record


def test_articles_of_the_stream_are_read_and_others_passed_over() -> None:
    """Only articles of the session's stream reach its cache; every record moves its offset."""
    session = new_session()
    session.read([record(0, article(1)), record(1, article(2, stream="elsewhere")), record(2, b"{broken")])
    counts = session.state.counts
    assert (counts.articles, counts.other, counts.bad, counts.seen) == (1, 1, 1, 3)
    assert session.state.offsets == {0: 3}
    assert list(session.state.read) == ["a1"]
    assert session.cache.tokens_seen > 10


def test_same_or_older_version_is_not_read_again() -> None:
    """A repeat of an article, or an older version, leaves the cache as it was."""
    session = new_session()
    newer = article(1, updated="2024-03-20T00:00:00Z")
    session.read([record(0, newer)])
    before = session.cache.to_bytes()
    session.read([record(1, newer), record(2, article(1))])
    assert session.cache.to_bytes() == before
    assert session.state.counts.repeats == 2


def test_correction_is_read_and_marked() -> None:
    """A later version is read in its new form, and its version is remembered."""
    session = new_session()
    corrected = article(1, text="Pier 1 stays shut, after all.", updated="2024-03-09T00:00:00Z")
    done = session.read([record(0, article(1)), record(1, corrected)])
    assert [reading.kind for reading in done] == ["article", "update"]
    assert "replaces the earlier text" in done[1].text and "stays shut" in done[1].text
    assert session.state.read["a1"].version_ms == corrected.version_ms


def test_withdrawal_is_read_once_and_only_of_what_was_read() -> None:
    """A deletion marks an article that the session has read; of others it says nothing."""
    session = new_session()
    done = session.read(
        [
            record(0, article(1)),
            record(1, None, key=b"a1"),
            record(2, None, key=b"a1"),
            record(3, None, key=b"never-read"),
        ]
    )
    assert [reading.kind for reading in done] == ["article", "withdrawal"]
    assert session.state.read["a1"].withdrawn
    assert (session.state.counts.repeats, session.state.counts.other) == (1, 1)


def test_long_article_is_cut_to_its_budget() -> None:
    """No article takes more tokens of the cache than the configuration allows."""
    session = new_session(max_article_tokens=32)
    session.read([record(0, article(1, text="word " * 2_000))])
    assert session.state.read["a1"].num_tokens == 32


def test_remembered_articles_are_bounded() -> None:
    """A session remembers the ids of the last articles alone."""
    session = new_session(max_read_ids=3)
    session.read([record(n, article(n)) for n in range(6)])
    assert list(session.state.read) == ["a3", "a4", "a5"]


def test_bytes_are_the_same_after_one_article_and_after_many() -> None:
    """A session's cache has its size from the start."""
    session = new_session()
    size, length = session.nbytes, None
    for n in range(12):
        session.read([record(n, article(n))])
        assert session.nbytes == size
    length = len(session.cache.to_bytes())
    session.read([record(n, article(n)) for n in range(12, 30)])
    assert abs(len(session.cache.to_bytes()) - length) < 256


_RECORDS = [
    record(0, article(1)),
    record(1, article(2, stream="elsewhere")),
    record(2, article(3)),
    record(3, article(1, updated="2024-03-11T00:00:00Z", text="Pier 1 was renamed.")),
    record(4, b"\xff"),
    record(5, None, key=b"a3"),
    record(6, article(4)),
    record(7, article(4)),
]


@lru_cache
def _undisturbed() -> Session:
    whole = new_session()
    whole.read(_RECORDS)
    return whole


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(0, 8), max_size=4))
def test_restarts_change_no_byte(restarts: set[int]) -> None:
    """Saved and restored anywhere, however often, a session ends with the same snapshot."""
    whole = _undisturbed()
    session = new_session()
    for number in range(9):
        if number in restarts:
            saved = Snapshot.from_bytes(session.snapshot().to_bytes())
            session = Session.restore(KEY, parts(), saved)
        if number < 8:
            session.read(_RECORDS[number : number + 1])
    assert session.snapshot().to_bytes() == whole.snapshot().to_bytes()
    assert session.digest() == whole.digest()


def test_replay_from_an_older_snapshot_ends_at_the_same_bytes() -> None:
    """Records read twice over a crash count once."""
    session = new_session()
    session.read(_RECORDS[:4])
    saved = session.snapshot()
    session.read(_RECORDS[4:])
    again = Session.restore(KEY, parts(), saved)
    again.read(_RECORDS)
    assert again.snapshot() == session.snapshot()


def test_digest_tells_sessions_apart() -> None:
    """Another article, or another offset, is another digest."""
    one, other = new_session(), new_session()
    one.read(_RECORDS[:1])
    other.read([record(0, article(9))])
    assert one.digest() != other.digest()
    before = one.digest()
    one.read([record(1, article(2, stream="elsewhere"))])
    assert one.digest() != before


def test_snapshot_of_another_model_or_cache_is_refused() -> None:
    """A session is continued only by the model and the cache that made it."""
    session = new_session()
    session.read(_RECORDS[:1])
    other_model = replace(parts(), backbone=backbone(seed=1))
    other_cache = replace(parts(), cache=replace(CACHE, rank=2))
    for wrong in (other_model, other_cache):
        with pytest.raises(OtherModel):
            Session.restore(KEY, wrong, session.snapshot())


def test_asking_does_not_change_the_session() -> None:
    """Generation over the cache leaves the session's bytes alone, even when it is cut short."""
    session = new_session()
    session.read(_RECORDS)
    before = session.snapshot()
    model = backbone()
    tokens = model.generate(model.encode("Question: x"), session.cache, 8, ("\n",), lambda: False)
    next(iter(tokens), None)
    assert session.snapshot() == before


def test_records_before_the_offset_are_left_out() -> None:
    """A record that was read already is not looked at again."""
    session = new_session()
    session.read(_RECORDS[:3])
    assert session.has_passed(_RECORDS[2]) and not session.has_passed(_RECORDS[3])
    assert not session.has_passed(Record("news", 5, 0, 0, b"k", b"{}", ()))
