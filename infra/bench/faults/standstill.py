"""What a cluster looks like while a fault is not settled: where each process stands, who lives, how far all is.

A fault that stands still on a lent host leaves nothing behind, so this is written while it stands. Python processes
of the cluster write the stacks of all their threads on SIGUSR1 (`TRACED`, which they run at their start); the
broker does so on SIGQUIT, into its console's log. Nothing here ends a process or waits for long.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil

if TYPE_CHECKING:
    from infra.bench.faults.cluster_world import ClusterWorld

STACKS = "DYSRA_STACKS"
TRACED = f"""import faulthandler, os, signal
folder = os.environ.get("{STACKS}")
if folder and os.path.isdir(folder):
    faulthandler.register(signal.SIGUSR1, file=open(os.path.join(folder, str(os.getpid())), "w"))
"""
"""Run by every Python process of the cluster at its start, as `sitecustomize`."""

_ASK_S = 5.0
_TAIL_BYTES = 40_000
_LOGS = ("gcs_server*", "raylet*", "worker-*.err", "python-core-worker-*")


def traced(folder: Path) -> dict[str, str]:
    """Variables that make Python processes write their stacks into `folder` on SIGUSR1; PYTHONPATH's first part."""
    stacks, code = folder / "stacks", folder / "traced"
    for path in (stacks, code):
        path.mkdir(parents=True, exist_ok=True)
    (code / "sitecustomize.py").write_text(TRACED, encoding="utf-8")
    return {STACKS: str(stacks), "PYTHONPATH": str(code)}


@contextlib.contextmanager
def watched(world: ClusterWorld, target: Path, after_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Tell what stands, into `target`, if what is done here takes longer than `after_s`."""
    ended = threading.Event()

    def watch() -> None:
        if not ended.wait(after_s):
            say(f"  not settled after {after_s:.0f} s: what stands is told in {target}")
            tell(world, target)

    thread = threading.Thread(target=watch, name="standstill", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=60.0)


def tell(world: ClusterWorld, target: Path) -> None:
    """Write `facts.json`, `stacks/` and the ends of logs into `target`; what cannot be had says why."""
    target.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"at": time.time(), "processes": [_row(one) for one in world.ray.processes()]}
    with contextlib.suppress(Exception), (target / "harness.txt").open("w") as file:
        faulthandler.dump_traceback(file)
    _stacks(world, target / "stacks")
    for name, ask in _questions(world).items():
        try:
            facts[name] = ask()
        except (
            Exception
        ) as error:  # of Ray, Kafka or the store: that it does not answer is what is looked for
            facts[name] = f"{type(error).__name__}: {str(error)[:500]}"
        # after each: the next may not come back
        (target / "facts.json").write_bytes(
            orjson.dumps(facts, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
        )
    _stacks(world, target / "stacks-later")
    _tails(world, target / "logs")


def _questions(world: ClusterWorld) -> dict[str, Callable[[], Any]]:
    """In order of how likely they are to answer."""
    import ray
    from ray._private.state import actors

    from actors.remote import call, find_actor

    return {
        "driver": lambda: {
            "pid": world.driver.pid,
            "starts": world.driver.starts,
            "ends": world.driver.ends[-10:],
        },
        "feed": world.feed.standing,
        "nodes": ray.nodes,
        "actors": lambda: [row for row in actors().values() if row["State"] != "DEAD"],
        "coordinator": lambda: call(find_actor(world.coordinator).figures.remote(), _ASK_S),  # type: ignore[union-attr]
        "shards": lambda: [
            _asked(world.client.shard_handle(index).stats.remote)
            | {"offsets": _asked(world.client.shard_handle(index).offsets.remote)}
            for index in range(world.store.num_shards)
        ],
        "embedder": lambda: call(world.client.next_embedder().stats.remote(), _ASK_S),
        "topic ends": world.feed.ends,
    }


def _asked(method: Callable[[], Any]) -> Any:
    from actors.remote import call

    try:
        found = call(method(), _ASK_S)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return found


def _row(process: psutil.Process) -> dict[str, Any]:
    """What a process is and does: S sleeps, R runs, T is stopped, D waits for a disk, Z has ended."""
    with contextlib.suppress(psutil.Error, OSError), process.oneshot():
        times = process.cpu_times()
        return {
            "pid": process.pid,
            "parent": process.ppid(),
            "command": " ".join(process.cmdline())[:200],
            "status": process.status(),
            "threads": process.num_threads(),
            "cpu_s": round(times.user + times.system, 2),
            "age_s": round(time.time() - process.create_time(), 1),
        }
    return {"pid": process.pid, "status": "ended"}


def _stacks(world: ClusterWorld, target: Path) -> None:
    """Ask all for their stacks, and keep what came. A stopped process answers once it goes on."""
    folder = world.ray.folder / "stacks"
    before = {path: path.stat().st_size for path in folder.iterdir()}
    living = {process.pid: process for process in world.ray.processes()}
    for path in before:
        if path.name.isdigit() and int(path.name) in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGUSR1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(world.broker.pid, signal.SIGQUIT)
    time.sleep(1.0)
    target.mkdir(parents=True, exist_ok=True)
    for path, begin in before.items():
        if path.name.isdigit() and int(path.name) in living:
            with contextlib.suppress(psutil.Error, OSError):
                name = " ".join(living[int(path.name)].cmdline())[:300]
                (target / path.name).write_bytes(name.encode() + b"\n" + path.read_bytes()[begin:])


def _tails(world: ClusterWorld, target: Path) -> None:
    """The ends of the logs: ours, the broker's, Ray's."""
    target.mkdir(parents=True, exist_ok=True)
    found = [world.folder / "ingest.log", *(world.folder / "kafka" / "logs").glob("*.log")]
    for pattern in _LOGS:
        found += list((world.ray.folder / "ray").glob(f"session_2*/logs/{pattern}"))
    for path in found:
        with contextlib.suppress(OSError):
            if path.stat().st_size:
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                    (target / path.name).write_bytes(file.read())
