"""What a pool does with damage, outages, full disks, and a process that was replaced."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.errors import DependencyUnreachable, DysraError
from pipeline.session.answer import Question
from pipeline.session.pool import SessionPool
from pipeline.session.snapshot import Snapshot, SnapshotFolder
from pipeline.session.state import SessionKey
from pipeline.source import Record
from tests.actors.session_support import ListTail
from tests.pipeline.session.pool_case import TOPIC, caught_up, library, pool, twin_digest, until
from tests.pipeline.session.support import KEY, STREAM

__all__ = ["library", "pool"]  # fixtures


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
            one.model._silent_limit_s = 0.3  # not before: on a crowded machine other articles take as long
            assert held.wait(30)
        return apply(self, *args)

    monkeypatch.setattr(Session, "apply", sticking)
    one = pool()
    one.model._look_s = 0.05
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
