"""Corrections and withdrawals: the old form leaves the session at once, and its traces soon after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.article import Article
from pipeline.session.answer import Lag, Question
from pipeline.session.asking import View, answer
from pipeline.session.ports import InlineRunner
from pipeline.session.rebuild import Rebuild
from pipeline.session.resident import SessionRefused
from pipeline.session.session import Session
from pipeline.session.snapshot import Snapshot
from pipeline.session.state import SessionState
from tests.actors.session_support import make_pool
from tests.pipeline.session.pool_case import caught_up, until
from tests.pipeline.session.support import (
    CACHE,
    KEY,
    ShardLibrary,
    article,
    ask_parts,
    backbone,
    new_session,
    parts,
    record,
    stocked,
)

WIDE = replace(CACHE, latent_blocks=16)  # holds all of a short stream
CORRECTED = article(2, updated="2024-03-20T00:00:00Z", text="Pier 2 stays shut, the council now says.")
SHORT = [
    *(record(n, article(n)) for n in range(5)),
    record(5, None, key=b"a1"),
    record(6, article(6)),
    record(7, CORRECTED),
    record(8, article(8)),
]
NEVER_READ = [record(n, a) for n, a in enumerate([*map(article, (0, 3, 4, 6)), CORRECTED, article(8)])]


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ShardLibrary]:
    """The store as it is once it has taken in all of SHORT."""
    with stocked(tmp_path / "store", *(article(n) for n in (*range(5), 6)), CORRECTED, article(8)) as shelf:
        shelf.delete("a1")
        yield shelf


def _wide(**changes: object) -> Session:
    return Session.new(KEY, replace(parts(**changes), cache=WIDE))


def _finish(session: Session, library: ShardLibrary) -> Rebuild:
    """Do all of the rebuild that the session wants."""
    rebuild = Rebuild(session, library)
    for _ in range(100):
        if rebuild.step(InlineRunner(), skip_missing=False).complete:
            rebuild.finish(InlineRunner())
            return rebuild
    raise AssertionError("the rebuild does not end")


def test_withdrawn_tokens_are_dropped_before_anything_else_is_read() -> None:
    """The record of a withdrawal takes its article's tokens out of ring and latents; it reads nothing."""
    session = _wide()
    session.read(SHORT[:5])
    held = session.state.read["a1"]
    seen = session.cache.tokens_seen
    applied = session.apply(SHORT[5], session.plan(SHORT[5]))  # type: ignore[arg-type]
    assert applied.retracted and applied.tokens == 0
    assert sum(applied.dropped.values()) == held.num_tokens
    assert session.cache.dropped == [(held.first_token, held.first_token + held.num_tokens)]
    assert session.cache.tokens_seen == seen
    assert not session.state.read["a1"].held and session.state.rebuild_from is not None


def test_a_withdrawn_title_is_told_nowhere_any_more(tmp_path: Path, library: ShardLibrary) -> None:
    """Neither in the session's state and snapshots nor in the events that a follower may still ask for: where the
    title is the news, it is withdrawn too. That of a correction is the new one."""
    session = new_session()
    session.read(SHORT)
    assert session.state.read["a1"].withdrawn and b"Pier 1 opens" not in session.state.to_json()

    one = make_pool(tmp_path / "sessions", library, SHORT, "one")
    try:
        caught_up(one)
        events = one.events_after(KEY, 0)
    finally:
        one.close()
    titles = {e["offset"]: e["title"] for e in events if e["event"] == "read"}
    assert titles[1] is None and titles[2] is None and titles[3] == "Pier 3 opens"
    assert titles[7] == "Pier 2 opens"  # of the corrected form, read later


def test_an_article_that_moves_to_another_stream_is_dropped() -> None:
    """A later version elsewhere replaces the one that was read here: in the store there is no other any more."""
    session = _wide()
    session.read(SHORT[:3])
    later = {"updated": "2024-03-20T00:00:00Z", "stream": "elsewhere"}
    (reading,) = session.read([record(3, article(1, **later)), record(4, article(7, **later))])
    assert (reading.kind, reading.article_id) == ("withdrawal", "a1")
    assert session.state.read["a1"].withdrawn and session.state.rebuild_from is not None
    assert session.read([record(5, article(1)), record(6, article(1, **later))]) == []
    back = article(1, updated="2024-03-21T00:00:00Z")
    assert [reading.kind for reading in session.read([record(7, back)])] == ["update"]


def test_rebuilt_session_is_one_that_never_read_the_old_forms(library: ShardLibrary) -> None:
    """After withdrawal and correction the cache is, byte for byte, that of a stream without the old forms."""
    session, twin = _wide(), _wide()
    session.read(SHORT)
    before = session.cache.to_bytes()
    rebuild = _finish(session, library)
    twin.read(NEVER_READ)
    assert session.cache.to_bytes() == twin.cache.to_bytes() != before
    assert (rebuild.articles, rebuild.left_out) == (6, 0)
    assert {n: a.first_token for n, a in session.state.standing()} == {
        n: a.first_token for n, a in twin.state.standing()
    }
    ids = backbone().encode("Question: Which pier? Answer:")
    assert backbone().score(ids, ids, session.cache) == backbone().score(ids, ids, twin.cache)


def test_long_stream_is_rebuilt_from_the_articles_that_fill_the_cache(tmp_path: Path) -> None:
    """Where the stream is longer than the cache, the twin is a session that began with its last articles."""
    shelf = ShardLibrary(tmp_path / "store")
    shelf.add(*(article(n) for n in range(14)))
    session, twin = new_session(), new_session()
    session.read([record(n, article(n)) for n in range(14)])
    session.read([record(14, None, key=b"a12")])
    first = session.state.rebuild_from
    assert first not in ("", "a0", "a13") and session.state.read[str(first)].held
    again = [int(name[1:]) for name, _ in session.state.to_reread()]
    _finish(session, shelf)
    twin.read([record(n, article(n)) for n in again])
    assert session.cache.to_bytes() == twin.cache.to_bytes()
    shelf.close()


def test_old_article_out_of_sight_needs_no_rebuild() -> None:
    """What left the cache long ago is forgotten without work, and so is what was never read."""
    session = new_session()
    session.read([record(n, article(n)) for n in range(16)])
    before = session.cache.to_bytes()
    session.read([record(16, None, key=b"a1"), record(17, None, key=b"nobody")])
    assert session.state.rebuild_from is None and session.cache.to_bytes() == before
    assert session.state.read["a1"].withdrawn and session.state.counts.other == 1


@lru_cache
def _never_read() -> bytes:
    """The cache of a session that never read what was corrected or withdrawn."""
    twin = _wide()
    twin.read(NEVER_READ)
    return twin.cache.to_bytes()


@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.sampled_from(["read", "piece", "piece", "kill"]), max_size=20))
def test_time_and_kills_do_not_change_what_a_rebuild_ends_with(
    tmp_path_factory: pytest.TempPathFactory, script: list[str]
) -> None:
    """Reading, rebuilding and kills in any order end with the same bytes as no disturbance at all."""
    shelf = ShardLibrary(tmp_path_factory.mktemp("store"))
    shelf.add(*(article(n) for n in (*range(5), 6)), CORRECTED, article(8))
    shelf.delete("a1")
    session = _wide()
    session.read(SHORT[:6])
    saved, rebuild = session.snapshot(), Rebuild(session, shelf)
    for act in [*script, *["read"] * 3]:
        if act == "read":
            todo = [r for r in SHORT if not session.has_passed(r)]
            session.read(todo[:1])
        elif act == "kill":
            session = Session.restore(KEY, session.parts, saved)
            rebuild = Rebuild(session, shelf)
        elif session.state.rebuild_from is not None:
            if rebuild.step(InlineRunner(), skip_missing=False).complete:
                rebuild.finish(InlineRunner())
                rebuild = Rebuild(session, shelf)
            saved = session.snapshot()
    session.read(SHORT)
    if session.state.rebuild_from is not None:
        _finish(session, shelf)
    assert session.cache.to_bytes() == _never_read()
    assert session.state.offsets == {0: 9}
    shelf.close()


def test_article_that_the_store_lacks_is_waited_for_then_left_out(tmp_path: Path) -> None:
    """A store that is behind is given time; after that the rebuild goes on without the article."""
    shelf = ShardLibrary(tmp_path / "store")
    shelf.add(article(0))
    session, twin = _wide(), _wide()
    session.read([record(0, article(0)), record(1, article(1)), record(2, article(2))])
    session.read([record(3, None, key=b"a1")])
    rebuild = Rebuild(session, shelf)
    assert rebuild.step(InlineRunner(), skip_missing=False).tokens > 0
    assert rebuild.step(InlineRunner(), skip_missing=False).waits
    rebuild.step(InlineRunner(), skip_missing=True)
    assert rebuild.step(InlineRunner(), skip_missing=True).complete and rebuild.left_out == 1
    rebuild.finish(InlineRunner())
    twin.read([record(0, article(0))])
    assert session.cache.to_bytes() == twin.cache.to_bytes()
    assert not session.state.read["a2"].held
    shelf.close()


def test_drop_alone_rebuilds_nothing() -> None:
    """With retractions set to drop, the tokens go and nothing is read anew."""
    session = _wide(retractions="drop")
    session.read(SHORT)
    assert session.state.rebuild_from is None and len(session.cache.dropped) == 2


def test_withdrawal_is_told_rebuilt_in_the_background_and_saved(
    tmp_path: Path, library: ShardLibrary
) -> None:
    """A pool's session tells of retraction and rebuild in its events, and saves what it has rebuilt."""
    topic = list(SHORT)
    pool = make_pool(tmp_path / "sessions", library, topic, rebuild_within_s=30.0)
    try:
        caught_up(pool)
        until(lambda: (page := pool.info(KEY)) and page["rebuilds"] and not page["rebuilding"], "no rebuild")
        events = pool.events_after(KEY, 0)
        told = [(e["what"], e["article_id"]) for e in events if e["event"] == "retracted"]
        assert told == [("withdrawal", "a1"), ("update", "a2")]
        kinds = [event["event"] for event in events]
        assert kinds.index("retracted") < kinds.index("rebuild_started") < kinds.index("rebuilt")
        assert pool.gauges()["session_rebuilds_pending"] == 0
        digest = pool.info(KEY, digest=True)["digest"]  # type: ignore[index]
    finally:
        assert pool.close() == []
    again = make_pool(tmp_path / "sessions", library, [], "two")
    try:
        page = until(lambda: (p := again.open(KEY).info()) and p["restored"] and p, "not restored")
        assert not page["rebuilding"] and again.info(KEY, digest=True)["digest"] == digest  # type: ignore[index]
    finally:
        again.close()


def test_a_rebuild_is_done_in_its_time_however_slow_its_rate(tmp_path: Path, library: ShardLibrary) -> None:
    """At a token a second it would take minutes: once half of its time is over it no longer goes by its rate."""
    pool = make_pool(
        tmp_path / "sessions",
        library,
        SHORT,
        rebuild_tokens_per_s=1,
        rebuild_within_s=3.0,
        retractions="rebuild",
    )
    try:
        caught_up(pool)
        rebuilt = until(
            lambda: [e for e in pool.events_after(KEY, 0) if e["event"] == "rebuilt"], "no rebuild in 20 s"
        )
        assert rebuilt[0]["tokens"] > 60
        assert 1.4 < rebuilt[0]["seconds"] < 3.0
    finally:
        assert pool.close() == []


def test_kill_in_the_middle_of_a_rebuild_is_made_good(tmp_path: Path, library: ShardLibrary) -> None:
    """A process that ends while it rebuilds leaves a snapshot from which the next one finishes the work."""
    slow = make_pool(tmp_path / "sessions", library, SHORT, "killed", rebuild_tokens_per_s=1)
    until(lambda: slow.open(KEY).info()["rebuilding"], "no rebuild was asked for")
    until(lambda: slow.open(KEY).snapshot_age_s is not None and slow.info(KEY)["records_seen"] == 9, "unread")  # type: ignore[index]
    until(lambda: slow._residents[KEY]._unsaved == 0, "not saved")
    slow._stopped.set()  # ends as a kill does: nothing is saved on the way out
    slow._reader.join(10)
    slow._residents.clear()
    again = make_pool(tmp_path / "sessions", library, SHORT, "successor")
    try:
        page = until(lambda: (p := again.open(KEY).info()) and p["rebuilds"] and p, "never finished")
        assert page["restored"] and not page["rebuilding"]
        twin = new_session()
        twin.read([record(n, a) for n, a in enumerate(_standing(again._residents[KEY].session))])
        assert again._residents[KEY].session.cache.to_bytes() == twin.cache.to_bytes()
    finally:
        again.close()
        slow.close()


def _standing(session: Session) -> list[Article]:
    """The articles whose tokens the session's cache has read, in order."""
    texts = {"a2": CORRECTED}
    return [texts.get(name, article(int(name[1:]))) for name, kept in session.state.standing() if kept.held]


def test_answer_over_the_cache_is_made_again_when_the_session_drops_something(library: ShardLibrary) -> None:
    """A retraction in the middle of an answer that attends to the cache throws the answer away."""
    session = _wide()
    session.read(SHORT[:5])
    counts = iter([0, 1, 1, 1, 1, 1])
    view = View(
        stream=KEY.stream,
        cache=session.cache,
        session_bytes=0,
        lag=Lag(),
        retractions=lambda: next(counts),
    )
    parts_ = ask_parts(library, attend="both")
    kinds = [event.kind for event in answer(Question(text="Which pier?"), view, parts_)]
    assert kinds.count("restart") == 1 and kinds[-1] == "done"


def test_no_search_returns_and_no_answer_cites_an_old_form(library: ShardLibrary) -> None:
    """Of what was withdrawn or corrected neither search nor sources hold the old form."""
    view = View(stream=KEY.stream, cache=None, session_bytes=0, lag=Lag())
    for words in ("quay 1 opened on Monday", "quay 2 opened on Monday", "Pier 2 council"):
        events = list(answer(Question(text=words), view, ask_parts(library)))
        for source in (s for event in events for s in event.data.get("sources", [])):
            assert source["article_id"] != "a1"
            assert source["article_id"] != "a2" or "stays shut" in source["quote"]


@pytest.mark.parametrize("change", ["rank", "model"])
def test_session_of_another_cache_or_model_is_rebuilt_from_its_articles(
    change: str, tmp_path: Path, library: ShardLibrary
) -> None:
    """A changed shape of the cache, or another model, keeps what the session has read."""
    session = new_session()
    session.read(SHORT)
    other = parts()
    other = (
        replace(other, cache=replace(CACHE, rank=2))
        if change == "rank"
        else replace(other, backbone=backbone(seed=1))
    )
    adopted = Session.adopt(KEY, other, session.snapshot())
    assert adopted.state.offsets == session.state.offsets and adopted.state.tokens_read
    _finish(adopted, library)
    twin = Session.new(KEY, other)
    twin.read([record(n, a) for n, a in enumerate(_standing(adopted))])
    assert adopted.cache.to_bytes() == twin.cache.to_bytes() and adopted.cache.tokens_seen > CACHE.ring


def test_session_of_another_cache_is_opened_as_configured(tmp_path: Path, library: ShardLibrary) -> None:
    """Rebuild keeps the session's place and memory, start_over begins anew, refuse says what to do."""
    root = tmp_path / "sessions"
    first = make_pool(root, library, SHORT)
    caught_up(first)
    first.close()

    def reopened(way: str) -> dict[str, object]:
        pool = make_pool(root, library, SHORT, way, other_cache=way)
        pool.sessions = replace(pool.sessions, cache=replace(CACHE, rank=2))
        try:
            pool.open(KEY)
            until(lambda: not (page := caught_up(pool))["rebuilding"] and page, "not rebuilt")
            return dict(pool.info(KEY) or {})
        finally:
            pool._stopped.set()  # leaves the folder as it is for the next
            pool._reader.join(10)
            pool._residents.clear()
            pool.close()

    with pytest.raises(SessionRefused, match=r"rank 4 in the snapshot, 2 configured.*other_cache"):
        reopened("refuse")
    page = reopened("rebuild")
    assert page["restored"] and page["rebuilds"] == 1 and page["records_seen"] == 9
    for path in root.rglob("*.safetensors"):
        if int(path.name[:10]) > 1:
            path.unlink()
    assert not reopened("start_over")["restored"]


def _version_1(session: Session) -> Snapshot:
    """The session's snapshot as version 1 of the state wrote it."""
    body = json.loads(session.state.to_json())
    del body["tokens_read"], body["rebuild_from"]
    body["version"], body["model"] = 1, f"{body['model']}/cache-0123abcd"
    body["read"][0][2] = 0
    return Snapshot(session.cache.to_bytes(), json.dumps(body).encode())


def test_state_of_version_1_is_migrated_and_a_newer_one_refused() -> None:
    """Sessions saved by the version before go on, byte for byte; a later version's are named."""
    session = new_session()
    session.read(SHORT[:5])
    again = Session.restore(KEY, parts(), _version_1(session))
    assert again.state.to_json() == session.state.to_json()
    again.read(SHORT)
    session.read(SHORT)
    assert again.snapshot() == session.snapshot()
    newer = json.dumps({**json.loads(session.state.to_json()), "version": 3}).encode()
    with pytest.raises(ValueError, match="version 3; versions 1 to 2 are read here"):
        SessionState.from_json(newer)
