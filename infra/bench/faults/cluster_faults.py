"""Faults of a whole cluster while news flows: processes killed or paused, disks filled, logs cut, clocks moved."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import psutil

from infra.bench.faults.cluster_world import SILENT_LIMIT_S, ClusterWorld
from infra.bench.faults.file_faults import fill
from infra.bench.faults.ray_cluster import pause

_DISK_FULL_S = 2.0
_GIVEN_UP = 3
"""Health checks in a row without an answer after which Serve replaces a replica."""
_WAKES_S = 3.0
"""Long enough for a process that wakes up to read, to save, and to do what had been asked of it meanwhile."""


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


def pause_broker(world: ClusterWorld, draw: random.Random) -> str:
    """SIGSTOP of the broker, for longer than an ingester may be silent."""
    seconds = SILENT_LIMIT_S * (1.3 + 2 * draw.random())
    pause(world.broker.pid, seconds)
    return f"process {world.broker.pid} for {seconds:.1f} s"


def pause_driver(world: ClusterWorld, draw: random.Random) -> str:
    """SIGSTOP of `dysra ingest`, which starts and watches all that ingests."""
    seconds = SILENT_LIMIT_S * (1.3 + 2 * draw.random())
    pause(world.driver.pid, seconds)
    return f"process {world.driver.pid} for {seconds:.1f} s"


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


def pause_replica(world: ClusterWorld, draw: random.Random) -> str:
    """SIGSTOP of the replica that holds the sessions for longer than Serve's health checks allow, then SIGCONT: the
    one that wakes up may not write, and takes nothing back.

    On the second node the whole host stands still: its raylet is stopped too, so that nobody can end the replica,
    and the locks on ranks are lost, as a network disk's are. On the first, where Ray ends a replica that Serve
    gives up even while it is stopped, it wakes up either when that has been done or just before.
    """
    served = world.served
    pid = served.replica_pid()
    host = psutil.Process(pid).ppid() == world.ray.node_pid
    served.publish(draw.randrange(3, 9))
    time.sleep(draw.random() * 0.5)
    wakes_early = draw.random() < 0.4 and not host
    owners = served.owners()
    began = time.monotonic()
    paused = [pid, *([world.ray.node_pid] if host else [])]
    try:
        for each in paused:
            os.kill(each, signal.SIGSTOP)
        if host:
            served.lose_ranks()
        if wakes_early:
            time.sleep(_GIVEN_UP * served.patience_s * (0.9 + 0.2 * draw.random()))
        else:
            other = served.wait_for_other(pid)
            owners = served.owners()
        seconds = time.monotonic() - began
        woken = psutil.pid_exists(pid)
        served.publish(draw.randrange(3, 9))
    finally:
        for each in paused:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)
            time.sleep(_WAKES_S)  # before its raylet, which may end it
    world.ray.keep_node()
    taken = [
        name
        for name, owner in served.owners().items()
        if f"-pid{pid}-" in owner and owner != owners.get(name)
    ]
    if taken and not wakes_early:
        raise AssertionError(f"process {pid} woke up, replaced, and took back {', '.join(taken)}")
    if wakes_early:
        return f"process {pid} woke up after {seconds:.1f} s"
    became = f"{'with its whole host, ' if host else ''}{'woke up' if woken else 'was ended'}"
    return f"process {pid}, {became} once {other} had its sessions, {seconds:.1f} s"


def kill_proxy(world: ClusterWorld, draw: random.Random) -> str:
    """kill -9 of the process that takes HTTP requests."""
    served = world.served
    pid = served.proxy_pid(world.ray)
    served.publish(draw.randrange(3, 9))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
    return f"process {pid}"
