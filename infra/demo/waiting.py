"""While something takes long: a sign of life every ten seconds, so that nobody wonders whether it hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from infra.console import say


@contextmanager
def waiting(what: str, every_s: float = 10.0) -> Iterator[None]:
    """Say every `every_s` seconds that `what` goes on still, and since when."""
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(every_s):
            say(f"   {what}… ({time.monotonic() - began:.0f} s)")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join(timeout=5)
