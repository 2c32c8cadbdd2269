"""What is free is given back, not too often."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from types import SimpleNamespace

import pytest

from actors import shard, spare_memory
from actors.spare_memory import SpareMemory
from infra.bench.soak import Memory


def test_it_is_given_back_at_most_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first call, and then when the time is over."""
    given: list[float] = []
    now = [100.0]
    monkeypatch.setattr(spare_memory.time, "monotonic", lambda: now[0])
    spare = SpareMemory(10.0, lambda: given.append(now[0]))
    for now[0] in (100.0, 101.0, 109.9, 110.0, 111.0, 125.0):
        spare.give_back()
    assert given == [100.0, 110.0, 125.0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and glibc's arenas")
def test_what_lies_free_below_something_in_use_leaves_the_process() -> None:
    """glibc gives only the end of an arena back by itself."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("not glibc")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    held = [libc.malloc(65_536) for _ in range(1_024)]
    for block in held:
        ctypes.memset(block, 1, 65_536)
    for block in held[:-1]:
        libc.free(block)
    before = Memory.of(os.getpid()).anonymous
    SpareMemory().give_back()
    after = Memory.of(os.getpid()).anonymous
    libc.free(held[-1])
    assert before - after > 48 << 20


def test_a_shard_gives_back_after_each_look_of_maintenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has expired is freed by then."""
    done: list[str] = []
    closing = threading.Event()

    def stats() -> dict[str, int]:
        closing.set()
        return {"live_chunks": 0, "tombstones": 0, "index_bytes": 0}

    actor = shard.ShardActor.__new__(shard.ShardActor)
    actor._failure, actor._closing, actor._tags = None, closing, {"shard": "0"}
    actor._shard = SimpleNamespace(maintain=lambda now_ms: done.append("looked"), stats=stats)
    monkeypatch.setattr(shard, "SpareMemory", lambda: SimpleNamespace(give_back=lambda: done.append("given")))
    monkeypatch.setattr(
        shard, "metric", lambda name: SimpleNamespace(set=lambda value, tags: done.append(name))
    )
    actor._maintain(0.01)
    assert done == ["looked", "given", "index_chunks", "index_tombstones", "index_bytes"]
