"""One session in memory with all that keeps it going: its tail, its snapshots, its events.

The pool's reader thread alone calls `step`, `save` and `leave`; other threads look through `info`, `view`,
`digest` and `events`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from pipeline.article import from_ms, isoformat
from pipeline.errors import DysraError
from pipeline.log import get_logger
from pipeline.session.answer import Lag
from pipeline.session.asking import View
from pipeline.session.elsewhere import Watch
from pipeline.session.intake import Intake
from pipeline.session.ports import Library, ModelRunner
from pipeline.session.retractions import Retractions
from pipeline.session.session import Applied, OtherModel, Session, SessionParts
from pipeline.session.snapshot import CorruptSnapshot, NewerLease, Snapshot, SnapshotFolder
from pipeline.session.state import NewerState, SessionKey
from pipeline.session.tail import StreamTail

_PASSED_AT_ONCE = 256
_SAVE_AFTER_PASSED = 5_000
_EVENTS_KEPT = 256


class SessionRefused(DysraError):
    """A session of another model or shape of cache, which the configuration says not to open."""


class SnapshotNotWritten(DysraError):
    """The disk of the snapshots refuses; the session is whole in memory, and goes on from its last snapshot."""


class Resident:
    """A session that is held here. Made by `open`."""

    def __init__(
        self, session: Session, folder: SnapshotFolder, tail: StreamTail, library: Library, restored: bool
    ) -> None:
        self.session = session
        self.folder = folder
        self.restored = restored
        self.users = 0
        self.questions = 0
        self.last_used = time.monotonic()
        self.leaving = False
        self.outdated = False
        self.unwanted = False
        self.retry_at = 0.0
        self.problem: str | None = None
        self._tail = tail
        self._tail_open = False
        self._caught_up = False
        self._lag_records = 0
        self._saved_at: float | None = None
        self._unsaved = 0
        self._passed = 0
        self._lock = threading.Lock()
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._number = 0
        self._log = get_logger(session_id=session.key.id)
        self.retractions = Retractions(session, library, self.emit)
        self.watch = Watch()

    @classmethod
    def open(
        cls,
        key: SessionKey,
        parts: SessionParts,
        folder: SnapshotFolder,
        tail: StreamTail,
        library: Library,
    ) -> Resident:
        """The session of the newest snapshot that holds, or a new one where there is none to continue.

        SessionRefused for a snapshot of another model or shape of cache, where the configuration says so, and for
        one that a later version of DySRA wrote.
        """
        try:
            folder.acquire()
        except OSError as error:
            raise SnapshotNotWritten(f"session {key.id} cannot be taken over: {error}") from None
        except NewerLease as error:
            raise SessionRefused(f"session {key.id} cannot be continued: {error}") from None
        snapshot, problems = folder.newest()
        session: Session | None = None
        if snapshot is not None:
            try:
                session = Session.restore(key, parts, snapshot)
            except OtherModel as error:
                session = _of_another(error, key, parts, snapshot, problems)
            except NewerState as error:
                raise SessionRefused(f"session {key.id} cannot be continued: {error}") from None
            except (CorruptSnapshot, ValueError) as error:
                problems.append(f"the snapshot cannot be read ({error}); reading the topic again")
        resident = cls(
            session or Session.new(key, parts), folder, tail, library, restored=session is not None
        )
        for problem in problems:
            resident.emit("snapshot_skipped", reason=problem)
        if session is not None:
            resident.emit("restored", epoch=folder.epoch, tokens=session.state.tokens_read)
        return resident

    def step(self, runner: ModelRunner, snapshot_every_s: float) -> bool:
        """Read at most one article, or pass over records that are not for this session; whether it did.

        A rebuild under way goes on by a piece, and alone once it is late.
        """
        if not self._tail_open:
            self._start()
        for intake in self.watch.due(self.session, self._tail):
            self._drop(intake, runner)
        moved = self._rebuild(runner)
        if self.retractions.urgent:
            self._lag_records = self._tail.lag()
            return moved
        for _ in range(_PASSED_AT_ONCE):
            records = self._tail.next_records(1)
            if not records:
                break
            moved = True
            with self._lock:
                read = self._take(records[0], runner)
            if read:
                break
        expired = self._tail.take_expired()
        if expired:
            self.session.state.counts.missed += expired
            self.emit("records_missed", count=expired)
        self._lag_records = self._tail.lag()
        if not moved and self._lag_records == 0 and not self._caught_up:
            self._caught_up = True
            self.emit("caught_up", articles=self.session.state.counts.articles)
        due = self._saved_at is None or time.monotonic() - self._saved_at >= snapshot_every_s
        if due and (self._unsaved or self._passed >= _SAVE_AFTER_PASSED):
            self.save()
        return moved

    def save(self, wait_s: float = -1) -> None:
        """Write a snapshot. StaleLease if another owner has taken the session over, SnapshotNotWritten where the
        disk refuses or the session does not come to rest within `wait_s` (below 0: however long it takes)."""
        if not self._lock.acquire(timeout=wait_s):
            raise SnapshotNotWritten(f"an article was still being read after {wait_s:g} s")
        try:
            snapshot = self.session.snapshot()
        finally:
            self._lock.release()
        try:
            self.folder.write(snapshot)
        except OSError as error:
            raise SnapshotNotWritten(f"the snapshot cannot be written: {error}") from None
        self._saved_at = time.monotonic()
        self._unsaved = self._passed = 0
        self.emit("snapshot", bytes=len(snapshot.cache) + len(snapshot.state))

    def _rebuild(self, runner: ModelRunner) -> bool:
        """Do a piece of the rebuild that is due, if any; whether it did."""
        moved, complete = self.retractions.step(runner)
        if complete:
            with self._lock:
                self.retractions.finish(runner)
            self.save()
        return moved

    def _drop(self, intake: Intake, runner: ModelRunner) -> None:
        """Drop an article that changed where the session does not read."""
        with self._lock:
            applied = runner.call(lambda: self.session.drop(intake))
            self._retracted(intake, applied)

    def _retracted(self, intake: Intake, applied: Applied) -> None:
        self._unsaved += 1
        if applied.retracted:
            self._forget_titles(intake.article_id)
            self.retractions.note(intake, applied)

    def leave(self, *, save: bool, wait_s: float = -1) -> None:
        """Let go of the session, saved first (see `save`) if it has read since the last snapshot."""
        try:
            if save and (self._unsaved or self._passed or self._saved_at is None) and self._tail_open:
                self.save(wait_s)
        finally:
            self._tail.close()

    def fail(self, problem: str, retry_after_s: float) -> None:
        """Stand still for a while: its tail is made anew then."""
        if problem != self.problem:
            self.emit("problem", reason=problem)
        self.problem = problem
        self.retry_at = time.monotonic() + retry_after_s
        self._tail.close()
        self._tail_open = False

    def lag(self) -> Lag:
        """How far the session is behind its stream, as last looked at."""
        records, last_ms = self._lag_records, self.session.state.last_timestamp_ms
        seconds = max(0.0, time.time() - last_ms / 1_000) if records and last_ms else 0.0
        return Lag(records=records, seconds=round(seconds, 1))

    def view(self) -> View:
        """What a question may see."""
        session = self.session
        return View(
            stream=session.key.stream,
            cache=session.cache,
            session_bytes=session.nbytes,
            lag=self.lag(),
            retractions=lambda: self.retractions.count,
            newest=session.state.newest,
        )

    def digest(self) -> str:
        """The session's digest between two articles."""
        with self._lock:
            return self.session.digest()

    @property
    def condition(self) -> str:
        """restoring (no start yet), catching_up, resident, or stalled with `problem` saying why."""
        if self.problem is not None:
            return "stalled"
        if not self._tail_open:
            return "restoring"
        return "resident" if self._caught_up else "catching_up"

    @property
    def snapshot_age_s(self) -> float | None:
        """Seconds since the last snapshot of this owner; None before the first."""
        return None if self._saved_at is None else round(time.monotonic() - self._saved_at, 1)

    def info(self) -> dict[str, Any]:
        """The session's page: what it has read, what it holds, how far behind it is."""
        session, state = self.session, self.session.state
        counts = state.counts
        return {
            "stream": session.key.stream,
            "state": self.condition,
            "problem": self.problem,
            "start": state.started,
            "articles_read": counts.articles,
            "updates_read": counts.updates,
            "withdrawn": counts.withdrawn,
            "dropped_elsewhere": counts.elsewhere,
            "repeats_skipped": counts.repeats,
            "records_seen": counts.seen,
            "records_missed": counts.missed,
            "tokens_seen": state.tokens_read,
            "retractions": self.retractions.count,
            "rebuilding": state.rebuild_from is not None,
            "rebuilds": self.retractions.rebuilds,
            "session_bytes": session.nbytes,
            "questions": self.questions,
            "lag": {"records": self.lag().records, "seconds": self.lag().seconds},
            "offsets": {str(p): o for p, o in (state.offsets or {}).items()},
            "last_published": isoformat(from_ms(state.last_published_ms))
            if state.last_published_ms
            else None,
            "restored": self.restored,
            "epoch": self.folder.epoch,
            "snapshot_age_s": self.snapshot_age_s,
            "model": session.parts.backbone.identity,
        }

    def emit(self, kind: str, **fields: Any) -> None:
        """Note an event for the session's followers and the log."""
        self._number += 1
        self._events.append({"id": self._number, "event": kind, **fields})
        self._log.info(f"session_{kind}", **fields)

    def _forget_titles(self, article_id: str) -> None:
        """Let no kept event tell a title any more that was corrected or withdrawn."""
        for at, event in enumerate(self._events):
            if event.get("article_id") == article_id and event.get("title"):
                self._events[at] = {**event, "title": None}

    def events_after(self, number: int) -> list[dict[str, Any]]:
        """Events later than `number`, oldest first; of long ago only the latest are kept."""
        return [event for event in list(self._events) if event["id"] > number]

    def _start(self) -> None:
        state = self.session.state
        start = self._tail.open(state.offsets)
        self._tail_open, self.problem = True, None
        if state.offsets is None:
            with self._lock:
                state.offsets, state.started = dict(start.offsets), start.described
            # Saved before the first article, so that a restart begins at the same place.
            self.save()
            self.emit("started", reason=start.described)

    def _take(self, record: Any, runner: ModelRunner) -> bool:
        session = self.session
        if session.has_passed(record):
            return False
        intake = session.plan(record)
        if intake is None:
            self._passed += 1
            return False
        applied = runner.call(lambda: session.apply(record, intake))
        self._retracted(intake, applied)
        if intake.kind == "withdrawal":
            return True
        self.watch.note(intake.article_id)
        self.emit(
            "read",
            what=intake.kind,
            article_id=intake.article_id,
            title=intake.title,
            tokens=applied.tokens,
            offset=record.offset,
        )
        return True


def _of_another(
    error: OtherModel, key: SessionKey, parts: SessionParts, snapshot: Snapshot, problems: list[str]
) -> Session | None:
    """What becomes of a session whose cache cannot be continued, as configured; None: a new one."""
    way = parts.config.other_cache
    if way == "refuse":
        raise SessionRefused(
            f"session {key.id} cannot be continued: {error}; go back to what wrote it, or set "
            "session.other_cache to rebuild (its cache is read anew from the articles) or start_over"
        )
    if way == "start_over":
        problems.append(f"the snapshot cannot be continued ({error}); reading the topic again")
        return None
    try:
        session = Session.adopt(key, parts, snapshot)
    except CorruptSnapshot as broken:
        problems.append(f"the snapshot cannot be read ({broken}); reading the topic again")
        return None
    problems.append(f"the cache cannot be continued ({error}); reading its articles anew")
    return session
