"""Clean stops: signals set an event that the work looks at, or end it like an interrupt, once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from pipeline.errors import StoppedEarly


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second one interrupts at once. Handlers are put back on leaving.

    Outside the main thread, where Python takes no handlers, the event is never set.
    """
    stop = threading.Event()
    if not _takes_handlers():
        yield stop
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StoppedBySignal:
    """While entered, the first SIGTERM raises StoppedEarly; none does after `stopping`.

    A second one would end the stopping itself and leave a broker or Ray behind. Outside the main thread, where
    Python takes no handlers, nothing changes.
    """

    def __init__(self) -> None:
        self._stopping = False

    def __enter__(self) -> Self:
        self._previous = signal.getsignal(signal.SIGTERM)
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _takes_handlers():
            signal.signal(signal.SIGTERM, self._previous)

    def listen(self) -> None:
        """Take the signal, also back from a library that has set a handler of its own."""
        if _takes_handlers():
            signal.signal(signal.SIGTERM, self._end)

    def stopping(self) -> None:
        """From now on the signal changes nothing: everything is being stopped."""
        self._stopping = True
        self.listen()

    def _end(self, number: int, frame: object) -> None:
        if not self._stopping:
            self._stopping = True
            raise StoppedEarly("stopped by SIGTERM; everything was shut down")


def _takes_handlers() -> bool:
    return threading.current_thread() is threading.main_thread()
