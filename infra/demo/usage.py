"""What this process and all its children take: memory at the peak, processor time, and time for each stage."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_INTERVAL_S = 2.0
_MEMORY_EVERY = 5
"""The kernel walks a process's pages to count them, 20 ms for one of ours: only in every fifth sample, and at a
stage's end."""


class TreeUsage:
    """Samples while it is entered.

    Memory is the proportional set size where the kernel tells it (shared pages counted once), resident size
    elsewhere. Of a process that has ended counts what the last sample saw: at most 2 s of it are missing.
    """

    def __init__(self) -> None:
        self._peak = 0
        self._processor_s: dict[tuple[int, float], float] = {}
        self._stages: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeUsage:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)

    def peak_gb(self) -> float:
        """The largest sample so far, in 10^9 bytes."""
        self._sample(memory=True)
        return round(self._peak / 1e9, 2)

    def processor_s(self) -> float:
        """Seconds of processor time so far, of user and system, of all processes."""
        self._sample()
        with self._lock:
            return sum(self._processor_s.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside as the stage `name`."""
        began, used = time.monotonic(), self.processor_s()
        yield
        self._sample(memory=True)
        self._stages[name] = {
            "seconds": round(time.monotonic() - began, 1),
            "processor_s": round(self.processor_s() - used, 1),
        }

    def stages(self) -> dict[str, dict[str, float]]:
        """Of each stage that has ended: `seconds` by the clock, and `processor_s`."""
        return dict(self._stages)

    def _watch(self) -> None:
        for number in itertools.count(1):
            if self._over.wait(_INTERVAL_S):
                return
            self._sample(memory=number % _MEMORY_EVERY == 0)

    def _sample(self, memory: bool = False) -> None:
        own = psutil.Process()
        total = 0
        for process in [own, *own.children(recursive=True)]:
            try:
                with process.oneshot():
                    times, key = process.cpu_times(), (process.pid, process.create_time())
                    info = process.memory_full_info() if memory else None
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            total += getattr(info, "pss", info.rss) if info is not None else 0
            with self._lock:
                self._processor_s[key] = max(self._processor_s.get(key, 0.0), times.user + times.system)
        self._peak = max(self._peak, total)
