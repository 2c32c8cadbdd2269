"""Keyword search under load: appends do not wait for commits, and what they added is found in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.store import Shard
from tests.pipeline.store import make


def _append(shard: Shard, name: str, offset: int) -> None:
    make.put(shard, make.upsert(name, offset))


def _found(shard: Shard, name: str) -> bool:
    return bool(shard._core.lexical.search(f"marker{name}", 5, make.says(f"marker{name}")))


def _within(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    """A shard that commits words every 100 ms and does not seal meanwhile."""
    made = make.open_shard(tmp_path, lexical_commit_ms=100.0, seal_rows=1_000, min_seal_rows=1_000)
    yield made
    made.close()


def test_append_after_a_pause_is_found_by_word_at_once(shard: Shard) -> None:
    """Without load there is nothing to wait for."""
    time.sleep(0.25)
    _append(shard, "a", 0)
    assert _found(shard, "a")


def test_appends_one_upon_the_other_are_found_without_another_append_or_search(shard: Shard) -> None:
    """What the last append left uncommitted is committed in time, and the thread for it ends."""
    time.sleep(0.25)
    for offset, name in enumerate("abc"):
        _append(shard, name, offset)
    assert _within(lambda: _found(shard, "c"), 10.0)
    assert _within(lambda: shard._core._committer is None, 10.0)


def test_append_goes_on_while_words_are_committed(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that takes long holds up no append, and the rows come to the index by the next."""
    since_ms = 50.0
    monkeypatch.setattr(type(shard._core.lexical), "since_commit_ms", property(lambda _: since_ms))
    begun, go_on = threading.Event(), threading.Event()
    commit = shard._core.lexical.commit

    def slow() -> None:
        begun.set()
        assert go_on.wait(30)
        commit()

    monkeypatch.setattr(shard._core.lexical, "commit", slow)
    _append(shard, "b", 0)
    since_ms = 150.0
    assert begun.wait(30)
    _append(shard, "c", 1)
    assert shard.offsets() == {(make.TOPIC, 0): 2}
    go_on.set()
    assert _within(lambda: _found(shard, "c"), 10.0)


def test_what_waits_is_bounded(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append beyond the bound carries what waits to the index before it returns."""
    monkeypatch.setattr("pipeline.store.core._MAX_WAITING", 3)
    monkeypatch.setattr(type(shard._core.lexical), "since_commit_ms", property(lambda _: 0.0))
    for offset in range(9):
        _append(shard, f"n{offset}", offset)
        assert len(shard._core._waiting) <= 3


def test_delete_and_update_reach_the_words_in_order(shard: Shard) -> None:
    """The newest version of an article is found, and a withdrawn one is not."""
    time.sleep(0.25)
    records = [make.upsert("a", 0), make.upsert("a", 1, version=5), make.upsert("b", 2), make.delete("b", 3)]
    for record in records:
        make.put(shard, record)
    wanted = {make.article("a", 5).version_ms}

    def versions() -> set[int]:
        hits = shard._core.lexical.search("markera markerb", 9, make.says("markera"))
        return {hit.version_ms for hit in hits}

    assert _within(lambda: not shard._core._waiting and versions() == wanted, 10.0)
    assert not _found(shard, "b")


def test_close_commits_what_waits(tmp_path: Path) -> None:
    """A shard that is closed between two commits opens with a whole keyword index."""
    shard = make.open_shard(tmp_path, lexical_commit_ms=60_000.0)
    for offset in range(5):
        _append(shard, f"n{offset}", offset)
    shard.close()
    again = make.open_shard(tmp_path, lexical_commit_ms=60_000.0)
    assert _found(again, "n4") and again.stats()["repairs"] == []
    again.close()
