"""Faults of a whole cluster while news flows: processes killed or paused, disks filled, logs cut, clocks moved."""

from __future__ import annotations

import contextlib
import os
import random
import time

from infra.bench.faults.cluster_world import SILENT_LIMIT_S, ClusterWorld
from infra.bench.faults.file_faults import fill
from infra.bench.faults.ray_cluster import pause

_DISK_FULL_S = 2.0


def kill_actor(kind: str, world: ClusterWorld, draw: random.Random) -> str:
    """kill -9 of one actor's process."""
    index = draw.randrange(2) if kind in ("shard", "ingester") else 0
    return f"{kind} {index}, process {world.kill(kind, index)}"


def kill_driver(world: ClusterWorld, draw: random.Random) -> str:
    """kill -9 of `dysra ingest`; its supervisor starts it again."""
    world.driver.kill()
    return f"start {world.driver.starts}"


def kill_broker(world: ClusterWorld, draw: random.Random) -> str:
    """kill -9 of the broker; it comes back a while later with its log as the kill left it."""
    down_s = draw.random() * 2
    world.restart_broker(down_s)
    return f"down for {down_s:.1f} s and its start"


def kill_raylet(world: ClusterWorld, draw: random.Random) -> str:
    """kill -9 of the second node's raylet, and with it of all that ran there; the node comes back."""
    pid = world.ray.node_pid
    os.kill(pid, 9)
    time.sleep(draw.random())
    world.ray.start_node()
    return f"raylet {pid}"


def pause_actor(kind: str, world: ClusterWorld, draw: random.Random) -> str:
    """SIGSTOP for longer than an ingester may be silent, then SIGCONT: who was replaced may not write."""
    index = draw.randrange(2) if kind in ("shard", "ingester") else 0
    pid = world.pid_of(kind, index)
    seconds = SILENT_LIMIT_S * (1.3 + draw.random())
    pause(pid, seconds)
    return f"{kind} {index}, process {pid}, for {seconds:.1f} s"


def fill_disk(world: ClusterWorld, draw: random.Random) -> str:
    """The store's file system is full for some seconds."""
    room = draw.choice((0, draw.randrange(60_000)))
    with fill(world.store.path.parent, room):
        time.sleep(_DISK_FULL_S)
    return f"{room} bytes left for {_DISK_FULL_S:g} s"


def cut_log(world: ClusterWorld, draw: random.Random) -> str:
    """A shard is killed and acknowledged records are cut from its log before it opens again; ingest lives on."""
    index = draw.randrange(2)
    pid = world.pid_of("shard", index)
    log = world.store.path / f"shard-{index:04d}" / "wal"
    os.kill(pid, 9)
    path = max(log.glob("*.wal"))
    size = path.stat().st_size
    cut = min(size, draw.randrange(1, 20_000))
    os.truncate(path, size - cut)
    return f"shard {index}: {cut} of {size} bytes"


def kill_two(world: ClusterWorld, draw: random.Random) -> str:
    """kill -9 of two processes at once."""
    kinds = draw.sample(("shard", "embedder", "near-duplicates", "ingester", "coordinator"), 2)
    pids = [world.pid_of(kind) for kind in kinds]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    return " and ".join(kinds)


def move_clock(world: ClusterWorld, draw: random.Random) -> str:
    """Event times jump in the middle of the stream."""
    moved = world.feed.timeline.move_clock()
    time.sleep(1.0)
    return str(moved)


def kill_replica(world: ClusterWorld, draw: random.Random) -> str:
    """kill -9 of the replica that holds the sessions while they read."""
    served = world.served
    pid = served.replica_pid()
    served.publish(draw.randrange(3, 9))
    time.sleep(draw.random() * 0.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
    return f"process {pid}"


def kill_proxy(world: ClusterWorld, draw: random.Random) -> str:
    """kill -9 of the process that takes HTTP requests."""
    served = world.served
    pid = served.proxy_pid(world.ray)
    served.publish(draw.randrange(3, 9))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
    return f"process {pid}"
