"""How much memory this process and all its children take at the peak, shared pages counted once."""

from __future__ import annotations

import threading

import psutil

_INTERVAL_S = 2.0


class PeakMemory:
    """Samples while it is entered; proportional set size where the kernel tells it, resident size elsewhere."""

    def __init__(self) -> None:
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)

    def peak_gb(self) -> float:
        """The largest sample so far, in 10^9 bytes."""
        self._peak = max(self._peak, _tree_bytes())
        return round(self._peak / 1e9, 2)

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            self._peak = max(self._peak, _tree_bytes())


def _tree_bytes() -> int:
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
