"""Memory that a process has freed and still holds, given back to the system now and then.

What dies in a shard (texts, tables, postings) was made by threads that come and go, each in an arena of glibc's; an
arena gives back by itself only what lies free at its end. So each keeps its highest tide, and the sum climbs.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import pyarrow as pa

_EVERY_S = 10.0


class SpareMemory:
    """Gives back what is free, at most every `every_s` seconds; for one thread."""

    def __init__(self, every_s: float = _EVERY_S, give: Callable[[], None] | None = None) -> None:
        self._every_s = every_s
        self._give = give or _give
        self._given_at: float | None = None

    def give_back(self) -> bool:
        """Do so where it is due; whether it was."""
        now = time.monotonic()
        if self._given_at is not None and now - self._given_at < self._every_s:
            return False
        self._given_at = now
        self._give()
        return True


def _give() -> None:
    """Arrow's pool and, where the C library is glibc, its arenas; calls from ctypes leave other threads running."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
