"""Pools of forked processes share what their parent holds, and end whatever a child does."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from infra.training.forked import forked_pool

_TEXTS: list[str] = []


def _length(at: int) -> int:
    return len(_TEXTS[at])


def _deaf(began: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    began.touch()
    time.sleep(600)


def _handler(_: int) -> bool:
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_children_see_what_was_read_before() -> None:
    """Without a copy through a pipe."""
    _TEXTS[:] = ["a", "bcd"]
    with forked_pool(2) as pool:
        assert pool.map(_length, [0, 1]) == [1, 3]


def test_a_child_that_no_signal_reaches_is_killed(tmp_path: Path) -> None:
    """`Pool.terminate` alone would wait for it for ever."""
    began, deaf = time.monotonic(), tmp_path / "deaf"
    with forked_pool(2, end_s=0.3) as pool:
        pool.map_async(_deaf, [deaf])
        while not deaf.exists() and time.monotonic() - began < 30:
            time.sleep(0.01)
    assert deaf.exists() and time.monotonic() - began < 60


def test_children_do_not_inherit_a_handler_of_sigterm_and_the_parent_keeps_its_own() -> None:
    """A handler in Python would never run in a child that stands still."""
    before = signal.getsignal(signal.SIGTERM)
    mine = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGTERM, mine)
    try:
        with forked_pool(1) as pool:
            assert pool.map(_handler, [0]) == [True]
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
