"""SIGTERM ends the demo like an interrupt, once: what stops already is left to stop."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Self

from pipeline.errors import StoppedEarly


class StoppedBySignal:
    """While entered, the first SIGTERM raises StoppedEarly; none does after `stopping`.

    A second one would end the stopping itself and leave a broker or Ray behind.
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
        signal.signal(signal.SIGTERM, self._previous)

    def listen(self) -> None:
        """Take the signal, also back from a library that has set a handler of its own."""
        signal.signal(signal.SIGTERM, self._end)

    def stopping(self) -> None:
        """From now on the signal changes nothing: everything is being stopped."""
        self._stopping = True
        self.listen()

    def _end(self, number: int, frame: object) -> None:
        if not self._stopping:
            self._stopping = True
            raise StoppedEarly("stopped by SIGTERM; everything was shut down")
