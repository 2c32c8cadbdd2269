"""Faults of one shard: its process killed between any two steps or paused, its writers replaced."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

from infra.bench.faults.process import Died, Failed, stop_process
from infra.bench.faults.shard_world import ShardWorld

_STEPS = {"append": 6, "seal": 70, "compact": 120, "snapshot": 60, "open": 20}
"""About how many steps each operation has: the kill falls on one of them, or right after the last."""


def kill_any(world: ShardWorld, draw: random.Random) -> str:
    """kill -9 at any moment of an append, a sealing or a compaction."""
    world.publish(24)
    operation = draw.choice(("append", "append", "seal", "compact"))
    if operation == "append":
        world.send_next(24)
    else:
        world.append_next(12)
        world.send(operation)
    time.sleep(draw.random() * 0.03)
    world.kill()
    return operation


def kill_step(operation: str, world: ShardWorld, draw: random.Random) -> str:
    """kill -9 between two steps of an operation's work on files; a write that was under way is half there."""
    step = draw.randrange(1, _STEPS[operation])
    world.publish(draw.randrange(6, 24))
    try:
        if operation == "append":
            world.append_next(12, armed=step)
        elif operation == "open":
            world.send_next(12)
            world.kill()
            world.start(armed=step)
        else:
            if operation == "compact":
                world.call("seal")
            world.append_next(12)
            arguments = (str(world.folder / f"cut-{world.num_faults}"),) if operation == "snapshot" else ()
            world.call(operation, *arguments, armed=step)
    except Died:
        return f"{operation}, step {step}"
    world.kill()
    return f"{operation}, after its end"


def pause_owner(world: ShardWorld, draw: random.Random) -> str:
    """SIGSTOP in the middle of an append; another process wants the shard and must not get it; SIGCONT."""
    world.publish(16)
    world.send_next(16)
    time.sleep(draw.random() * 0.01)
    stop_process(world.pid)
    pipe, rival = world.spawn()
    try:
        got = pipe.recv() if pipe.poll(20.0) else ("silent",)
    finally:
        rival.kill()
        rival.join(timeout=10.0)
        pipe.close()
        os.kill(world.pid, signal.SIGCONT)
    if got[:2] != ("refused", "StoreLocked"):
        raise AssertionError(f"two processes hold one shard: {got}")
    world.reply()
    if draw.random() < 0.5:
        world.kill()
        return "killed after it woke"
    world.resume()
    return "went on"


def stale_writer(world: ShardWorld, draw: random.Random) -> str:
    """An ingester that was replaced wakes up and appends what it had in hand; the shard must refuse it."""
    world.publish(24)
    world.append_next(8)
    old_epoch, since = world.epoch, world.known
    world.epoch += draw.randrange(1, 1_000)
    world.call("append", [], world.epoch, None)
    if draw.random() < 0.5:
        world.append_next(8)
    if draw.random() < 0.3:
        world.kill()
        world.start()
    with contextlib.suppress(Failed):
        world.call("append", world.topic[since : since + 6], old_epoch, since)
        raise AssertionError(f"an append under epoch {old_epoch} was taken after epoch {world.epoch}")
    return "refused"


def lost_between(world: ShardWorld, draw: random.Random) -> str:
    """The shard loses acknowledged records while its ingester lives on: nothing may be appended after the gap."""
    world.publish(24)
    world.append_next(8)
    world.append_next(8)
    world.kill()
    cut = draw.randrange(1, 2_000)
    last = max((world.shard_folder / "wal").glob("*.wal"))
    os.truncate(last, max(0, last.stat().st_size - cut))
    known = world.known
    world.start()
    if world.known < known:
        try:
            world.call("append", world.topic[known : known + 4], world.epoch, known)
        except Failed as error:
            if error.name != "OffsetGap":
                raise
        else:
            raise AssertionError("an append that skips records was taken")
    return f"{cut} bytes"


def clock(world: ShardWorld, draw: random.Random) -> str:
    """Event times jump by decades, hours back, or days ahead, between one append and the next."""
    moved = world.timeline.move_clock()
    world.publish(20)
    while world.append_next(draw.randrange(2, 9)):
        pass
    world.call(draw.choice(("seal", "compact")))
    return str(moved)
