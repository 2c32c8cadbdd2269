"""Corrections and withdrawals of one resident session: counted, told, and followed by a rebuild in good time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pipeline.session.intake import Intake
from pipeline.session.ports import Library, ModelRunner
from pipeline.session.rebuild import Rebuild
from pipeline.session.session import Applied, Session

_LOOK_AGAIN_S = 1.0


class Retractions:
    """Used by the session's reader thread; others read the counts alone."""

    def __init__(self, session: Session, library: Library, emit: Callable[..., None]) -> None:
        self._session, self._library, self._emit = session, library, emit
        self._rebuild: Rebuild | None = None
        self._next_at = 0.0
        # A rebuild that an earlier process has left unfinished is late from the start.
        late = session.state.rebuild_from is not None
        self._asked_at = time.monotonic() - (session.parts.config.rebuild_within_s / 2 if late else 0.0)
        self.count = self.rebuilds = self.rebuild_tokens = 0

    @property
    def urgent(self) -> bool:
        """Whether a rebuild has used up half of its time: the session reads nothing else until it is done."""
        return self._pending and self._age_s >= self._session.parts.config.rebuild_within_s / 2

    def totals(self) -> dict[str, int]:
        """Articles dropped, rebuilds done, tokens read for them, since the session was opened here."""
        return {"retractions": self.count, "rebuilds": self.rebuilds, "rebuild_tokens": self.rebuild_tokens}

    def note(self, intake: Intake, applied: Applied) -> None:
        """Tell of an article whose former version was just dropped."""
        self.count += 1
        if self._rebuild is None:
            self._asked_at = time.monotonic()
        self._emit(
            "retracted",
            what=intake.kind,
            article_id=intake.article_id,
            dropped=applied.dropped,
            rebuild=self._pending,
        )

    def step(self, runner: ModelRunner) -> tuple[bool, bool]:
        """Do a piece of the rebuild that is wanted, if its rate allows; whether it did, and whether it is done."""
        if not self._pending:
            self._rebuild = None
            return False, False
        config, now = self._session.parts.config, time.monotonic()
        if self._rebuild is None:
            self._rebuild = Rebuild(self._session, self._library)
            self._next_at = now
            self._emit("rebuild_started", articles=self._rebuild.left)
        if now < self._next_at:
            return False, False
        piece = self._rebuild.step(runner, skip_missing=self._age_s >= config.rebuild_within_s)
        if piece.waits:
            self._next_at = now + min(_LOOK_AGAIN_S, config.rebuild_within_s / 8)
        elif not self.urgent:
            # a piece at a slow rate may not put the next one off beyond the time when the rate no longer counts
            late_at = self._asked_at + config.rebuild_within_s / 2
            self._next_at = min(now + piece.tokens / config.rebuild_tokens_per_s, late_at)
        self.rebuild_tokens += piece.tokens
        return not piece.waits, piece.complete

    def finish(self, runner: ModelRunner) -> None:
        """Take the rebuilt cache over and tell of it."""
        done = self._rebuild
        assert done is not None
        done.finish(runner)
        self._rebuild = None
        self.rebuilds += 1
        self._emit("rebuilt", **self._about(done), seconds=round(self._age_s, 2))

    @property
    def _pending(self) -> bool:
        return self._session.state.rebuild_from is not None

    @property
    def _age_s(self) -> float:
        return time.monotonic() - self._asked_at

    @staticmethod
    def _about(done: Rebuild) -> dict[str, Any]:
        return {
            "articles": done.articles,
            "left_out": done.left_out,
            "tokens": done.tokens,
            "restarts": done.restarts,
        }
