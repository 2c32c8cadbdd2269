"""Calls that nobody waits for any more and that their actor has not answered: how many lie with one is bounded.

A process that stands still (stopped, behind a broken network) is not dead: Ray keeps what it is asked and hands it
over once it goes on. Ray's own bound (`max_pending_calls`) holds in the process that made the actor alone; handles
found by name, as ours are, have none.
"""

from __future__ import annotations

import threading
from typing import Any

MAX_LATE_CALLS = 256
"""Above what a crowded actor has (it drops what is late, unsearched), below what would be felt anywhere."""


class LateCalls:
    """Counts the late calls of each actor until they end; may be used from many threads."""

    def __init__(self, limit: int = MAX_LATE_CALLS) -> None:
        self._limit = limit
        self._counts: dict[Any, int] = {}
        self._lock = threading.Lock()

    def full(self, actor: Any) -> bool:
        """Whether the actor is to be asked nothing more until one of its late calls ends."""
        with self._lock:
            return self._counts.get(actor, 0) >= self._limit

    def note(self, actor: Any, ref: Any) -> None:
        """Count a call until it ends: answered, failed, or its actor dead."""
        with self._lock:
            self._counts[actor] = self._counts.get(actor, 0) + 1
        ref.future().add_done_callback(lambda _: self._ended(actor))

    def _ended(self, actor: Any) -> None:
        with self._lock:
            self._counts[actor] -= 1
            if not self._counts[actor]:
                del self._counts[actor]
