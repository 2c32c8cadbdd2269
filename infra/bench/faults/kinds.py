"""The kinds of faults by name, how often each is drawn, and what it needs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from infra.bench.faults import cluster_faults, file_faults, session_faults, shard_faults

Place = Literal["shard", "tmpfs", "session", "session-tmpfs", "cluster"]


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


def _cluster(name: str, weight: int, about: str, inject: Callable[[Any, random.Random], str]) -> Kind:
    return Kind(name, "cluster", about, inject, weight)


def _kill_actor(kind: str) -> Callable[[Any, random.Random], str]:
    return partial(cluster_faults.kill_actor, kind)


_PAUSE_INGESTER = partial(cluster_faults.pause_actor, "ingester")
_PAUSE_SHARD = partial(cluster_faults.pause_actor, "shard")
_PAUSE_COORDINATOR = partial(cluster_faults.pause_actor, "coordinator")
_PAUSE_EMBEDDER = partial(cluster_faults.pause_actor, "embedder")
_PAUSE_NEAR_DUPLICATES = partial(cluster_faults.pause_actor, "near-duplicates")
_PAUSE_REPLICA = cluster_faults.pause_replica
_CLUSTER = [
    _cluster("kill-ingester", 12, "kill -9 of an ingest actor", _kill_actor("ingester")),
    _cluster("kill-shard-actor", 14, "kill -9 of a shard's actor", _kill_actor("shard")),
    _cluster("kill-embedder", 8, "kill -9 of the embedder", _kill_actor("embedder")),
    _cluster("kill-coordinator", 8, "kill -9 of the coordinator", _kill_actor("coordinator")),
    _cluster(
        "kill-near-duplicates", 8, "kill -9 of the near-duplicate index", _kill_actor("near-duplicates")
    ),
    _cluster("kill-two", 8, "kill -9 of two actors at once", cluster_faults.kill_two),
    _cluster("kill-driver", 6, "kill -9 of dysra ingest", cluster_faults.kill_driver),
    _cluster("kill-broker", 6, "kill -9 of the broker", cluster_faults.kill_broker),
    _cluster("kill-raylet", 6, "kill -9 of the second node", cluster_faults.kill_raylet),
    _cluster("pause-ingester", 8, "SIGSTOP of an ingest actor past its lease", _PAUSE_INGESTER),
    _cluster("pause-shard-actor", 6, "SIGSTOP of a shard's actor", _PAUSE_SHARD),
    _cluster(
        "pause-coordinator", 4, "SIGSTOP of the coordinator past the ingesters' lease", _PAUSE_COORDINATOR
    ),
    _cluster("pause-embedder", 4, "SIGSTOP of the embedder", _PAUSE_EMBEDDER),
    _cluster("pause-near-duplicates", 4, "SIGSTOP of the near-duplicate index", _PAUSE_NEAR_DUPLICATES),
    _cluster("pause-broker", 4, "SIGSTOP of the broker", cluster_faults.pause_broker),
    _cluster("pause-driver", 3, "SIGSTOP of dysra ingest", cluster_faults.pause_driver),
    _cluster("cut-log", 10, "log of a shard cut under a living ingest", cluster_faults.cut_log),
    _cluster("fill-disk", 8, "the store's file system full", cluster_faults.fill_disk),
    _cluster("kill-replica", 8, "kill -9 of a session replica", cluster_faults.kill_replica),
    _cluster("pause-replica", 4, "SIGSTOP of a session replica past Serve's patience", _PAUSE_REPLICA),
    _cluster("kill-proxy", 5, "kill -9 of the Serve proxy", cluster_faults.kill_proxy),
    _cluster("move-clock", 3, "event times jump in the stream", cluster_faults.move_clock),
]


def _session(name: str, weight: int, about: str, inject: Callable[[Any, random.Random], str]) -> Kind:
    return Kind(name, "session", about, inject, weight)


_SESSION = [
    _session("session-kill", 6, "kill -9 of a session's owner while it reads", session_faults.kill_any),
    _session("session-kill-save", 8, "kill -9 between two steps of a snapshot", session_faults.kill_save),
    _session("session-kill-open", 4, "kill -9 between two steps of a take-over", session_faults.kill_open),
    _session("session-flip", 8, "a bit of a session's snapshot or lease flipped", session_faults.flip),
    _session("session-cut", 5, "a session's newest snapshot cut short", session_faults.cut),
    _session("session-lost", 3, "every snapshot of a session lost", session_faults.lose),
    _session("session-pause", 5, "SIGSTOP of an owner past its lease, SIGCONT", session_faults.pause_owner),
    Kind("session-disk-full", "session-tmpfs", "the disk of snapshots full", session_faults.disk_full, 5),
]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*_SHARD, *_SESSION, *_CLUSTER)}
