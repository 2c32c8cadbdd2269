"""The parts of ingest without Ray: delays, retries, placement, and what its threads hand each other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.delays import Delays
from actors.ingest import Ingester
from actors.ingest_config import IngestConfig
from actors.remote import Stopped, persist, store_name, take
from pipeline.errors import DependencyUnreachable
from pipeline.placement import shard_of
from pipeline.source import Record


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_percentile_lies_within_a_bucket_of_the_true_one(delays: list[float], share: float) -> None:
    """A percentile is at most 5% off the sorted list's own."""
    histogram = Delays()
    for delay in delays:
        histogram.add(delay)
    exact = sorted(delays)[int(np.ceil(share * len(delays))) - 1]
    assert histogram.percentile(share) == pytest.approx(exact, rel=0.06, abs=0.1)


def test_merged_delays_count_both() -> None:
    """Two histograms merge to that of all delays; an empty one has no percentile."""
    one, two = Delays(), Delays()
    one.add(10)
    two.add(1_000)
    one.merge(two.counts)
    assert sum(one.counts.values()) == 2
    assert Delays().to_dict() == {"p50": None, "p99": None}


def _persist(attempt: Callable[[], Any], *, limit_s: float = 5.0, stopped: bool = False) -> Any:
    return persist(attempt, "the part", first_s=0.001, max_s=0.002, limit_s=limit_s, stopped=lambda: stopped)


def test_outage_is_retried_until_it_ends() -> None:
    """Connection errors are tried again; the result comes out in the end."""
    failures = [ConnectionError("down"), DependencyUnreachable("down")]

    def attempt() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert _persist(attempt) == "done"


def test_other_errors_are_not_retried() -> None:
    """What a retry cannot mend is raised at once."""
    calls: list[int] = []

    def attempt() -> None:
        calls.append(1)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        _persist(attempt)
    assert len(calls) == 1


def test_endless_outage_ends_with_a_limit() -> None:
    """After the limit the part that does not answer is named."""

    def attempt() -> None:
        raise ConnectionError("refused")

    with pytest.raises(DependencyUnreachable, match="the part has not answered"):
        _persist(attempt, limit_s=0.01)
    with pytest.raises(Stopped):
        _persist(attempt, stopped=True)


@given(st.text(min_size=1), st.integers(1, 12))
def test_placement_moves_only_to_the_new_shard(key: str, num_shards: int) -> None:
    """With one shard more a key stays where it was or goes to the new one."""
    assert shard_of(key, num_shards + 1) in (shard_of(key, num_shards), num_shards)


def test_placement_is_even() -> None:
    """Four shards share 4,000 keys within a tenth."""
    counts = np.bincount([shard_of(f"article-{number}", 4) for number in range(4_000)])
    assert counts.min() > 900
    assert counts.max() < 1_100


def test_store_name_follows_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spellings of one folder are one store; another folder is another."""
    monkeypatch.chdir(tmp_path)
    assert store_name(Path("store")) == store_name(tmp_path / "store")
    assert store_name(Path("store")) != store_name(tmp_path / "deep" / "store")


@pytest.mark.parametrize("fields", [{"num_ingesters": 0}, {"resume_at": 1.0}, {"commit_interval_s": 0}])
def test_wrong_ingest_configuration_is_named(fields: dict[str, float]) -> None:
    """The message names the field and the value given."""
    name, value = next(iter(fields.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        IngestConfig(**fields)  # type: ignore[arg-type]


def test_polls_that_wait_are_taken_together_in_order() -> None:
    """Records behind one another make one list, at most so many; a gap and the end keep their place."""
    ingester = object.__new__(Ingester)
    ingester._polled, ingester._held, ingester._abandon = queue.SimpleQueue(), None, threading.Event()
    many = [Record("news", 0, n, 1_000, b"k", b"", ()) for n in range(5_000)]
    parts: list[Any] = [many[:2], many[2:3], {0: 7}, many[3:4], many[4:3_000], many[3_000:], None]
    for part in parts:
        ingester._polled.put(part)
    taken = [ingester._next_polled() for _ in range(5)]
    assert taken == [many[:3], {0: 7}, many[3:3_000], many[3_000:], None]


def test_a_thread_that_waits_for_the_one_before_ends_when_nobody_wants_more() -> None:
    """What is there is taken first; then, where nothing ever comes, the wait ends once the ingester is given up."""
    given_up, waiting = threading.Event(), queue.SimpleQueue[str]()
    given_up.set()
    waiting.put("last")
    assert take(waiting, given_up.is_set) == "last"
    given_up.clear()
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def wait() -> None:
        try:
            ended.put(take(waiting, given_up.is_set))
        except Stopped as error:
            ended.put(str(error))

    threading.Thread(target=wait, daemon=True).start()
    given_up.set()
    assert ended.get(timeout=30) == "what the thread before hands on"


def test_a_stop_gives_up_threads_that_a_hanging_poll_would_keep() -> None:
    """The thread that polls does not end; those behind it do."""
    ingester = object.__new__(Ingester)
    ingester._config = IngestConfig(stop_grace_s=0.01)
    ingester._stopping, ingester._abandon = threading.Event(), threading.Event()
    ingester._ended = SimpleNamespace(wait=lambda timeout: False)  # type: ignore[assignment]
    ingester.figures = lambda: {"ended": False}  # type: ignore[method-assign]
    ingester._polled, ingester._held = queue.SimpleQueue(), None
    assert ingester.stop() == {"ended": False}
    assert ingester._abandon.is_set()
    with pytest.raises(Stopped):
        ingester._next_polled()
