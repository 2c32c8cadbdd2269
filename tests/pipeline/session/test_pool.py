"""Sessions of one process: opened, read in turn, saved, put to rest, taken over, mended."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.errors import DependencyUnreachable, DysraError
from pipeline.session.answer import Question
from pipeline.session.pool import SessionPool, TooManySessions
from pipeline.session.resident import SessionRefused
from pipeline.session.snapshot import Snapshot, SnapshotFolder
from pipeline.session.state import SessionKey
from pipeline.source import Record
from tests.actors.session_support import ListTail, make_pool
from tests.pipeline.session.support import KEY, STREAM, ShardLibrary, article, backbone, new_session, record

TOPIC = [record(n, article(n)) for n in range(8)]


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ShardLibrary]:
    """A store with the topic's articles."""
    shelf = ShardLibrary(tmp_path / "store")
    shelf.add(*(article(n) for n in range(8)))
    yield shelf
    shelf.close()


@pytest.fixture
def pool(tmp_path: Path, library: ShardLibrary) -> Iterator[Callable[..., SessionPool]]:
    """Makes pools over one folder of sessions; all are closed at the end."""
    made: list[SessionPool] = []

    def make(topic: list[Record] = TOPIC, owner: str = "one", **changes: Any) -> SessionPool:
        made.append(make_pool(tmp_path / "sessions", library, topic, owner, **changes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(true: Callable[[], Any], what: str) -> Any:
    """The first true value of a condition, within half a minute."""
    deadline = time.monotonic() + 30
    while not (value := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def caught_up(pool: SessionPool, key: SessionKey = KEY) -> dict[str, Any]:
    """The session's page once it has read all there is."""
    pool.open(key)
    return until(
        lambda: (page := pool.info(key, digest=True)) and page["state"] == "resident" and page,
        "the session did not catch up",
    )


@lru_cache
def twin_digest() -> str:
    """The digest of a session that read the topic without any disturbance."""
    twin = new_session()
    twin.read(TOPIC)
    return twin.digest()


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


def test_damaged_snapshots_are_passed_over(pool: Callable[..., SessionPool], tmp_path: Path) -> None:
    """With every snapshot damaged the session is read from the topic again, and says so."""
    first = pool()
    caught_up(first)
    first.close()
    for path in (tmp_path / "sessions").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    second = pool(TOPIC, "two")
    page = caught_up(second)
    assert not page["restored"] and page["digest"] == twin_digest()
    assert "snapshot_skipped" in [event["event"] for event in second.events_after(KEY, 0)]


def test_woken_process_that_was_replaced_takes_nothing_back(pool: Callable[..., SessionPool]) -> None:
    """What was asked of it while it was paused would open the session anew: it is refused, and the one that took
    the session over keeps it. Nor may it note that the session rests, or delete it."""
    mine = [True]
    paused = pool(owner="paused", ours=lambda: mine[0])
    caught_up(paused)
    paused._residents[KEY].retry_at = time.monotonic() + 3_600  # paused: it looks at nothing
    successor = pool(owner="successor")
    page = caught_up(successor)
    mine[0] = False
    paused._forget(KEY)  # as it does when it finds a newer lease
    with pytest.raises(DysraError, match="another process"):
        paused.open(KEY)
    with pytest.raises(DysraError, match="another process"):
        list(paused.ask(KEY, Question(text="Which pier?")))
    with pytest.raises(DysraError, match="another process"):
        paused.remove(KEY)
    assert page["epoch"] == 2 and caught_up(successor)["digest"] == page["digest"]
    successor._residents[KEY].folder.check()


def test_session_put_to_rest_by_one_that_lost_it_stays_resident(
    pool: Callable[..., SessionPool], tmp_path: Path
) -> None:
    """The note beside the snapshots, by which a restart resumes sessions, is the owner's alone to change."""
    first = pool(owner="first")
    caught_up(first)
    resident = first._residents[KEY]
    until(lambda: resident.snapshot_age_s is not None and not resident._unsaved, "no snapshot")
    resident.retry_at = time.monotonic() + 3_600
    second = pool(owner="second")
    caught_up(second)
    resident.leaving = True
    until(lambda: KEY not in first._residents, "it was not put to rest")
    (note,) = (tmp_path / "sessions").glob("*/*/session.json")
    assert orjson.loads(note.read_bytes())["resident"] is True


def test_taken_over_session_is_let_go(pool: Callable[..., SessionPool]) -> None:
    """When another owner takes a session over, the former one drops it and writes nothing more."""
    topic = list(TOPIC[:4])
    old = pool(topic, "old")
    caught_up(old)
    new = pool(topic, "new")
    caught_up(new)
    topic += TOPIC[4:]
    until(lambda: KEY not in old._residents, "the former owner held on")
    until(lambda: new.info(KEY)["articles_read"] == 8, "the new owner did not read on")  # type: ignore[index]
    assert new.info(KEY, digest=True)["digest"] == twin_digest()  # type: ignore[index]


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


def test_outage_of_the_topic_is_told_and_survived(
    pool: Callable[..., SessionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the topic cannot be reached the session is stalled and says why; then it reads on."""
    monkeypatch.setattr("pipeline.session.pool._RETRY_S", 0.1)
    down = threading.Event()
    reach = ListTail.next_records

    def next_records(self: ListTail, limit: int) -> list[Record]:
        if down.is_set():
            raise DependencyUnreachable("no broker answers")
        return reach(self, limit)

    monkeypatch.setattr(ListTail, "next_records", next_records)
    topic = list(TOPIC[:2])
    one = pool(topic)
    caught_up(one)
    down.set()
    page = until(lambda: (p := one.info(KEY)) and p["state"] == "stalled" and p, "no stall was told")
    assert "no broker" in page["problem"]
    topic += TOPIC[2:]
    down.clear()
    assert until(lambda: caught_up(one)["articles_read"] == 8, "it did not read on")


def test_failure_in_the_middle_of_an_article_goes_back_to_the_snapshot(
    pool: Callable[..., SessionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-read article is forgotten: the session starts again from its snapshot and ends equal."""
    monkeypatch.setattr("pipeline.session.pool._RETRY_S", 0.05)
    from pipeline.session.session import Session

    apply, failed = Session.apply, []

    def breaking(self: Session, *args: Any) -> int:
        if self.state.counts.articles == 4 and not failed:
            failed.append(True)
            self.parts.backbone.read(self.parts.backbone.encode("half an article"), self.cache)
            raise RuntimeError("out of memory")
        return apply(self, *args)

    monkeypatch.setattr(Session, "apply", breaking)
    one = pool()
    assert until(lambda: caught_up(one)["articles_read"] == 8, "it did not read on")
    assert failed and one.info(KEY, digest=True)["digest"] == twin_digest()  # type: ignore[index]


def test_an_article_that_the_model_stuck_at_is_read_again_from_the_snapshot(
    pool: Callable[..., SessionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is told and waits no longer; what the model does late is done to the old session alone."""
    monkeypatch.setattr("pipeline.session.pool._RETRY_S", 0.05)
    from pipeline.session.session import Session

    apply, held, stuck = Session.apply, threading.Event(), []

    def sticking(self: Session, *args: Any) -> Any:
        if self.state.counts.articles == 4 and not stuck:
            stuck.append(self)
            assert held.wait(30)
        return apply(self, *args)

    monkeypatch.setattr(Session, "apply", sticking)
    one = pool()
    one.model._silent_limit_s, one.model._look_s = 0.3, 0.05
    one.open(KEY)
    until(
        lambda: stuck and one.open(KEY).session is not stuck[0] and "not moved" in str(one.info(KEY)),
        "not told",
    )
    assert not one.healthy
    one.model._silent_limit_s = 60.0
    held.set()
    assert until(lambda: caught_up(one)["articles_read"] == 8, "it did not read on")
    assert one.info(KEY, digest=True)["digest"] == twin_digest()  # type: ignore[index]
    assert stuck[0].state.counts.articles == 5 and one.healthy


def test_other_settings_keep_the_sessions_in_memory(pool: Callable[..., SessionPool]) -> None:
    """A changed configuration is taken over at once: the same sessions, no byte of them changed."""
    one = pool()
    before, resident = caught_up(one)["digest"], one._residents[KEY]
    sessions = replace(one.sessions, config=replace(one.sessions.config, token_budget=99))
    asking = replace(one.asking, config=sessions.config)
    one.configure(sessions, asking, one._tails, reopen=False)
    assert one._residents[KEY] is resident and resident.session.parts.config.token_budget == 99
    assert one.asking.config.token_budget == 99 and caught_up(one)["digest"] == before


def test_promoted_model_is_taken_over_by_running_sessions(pool: Callable[..., SessionPool]) -> None:
    """Another model takes the sessions over: same place in the topic, caches read anew, questions answered."""
    one = pool(attend="both")
    seen = caught_up(one)["records_seen"]
    sessions = replace(one.sessions, backbone=backbone(seed=1))
    one.configure(sessions, replace(one.asking, backbone=backbone(seed=1)), one._tails, reopen=True)
    page = until(lambda: (p := one.info(KEY)) and p.get("rebuilds") and p, "not rebuilt")
    assert page["model"] == backbone(seed=1).identity and page["restored"]
    assert page["records_seen"] == seen and not page["rebuilding"]
    assert [event.kind for event in one.ask(KEY, Question(text="Which pier?"))][-1] == "done"


def test_question_never_meets_a_model_that_did_not_write_the_cache(pool: Callable[..., SessionPool]) -> None:
    """While another model takes over, answers under way end with theirs; new questions are told to come again."""
    one = pool(attend="both")
    caught_up(one)
    under_way = one.ask(KEY, Question(text="Which pier?"))
    assert next(under_way).kind == "sources"
    sessions = replace(one.sessions, backbone=backbone(seed=1))
    asking = replace(one.asking, backbone=backbone(seed=1))
    change = threading.Thread(
        target=one.configure, args=(sessions, asking, one._tails), kwargs={"reopen": True}, daemon=True
    )
    change.start()
    until(lambda: one.asking is asking, "not configured")
    for _ in range(3):  # the reader looks at the session meanwhile
        with pytest.raises(DysraError, match="another model; ask again"):
            next(one.ask(KEY, Question(text="Which pier?")))
        time.sleep(0.1)
    assert [event.kind for event in under_way][-1] == "done"
    change.join(30)
    assert not change.is_alive()
    assert [event.kind for event in one.ask(KEY, Question(text="Which pier?"))][-1] == "done"
    assert one.info(KEY)["model"] == backbone(seed=1).identity  # type: ignore[index]


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


def test_a_snapshot_of_a_later_version_is_refused_and_left_alone(
    pool: Callable[..., SessionPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a downgrade a session is not begun anew over what the newer version had read: it is refused by both
    versions, and goes on once the newer one is back."""
    one = pool()
    digest = caught_up(one)["digest"]
    one.close()
    snapshots = {path.name for path in tmp_path.glob("sessions/*/*/*.safetensors")}
    monkeypatch.setattr("pipeline.session.state.STATE_VERSION", 1)
    old = pool(owner="old")
    with pytest.raises(SessionRefused, match="version 2; versions 1 to 1 are read here"):
        old.open(KEY)
    assert old.resume(lambda key: True) == []
    assert {path.name for path in tmp_path.glob("sessions/*/*/*.safetensors")} == snapshots
    monkeypatch.undo()
    assert caught_up(pool(owner="new"))["digest"] == digest


def test_a_cache_of_a_later_version_is_refused_and_left_alone(
    pool: Callable[..., SessionPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the cache in the snapshot: read anew from articles, it would lose what only its latents hold."""
    one = pool()
    digest = caught_up(one)["digest"]
    one.close()
    snapshots = {path.name for path in tmp_path.glob("sessions/*/*/*.safetensors")}
    monkeypatch.setattr("models.cache.snapshot.FORMAT", 1)
    old = pool(owner="old", other_cache="rebuild")
    with pytest.raises(SessionRefused, match="format 2; this version reads formats 1 to 1"):
        old.open(KEY)
    assert {path.name for path in tmp_path.glob("sessions/*/*/*.safetensors")} == snapshots
    monkeypatch.undo()
    assert caught_up(pool(owner="new"))["digest"] == digest


@pytest.mark.parametrize("note", [b'{"version":2,"tenant":"local","stream":"harbour","kept":1}', b"{"])
def test_a_note_of_a_later_version_is_not_written_over(
    pool: Callable[..., SessionPool], tmp_path: Path, note: bytes
) -> None:
    """A session whose note a later version wrote is refused by name; a damaged note is written anew."""
    one = pool()
    caught_up(one)
    one.close()
    (path,) = (tmp_path / "sessions").glob("*/*/session.json")
    path.write_bytes(note)
    two = pool(owner="two")
    if note == b"{":
        assert caught_up(two)["restored"] and orjson.loads(path.read_bytes())["resident"] is True
        return
    with pytest.raises(SessionRefused, match=r"session\.json has version 2; this DySRA reads up to 1"):
        two.open(KEY)
    assert path.read_bytes() == note


def test_a_full_disk_leaves_the_session_in_memory(
    pool: Callable[..., SessionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, questions are answered meanwhile, nothing is read twice, and it is saved once there is room."""
    monkeypatch.setattr("pipeline.session.pool._RETRY_S", 0.05)
    full = threading.Event()
    write = SnapshotFolder.write

    def limited(self: SnapshotFolder, snapshot: Snapshot) -> Path:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, snapshot)

    monkeypatch.setattr(SnapshotFolder, "write", limited)
    topic = list(TOPIC[:2])
    one = pool(topic, snapshot_every_s=0.001)
    caught_up(one)
    held = one._residents[KEY]
    full.set()
    topic += TOPIC[2:]
    page = until(lambda: (p := one.info(KEY)) and p["state"] == "stalled" and p, "the full disk was not told")
    assert "No space left" in page["problem"] and one._residents[KEY] is held and one.healthy
    assert [event.kind for event in one.ask(KEY, Question(text="Which pier?"))][-1] == "done"
    full.clear()
    assert until(lambda: caught_up(one)["articles_read"] == 8, "it did not read on")
    assert one._residents[KEY] is held and caught_up(one)["digest"] == twin_digest()
    one.close()
    assert caught_up(pool(owner="two"))["digest"] == twin_digest()


def test_a_session_that_does_not_come_to_rest_keeps_no_other_from_being_saved(
    pool: Callable[..., SessionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain ends in time and names what it could not save; that goes on from its last snapshot."""
    monkeypatch.setattr("pipeline.session.pool._REST_S", 0.2)
    one = pool(snapshot_every_s=1e6)
    other = SessionKey("other", STREAM)
    for key in (KEY, other):
        assert caught_up(one, key)["articles_read"] == 8
    one._stopped.set()
    one._reader.join(10)
    with one._residents[KEY]._lock:
        began = time.monotonic()
        problems = one.close(1.0)
    assert time.monotonic() - began < 5 and [problem.split(":")[0] for problem in problems] == [KEY.id]
    two = pool(owner="two")
    assert caught_up(two, other)["records_seen"] == 8 and two._residents[other].restored
    assert caught_up(two)["digest"] == twin_digest()
