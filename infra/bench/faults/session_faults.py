"""Faults of one session: its process killed or paused, its snapshots cut, flipped and lost, its disk full."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

from infra.bench.faults.file_faults import fill, flip_one
from infra.bench.faults.process import Died, Failed, stop_process
from infra.bench.faults.session_world import SessionWorld

_SAVE_STEPS = 10


def kill_any(world: SessionWorld, draw: random.Random) -> str:
    """kill -9 at any moment of reading and saving."""
    world.session.send("read", world.publish(12), True)
    time.sleep(draw.random() * 0.2)
    world.session.kill()
    return f"after {world.session.offset} records"


def kill_save(world: SessionWorld, draw: random.Random) -> str:
    """kill -9 between two steps of writing a snapshot; a write that was under way is half there."""
    step = draw.randrange(1, _SAVE_STEPS)
    world.session.read(world.publish(3), save=False)
    try:
        world.session.call("save", armed=step)
    except Died:
        return f"step {step}"
    world.session.kill()
    return "after the last step"


def kill_open(world: SessionWorld, draw: random.Random) -> str:
    """kill -9 between two steps of taking a session over."""
    world.publish(4)
    world.session.kill()
    step = draw.randrange(1, 6)
    with contextlib.suppress(Died):
        world.session.start(armed=step)
        world.session.kill()
    return f"step {step}"


def flip(world: SessionWorld, draw: random.Random) -> str:
    """A bit of a snapshot, of the newest most often, or of the lease is turned over."""
    world.session.read(world.publish(6), save=True)
    world.session.kill()
    files = world.session.files()
    lease = world.session.folder / "lease.json"
    return flip_one([draw.choice([*files, lease, *files[-1:] * 4])], draw)


def cut(world: SessionWorld, draw: random.Random) -> str:
    """The newest snapshot is cut short."""
    world.session.read(world.publish(6), save=True)
    world.session.kill()
    files = world.session.files()
    if not files:
        return "no snapshot yet"
    size = files[-1].stat().st_size
    os.truncate(files[-1], draw.randrange(size))
    return files[-1].name


def lose(world: SessionWorld, draw: random.Random) -> str:
    """Every snapshot is gone: the session reads its stream again from the beginning."""
    world.publish(4)
    world.session.kill()
    for path in world.session.files():
        path.unlink()
    if draw.random() < 0.5:
        (world.session.folder / "lease.json").unlink(missing_ok=True)
    return "all snapshots"


def pause_owner(world: SessionWorld, draw: random.Random) -> str:
    """SIGSTOP; another process takes the session over and reads on; the paused one wakes and may not write."""
    session = world.session
    session.send("read", world.publish(8), False)
    time.sleep(draw.random() * 0.05)
    stop_process(session.pid)
    old_pipe, old = session.detach()
    try:
        session.start()
        session.read(world.topic[session.offset :], save=True)
        session.call("save")
        os.kill(old.pid, signal.SIGCONT)
        session.receive(old_pipe)
        old_pipe.send(("save", 0, ()))
        kind, *facts = session.receive(old_pipe)
        if (kind, facts[0]) != ("failed", "StaleLease"):
            raise AssertionError(f"an owner that was replaced wrote a snapshot: {kind} {facts}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old.pid, signal.SIGKILL)
        old.join(timeout=10.0)
        old_pipe.close()
    if draw.random() < 0.5:
        session.kill()
    return "refused"


def disk_full(world: SessionWorld, draw: random.Random) -> str:
    """The file system is full while snapshots are written."""
    records = world.publish(10)
    with fill(world.folder, draw.choice((0, draw.randrange(60_000)))):
        said = "saved"
        try:
            world.session.read(records, save=True)
        except Failed as error:
            said = error.name
        if draw.random() < 0.5:
            world.session.kill()
    if world.session.alive:
        world.session.offset = world.session.call("offset")
    return said
