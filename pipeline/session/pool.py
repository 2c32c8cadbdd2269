"""All sessions of one process: opened on first use, read in turn, saved, and put to rest when too many.

One reader thread gives every session one article at a time; model work runs on the model thread, where
questions go first.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DysraError
from pipeline.log import get_logger
from pipeline.session.answer import Event, Question
from pipeline.session.asking import AskParts, answer
from pipeline.session.elsewhere import Elsewhere
from pipeline.session.model_thread import READING, ModelSilent, ModelThread
from pipeline.session.places import SessionPlaces
from pipeline.session.resident import Resident, SessionRefused, SnapshotNotWritten
from pipeline.session.session import SessionParts
from pipeline.session.snapshot import SnapshotFolder, StaleLease
from pipeline.session.state import SessionKey
from pipeline.session.summary import SummaryRequest, summarize
from pipeline.session.tail import StreamTail

_IDLE_S = 0.1
_RETRY_S = 5.0
_REST_S = 5.0


class SessionPool:
    """Sessions by key. Thread-safe; `close` saves them all."""

    def __init__(
        self,
        *,
        sessions: SessionParts,
        asking: AskParts,
        tails: Callable[[str], StreamTail],
        root: Path,
        owner: str,
        model: ModelThread,
        ours: Callable[[], bool] = lambda: True,
        let_go_s: float = 150.0,
    ) -> None:
        """`ours` tells whether this process is still the one that may take sessions over; `let_go_s`: how long a
        session that is removed or changes its model waits for the answers under way and its snapshot."""
        self.sessions = sessions
        self.asking = asking
        self._tails = tails
        self._places = SessionPlaces(root)
        self._owner = owner
        self.model = model
        self._ours = ours
        self._let_go_s = let_go_s
        self._lane = model.lane(READING)
        self._residents: dict[SessionKey, Resident] = {}
        self._changed = threading.Condition()
        self._totals = {f"session_{name}_total": 0 for name in ("retractions", "rebuilds", "rebuild_tokens")}
        self._stopped = threading.Event()
        self._log = get_logger(owner=owner)
        self._reader = threading.Thread(target=self._read, name="session-reader", daemon=True)
        self._reader.start()
        self._elsewhere = Elsewhere(
            lambda: [(resident.watch, resident.session) for resident in list(self._residents.values())],
            lambda: self.asking.library,
            lambda: self.sessions.config.elsewhere_every_s,
            self._stopped,
        )

    @property
    def healthy(self) -> bool:
        """Whether the reader and the model thread are at work."""
        return self._reader.is_alive() and self.model.alive

    def known(self, key: SessionKey) -> bool:
        """Whether the session exists, here or on disk, or the store holds articles of its stream."""
        if key in self._residents or self._places.folder(key).is_dir():
            return True
        found = self.asking.library.recent(key.stream, 1, None, self.sessions.config.search_deadline_s)
        return bool(found)

    def open(self, key: SessionKey) -> Resident:
        """The session, restored or made if it is not here."""
        with self._changed:
            while True:
                if self._stopped.is_set():
                    raise DysraError("this replica is stopping; ask again")
                resident = self._residents.get(key)
                if resident is None:
                    break
                if not resident.leaving:
                    resident.last_used = time.monotonic()
                    return resident
                self._changed.wait(timeout=1.0)
            self._require_ours()  # not before: who is resident answers from memory, whatever its disk does
            path = self._places.folder(key)
            if not path.is_dir():
                self._places.require_room(key, self.sessions.config.max_per_tenant)
            self._places.require_known(key)
            try:
                path.mkdir(parents=True, exist_ok=True)
                self._places.note(key, resident=True)
            except OSError as error:
                raise SnapshotNotWritten(f"session {key.id} cannot be opened: {error}") from None
            folder = SnapshotFolder(path, self._owner, self.sessions.config.keep_snapshots)
            tail, library = self._tails(key.stream), self.asking.library
            resident = Resident.open(key, self.sessions, folder, tail, library)
            self._residents[key] = resident
            self._make_room(key)
            return resident

    def configure(
        self, sessions: SessionParts, asking: AskParts, tails: Callable[[str], StreamTail], *, reopen: bool
    ) -> None:
        """Go on with other parts. Sessions stay as they are, or with `reopen` (another model or shape of cache) are
        saved and opened again where they were; one that cannot be is left to its snapshot."""
        with self._changed:
            if not reopen:
                for resident in self._residents.values():
                    resident.session.parts = sessions
            self.sessions, self.asking, self._tails = sessions, asking, tails
            held = list(self._residents.items()) if reopen else []
            for _, resident in held:
                resident.outdated = resident.leaving = True
        for key, resident in held:
            try:
                self._let_go(key, resident)
                self.open(key)
            except DysraError as error:
                self._log.error("session_refused", session_id=key.id, error=str(error))

    def remove(self, key: SessionKey) -> bool:
        """Forget the session, its snapshots too; whether there was one. The answers under way end first."""
        self._require_ours()
        with self._changed:
            resident = self._residents.get(key)
            if resident is not None:
                resident.outdated = resident.unwanted = resident.leaving = True
        if resident is not None:
            self._let_go(key, resident)
        with self._changed:
            if key in self._residents:
                raise DysraError(f"stream {key.stream!r} was opened again meanwhile; ask again")
            folder = self._places.folder(key)
            found = folder.is_dir()
            shutil.rmtree(folder, ignore_errors=True)
        return found

    def _let_go(self, key: SessionKey, resident: Resident) -> None:
        """Wait until the reader has saved a session and dropped it; the answers under way end first."""
        deadline = time.monotonic() + self._let_go_s
        with self._changed:
            while self._residents.get(key) is resident:
                if self._stopped.is_set():
                    raise DysraError("this replica is stopping; ask again")
                if time.monotonic() > deadline:
                    waited = f"did not end within {self._let_go_s:g} s"
                    raise DysraError(f"stream {key.stream!r} has answers under way that {waited}; ask again")
                resident.leaving = True
                self._changed.wait(timeout=0.2)

    def resume(self, ours: Callable[[SessionKey], bool]) -> list[SessionKey]:
        """Open the sessions that were in memory when a process last held them, those that `ours` accepts."""
        opened: list[SessionKey] = []
        for about in self._places.notes():
            key = SessionKey(str(about["tenant"]), str(about["stream"]))
            if about.get("resident") and ours(key) and len(opened) < self.sessions.config.max_resident:
                try:
                    self.open(key)
                except SessionRefused as error:
                    self._log.error("session_refused", session_id=key.id, error=str(error))
                    continue
                opened.append(key)
        return opened

    def ask(
        self, key: SessionKey, question: Question, cancelled: threading.Event | None = None
    ) -> Iterator[Event]:
        """The events of one answer; the session is left as it was."""
        resident, asking = self._enter(key)
        try:
            yield from answer(question, resident.view(), asking, cancelled)
        finally:
            self._exit(resident)

    def summarize(self, key: SessionKey, request: SummaryRequest) -> dict[str, Any]:
        """A summary of the session's stream."""
        resident, asking = self._enter(key)
        try:
            return summarize(request, resident.view(), asking)
        finally:
            self._exit(resident)

    def info(self, key: SessionKey, *, digest: bool = False) -> dict[str, Any] | None:
        """The session's page; None if there is no such session."""
        resident = self._residents.get(key)
        if resident is not None:
            return {**resident.info(), **({"digest": resident.digest()} if digest else {})}
        if self._places.folder(key).is_dir():
            return {"stream": key.stream, "state": "stored"}
        return None

    def infos(self, tenant: str) -> list[dict[str, Any]]:
        """The pages of a tenant's resident sessions."""
        found = sorted((k, r) for k, r in list(self._residents.items()) if k.tenant == tenant)
        return [resident.info() for _, resident in found]

    def stored(self, tenant: str) -> list[str]:
        """Streams of which the tenant has a session on disk, resident anywhere or not."""
        return sorted(str(a["stream"]) for a in self._places.notes() if a["tenant"] == tenant)

    def events_after(self, key: SessionKey, number: int) -> list[dict[str, Any]]:
        """The session's events later than `number`."""
        resident = self._residents.get(key)
        return [] if resident is None else resident.events_after(number)

    def gauges(self) -> dict[str, float]:
        """Figures for the metrics of this process."""
        residents = list(self._residents.values())
        ages = [age for r in residents if (age := r.snapshot_age_s) is not None]
        return {
            "session_resident": len(residents),
            "session_bytes": sum(r.session.nbytes for r in residents),
            "session_lag_records": max((r.lag().records for r in residents), default=0),
            "snapshot_age_s": max(ages, default=0.0),
            "session_rebuilds_pending": sum(r.session.state.rebuild_from is not None for r in residents),
        }

    def totals(self) -> dict[str, int]:
        """What only grows, since this process began; sessions put to rest included."""
        with self._changed:
            return dict(self._totals)

    def close(self, timeout_s: float = 30.0) -> list[str]:
        """Stop reading, save every session, let go. Returns what could not be saved; safe to call twice."""
        self._stopped.set()
        self._reader.join(timeout_s)
        problems = []
        for key, resident in list(self._residents.items()):
            try:
                # The reader has ended, or holds one session that does not come to rest; the others are saved.
                resident.leave(save=True, wait_s=_REST_S)
            except (DysraError, OSError) as error:
                problems.append(f"{key.id}: {error}")
            self._residents.pop(key, None)
        return problems

    def _enter(self, key: SessionKey) -> tuple[Resident, AskParts]:
        """The session with the parts that fit it: its cache and the model that answers belong together."""
        with self._changed:
            held = self._residents.get(key)
            if held is not None and held.outdated:
                doing = "removed" if held.unwanted else "taken over by another model"
                raise DysraError(f"stream {key.stream!r} is being {doing}; ask again")
            resident = self.open(key)
            resident.users += 1
            resident.questions += 1
            return resident, self.asking

    def _exit(self, resident: Resident) -> None:
        with self._changed:
            resident.users -= 1

    def _require_ours(self) -> None:
        """Raise DysraError where a process that was paused for long finds that another has replaced it: opening a
        session would take it back."""
        if not self._ours():
            raise DysraError("another process has taken the sessions of this replica over; ask again")

    def _make_room(self, newest: SessionKey) -> None:
        """Mark the sessions used longest ago as leaving; the reader saves and drops them."""
        resting = [k for k, r in self._residents.items() if not r.leaving and r.users == 0 and k != newest]
        resting.sort(key=lambda k: self._residents[k].last_used)
        over = sum(not r.leaving for r in self._residents.values()) - self.sessions.config.max_resident
        for key in resting[: max(0, over)]:
            self._residents[key].leaving = True

    def _read(self) -> None:
        while not self._stopped.is_set():
            moved = False
            for key, resident in list(self._residents.items()):
                if self._stopped.is_set():
                    return
                if resident.leaving:
                    self._put_to_rest(key, resident)
                elif time.monotonic() >= resident.retry_at:
                    moved |= self._step(key, resident)
            if not moved:
                self._stopped.wait(_IDLE_S)

    def _step(self, key: SessionKey, resident: Resident) -> bool:
        before = resident.retractions.totals()
        try:
            return resident.step(self._lane, self.sessions.config.snapshot_every_s)
        except StaleLease as error:
            self._log.warning("session_lost", session_id=key.id, error=str(error))
            resident.leave(save=False)
            self._forget(key)
        except ModelSilent as error:
            self._reopen(key, resident, str(error))
        except DysraError as error:
            resident.fail(str(error), _RETRY_S)
        except Exception as error:
            if self._stopped.is_set():
                return False
            self._log.exception("session_failed", session_id=key.id)
            self._reopen(key, resident, f"{type(error).__name__}: {error}")
        finally:
            after = resident.retractions.totals()
            for name, value in after.items() if after != before else ():
                self._totals[f"session_{name}_total"] += value - before[name]
        return False

    def _reopen(self, key: SessionKey, resident: Resident, problem: str) -> None:
        """An article may be half read: go back to the last snapshot."""
        resident.leave(save=False)
        self._forget(key)
        with contextlib.suppress(DysraError):
            self.open(key).fail(problem, _RETRY_S)

    def _put_to_rest(self, key: SessionKey, resident: Resident) -> None:
        with self._changed:
            if resident.users:
                resident.leaving = resident.outdated
                return
        try:
            resident.leave(save=not resident.unwanted)
            resident.folder.check()  # whoever has taken it over says for itself whether it is resident
            self._places.note(key, resident=False)
        except (DysraError, OSError) as error:
            self._log.warning("session_not_saved", session_id=key.id, error=str(error))
        self._forget(key)

    def _forget(self, key: SessionKey) -> None:
        with self._changed:
            self._residents.pop(key, None)
            self._changed.notify_all()
