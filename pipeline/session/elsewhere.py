"""What becomes, where a session does not read, of an article that it has read: the store tells it.

A session follows the partition of its stream. A later version of an article that stands in another stream, or a
withdrawal that was published on another partition, reaches the store and no record of the session's own. So one
thread asks the store which articles have changed, and where those that sessions have read stand now; what came
elsewhere is dropped as if it had been withdrawn. What the session's own records tell is left to them: a change is
acted on only once all that its partitions held when it was heard of has been read, in their order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.errors import DysraError
from pipeline.log import get_logger
from pipeline.session.intake import Intake
from pipeline.session.ports import Changed, Library, Place
from pipeline.session.session import Session
from pipeline.session.tail import StreamTail

_ASKED_AT_ONCE = 512


class Watch:
    """The articles of one session that may have changed elsewhere. Its reader calls `note` and `due`, another
    thread `asked` and `told`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all = True
        """What was read before, in an earlier process, is all to be looked at once."""
        self._open: set[str] = set()
        """Read, or told as changed, and not looked up since."""
        self._moved: dict[str, Place] = {}
        self._wanted: dict[str, dict[int, int]] = {}
        """Where the session's partitions ended when a move was heard of."""

    def note(self, article_id: str) -> None:
        """An article was read: the store may be ahead."""
        with self._lock:
            self._open.add(article_id)

    def asked(self, session: Session, changed: Changed) -> list[str]:
        """The articles to look up, those that `changed` names among them."""
        read = session.state.read
        with self._lock:
            self._all |= changed.truncated
            self._open.update(name for name in changed.article_ids if name in read)
            return list(self._open)

    def told(self, session: Session, asked: Iterable[str], places: Mapping[str, Place]) -> None:
        """Where those articles stand now; the store does not know those left out (yet, or any more)."""
        with self._lock:
            for name in asked:
                self._open.discard(name)
                place = places.get(name)
                if place is not None and place.stream != session.key.stream:
                    self._moved[name] = place

    def due(self, session: Session, tail: StreamTail) -> list[Intake]:
        """What is to be dropped now, as withdrawals."""
        state = session.state
        with self._lock:
            if self._all:
                self._all = False
                self._open.update(name for name, _ in state.standing())
            moved = dict(self._moved)
        found: list[Intake] = []
        for name, place in moved.items():
            if _replaced(session, name, place):
                if name not in self._wanted:
                    self._wanted[name] = tail.ends()
                if not _reached(session, self._wanted[name]) and tail.lag():
                    continue
                found.append(_withdrawal(session, name, place))
            self._wanted.pop(name, None)
            with self._lock:
                if self._moved.get(name) == place:
                    del self._moved[name]
        return found


class Elsewhere:
    """The thread that asks for all sessions of a process."""

    def __init__(
        self,
        watched: Callable[[], Sequence[tuple[Watch, Session]]],
        library: Callable[[], Library],
        every_s: Callable[[], float],
        stopped: threading.Event,
    ) -> None:
        self._watched, self._library, self._every_s, self._stopped = watched, library, every_s, stopped
        self._cursor: Sequence[int] | None = None
        self._log = get_logger()
        self._told = ""
        threading.Thread(target=self._run, name="elsewhere", daemon=True).start()

    def look(self) -> None:
        """Ask once. Raises where the store does not answer; nothing is forgotten then."""
        watched = self._watched()
        if not watched:
            return  # what is read later is looked up when it is read
        library = self._library()
        changed = library.changes(self._cursor)
        asked = [(watch, session, watch.asked(session, changed)) for watch, session in watched]
        names = sorted({name for _, _, mine in asked for name in mine})
        places: dict[str, Place] = {}
        for begin in range(0, len(names), _ASKED_AT_ONCE):
            places |= library.places(names[begin : begin + _ASKED_AT_ONCE])
        for watch, session, mine in asked:
            watch.told(session, mine, places)
        self._cursor = changed.cursor

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s()):
            try:
                self.look()
                self._told = ""
            except DysraError as error:  # an outage: asked again, from the same place
                if str(error) != self._told:
                    self._log.warning("changes_not_heard", error=str(error))
                self._told = str(error)
            except Exception as error:  # without this thread nobody hears of a move
                self._log.exception("changes_not_heard", error=f"{type(error).__name__}: {error}")


def _replaced(session: Session, article_id: str, place: Place) -> bool:
    """Whether what the session has read is not what stands: that is a later version, or withdrawn."""
    known = session.state.read.get(article_id)
    if known is None or known.withdrawn:
        return False
    return place.version_ms >= known.version_ms + (place.stream is not None)


def _reached(session: Session, ends: Mapping[int, int]) -> bool:
    offsets = session.state.offsets or {}
    return all(offsets.get(partition, 0) >= end for partition, end in ends.items())


def _withdrawal(session: Session, article_id: str, place: Place) -> Intake:
    known = session.state.read[article_id]
    return Intake(
        kind="withdrawal",
        article_id=article_id,
        version_ms=place.version_ms,
        published_ms=known.version_ms,
        title="",
        text="",
    )
