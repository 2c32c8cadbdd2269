"""The kinds of faults by name, how often each is drawn, and what it needs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from infra.bench.faults import file_faults, shard_faults

Place = Literal["shard", "tmpfs", "session", "cluster"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault: where it is injected, what does it, how often it is drawn."""

    name: str
    place: Place
    about: str
    inject: Callable[[Any, random.Random], str]
    weight: int = 10


def _steps(operation: str) -> Callable[[Any, random.Random], str]:
    return partial(shard_faults.kill_step, operation)


def _flip(pattern: str) -> Callable[[Any, random.Random], str]:
    return partial(file_faults.flip, pattern)


def _shard(name: str, weight: int, about: str, inject: Callable[[Any, random.Random], str]) -> Kind:
    return Kind(name, "shard", about, inject, weight)


_SEGMENT = "segments/seg-??????"
_RUNNING = partial(file_faults.flip_running, "**/*.*")
_SHARD = [
    _shard("kill", 12, "kill -9 of a shard at any moment", shard_faults.kill_any),
    _shard("kill-append", 12, "kill -9 between two steps of an append", _steps("append")),
    _shard("kill-seal", 16, "kill -9 between two steps of a sealing", _steps("seal")),
    _shard("kill-compact", 16, "kill -9 between two steps of a compaction", _steps("compact")),
    _shard("kill-snapshot", 8, "kill -9 between two steps of a snapshot", _steps("snapshot")),
    _shard("kill-open", 10, "kill -9 between two steps of recovery", _steps("open")),
    _shard("pause-shard", 6, "SIGSTOP of a shard, a rival at its folder, SIGCONT", shard_faults.pause_owner),
    _shard("stale-writer", 10, "a replaced ingester wakes up and appends", shard_faults.stale_writer),
    _shard("lost-between", 10, "log cut under a living ingester", shard_faults.lost_between),
    _shard("clock", 6, "event times jump", shard_faults.clock),
    _shard("wal-tail", 14, "tail of the log cut", file_faults.wal_tail),
    _shard("wal-flip", 14, "a bit of the log flipped", _flip("wal/*.wal")),
    _shard("wal-lost", 6, "a file of the log lost", file_faults.wal_lost),
    _shard("parquet-flip", 12, "a bit of a segment's truth flipped", _flip(f"{_SEGMENT}/*.parquet")),
    _shard("faiss-flip", 8, "a bit of a vector index flipped", _flip(f"{_SEGMENT}/index.faiss")),
    _shard("arrow-flip", 8, "a bit of a mapped table flipped", _flip(f"{_SEGMENT}/*.arrow")),
    _shard(
        "derived-flip", 4, "a bit of the list of derived files flipped", _flip(f"{_SEGMENT}/derived.json")
    ),
    _shard("keyword-flip", 14, "a bit of the keyword index flipped", _flip("lexical/*/*")),
    _shard("manifest-flip", 12, "a bit of a manifest flipped", _flip("manifest*.json")),
    _shard("state-flip", 8, "a bit of a state file flipped", _flip("state-*.bin")),
    _shard("running-flip", 10, "a bit flipped under a running shard", _RUNNING),
    _shard("segment-lost", 6, "truth and derived files of a segment damaged", file_faults.segment_twice),
    _shard("manifests-lost", 4, "both manifests damaged", file_faults.manifests_both),
    _shard("snapshot-flip", 8, "a bit of a snapshot flipped, then restored", file_faults.snapshot_flip),
    _shard("snapshot-back", 6, "the folder lost, an old snapshot restored", file_faults.snapshot_restored),
    Kind("disk-full", "tmpfs", "the file system of a shard full", file_faults.disk_full, 20),
]

KINDS: dict[str, Kind] = {kind.name: kind for kind in _SHARD}
