"""A pool of forked processes, which share what their parent has read, that always comes to an end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool
from multiprocessing.process import BaseProcess

END_S = 20.0


@contextmanager
def forked_pool(processes: int, *, end_s: float = END_S) -> Iterator[Pool]:
    """Forked processes for the time of a `with`; at its end they are terminated, after `end_s` seconds killed.

    A child that was forked while another thread of its parent held a lock can stand still from its first moment.
    Its brothers do the work, but a handler of SIGTERM in Python (Ray installs one) never runs in it, so that
    `Pool.terminate` would wait for it for ever. Here children begin with the system's own SIGTERM, and no end is
    waited for without a limit.
    """
    before = set(multiprocessing.active_children())
    with _own_sigterm():
        pool = multiprocessing.get_context("fork").Pool(processes, initializer=_quiet)
    children = set(multiprocessing.active_children()) - before
    try:
        yield pool
    finally:
        killer = threading.Timer(end_s, _kill, [children])
        killer.daemon = True
        killer.start()
        pool.terminate()
        pool.join()
        killer.cancel()


def _kill(children: Iterable[BaseProcess]) -> None:
    for child in children:
        child.kill()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # Python sets handlers in the main thread alone
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler if handler is not None else signal.SIG_DFL)


def _quiet() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
