"""What asks beside the freshness bench: a failed search is counted and asked again, an error of ours is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from infra.bench import freshness
from infra.bench.freshness import Prober, Searcher
from pipeline.errors import DependencyUnreachable


class _Topic:
    """Published articles, in place of a broker; a publisher of itself."""

    def __init__(self, kafka: Any = None) -> None:
        self.ids: list[str] = kafka

    def __enter__(self) -> _Topic:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def publish_raw(self, key: bytes, value: bytes, *, stream: str) -> None:
        self.ids.append(key.decode())

    def flush(self) -> None:
        pass


class _Store:
    """Finds what it is asked for, except in the searches whose numbers are `failing`."""

    def __init__(self, failing: range, error: Exception) -> None:
        self._failing, self._error = failing, error
        self.asked = 0

    def search(self, texts: list[str], k: int, mode: str) -> Any:
        self.asked += 1
        if self.asked in self._failing:
            raise self._error
        return SimpleNamespace(passages=[[SimpleNamespace(article_id=texts[0])]], partial=False)


SLOW = DependencyUnreachable("no shard answered: shard 0 needed more than 2.0 s")


@pytest.fixture
def prober(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prober]:
    """Makes probers that publish to a list, a hundred a second."""
    monkeypatch.setattr(freshness, "Publisher", _Topic)
    return lambda store, **limits: Prober([], store, interval_s=0.01, **limits)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "not within half a minute"
        time.sleep(0.005)


def test_a_probe_whose_search_fails_is_asked_for_again(prober: Callable[..., Prober]) -> None:
    """The failed searches are counted, the probe's wait goes on over them, and later probes follow."""
    asking = prober(_Store(range(1, 4), SLOW))
    _until(lambda: len(asking.waits_ms) >= 3)
    asking.stop()
    assert (asking.failed, asking.lost) == (3, 0)
    assert asking.waits_ms[0] > 20  # three failed searches, 10 ms after each


def test_a_probe_that_is_never_found_is_lost_and_does_not_end_the_next(prober: Callable[..., Prober]) -> None:
    """A store that answers nothing loses every probe; the prober lives."""
    asking = prober(_Store(range(1, 10**9), SLOW), limit_s=0.05)
    _until(lambda: asking.lost >= 2)
    asking.stop()
    assert asking.waits_ms == [] and asking.failed >= 4


def test_a_searcher_counts_what_fails_and_goes_on() -> None:
    """Failed searches have no wait: they are told apart from those answered."""
    asking = Searcher(_Store(range(2, 4), SLOW), rate=500.0)
    _until(lambda: len(asking.waits_ms) >= 5)
    asking.stop()
    assert asking.failed == 2


def test_an_error_that_is_not_the_stores_is_told(prober: Callable[..., Prober]) -> None:
    """A prober or searcher that died of a mistake of ours does not pass for one that found nothing to do."""
    dead = prober(_Store(range(1, 2), KeyError("passages")))
    _until(lambda: not dead._thread.is_alive())
    with pytest.raises(KeyError, match="passages"):
        dead.stop()
    searcher = Searcher(_Store(range(1, 2), KeyError("passages")), rate=500.0)
    _until(lambda: not searcher._thread.is_alive())
    with pytest.raises(KeyError, match="passages"):
        searcher.stop()
