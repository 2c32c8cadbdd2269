"""How our actors are named, found and called: one namespace, limits on every wait, typed errors back."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import queue
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from pipeline.errors import DependencyUnreachable, DysraError
from pipeline.log import configure_logging

NAMESPACE = "dysra"
"""All named actors of DySRA live in this Ray namespace."""

CALL_TIMEOUT_S = 60.0
_LOOK_S = 0.5
_ResultT = TypeVar("_ResultT")
_owned: dict[str, Any] = {}

Outage = (RayActorError, GetTimeoutError)
"""What a call raises while its actor is dead, restarting or too slow: try again, lose nothing."""


def store_name(path: Path) -> str:
    """The name that all processes of a cluster know a store by; equal for equal absolute paths."""
    absolute = path.expanduser().absolute()
    return f"store-{absolute.name}-{hashlib.sha256(str(absolute).encode()).hexdigest()[:8]}"


def named_actor(cls: Any, name: str, *args: Any, detached: bool, **options: Any) -> Any:
    """The actor called `name`, created with `args` unless it lives already."""
    living = find_actor(name)
    if living is not None:
        return living
    if detached:
        options["lifetime"] = "detached"
    # Ray keeps an event of every call in its head's memory, up to 100,000 of them.
    options.setdefault("enable_task_events", False)
    groups = options.pop("concurrency_groups", None)
    remote: Any = ray.remote(**({"concurrency_groups": groups} if groups else {"num_cpus": 0}))(cls)
    handle = remote.options(name=name, namespace=NAMESPACE, get_if_exists=True, **options).remote(*args)
    if not detached:
        _owned[name] = handle  # Ray ends an actor when its owner drops the handle that made it
    return handle


def find_actor(name: str) -> Any | None:
    """The living actor called `name`, or None."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def end_actor(name: str, timeout_s: float = 10.0) -> None:
    """End the actor called `name` for good, and wait until the name is free."""
    deadline = time.monotonic() + timeout_s
    actor = find_actor(name)
    while actor is not None and time.monotonic() < deadline:
        with contextlib.suppress(RayError):
            ray.kill(actor)
        time.sleep(0.05)
        actor = find_actor(name)
    _owned.pop(name, None)


def given_up() -> bool:
    """Whether Ray has given up the node of this process: other processes stand in its actors' places by now.

    Ray ends the processes of a lost node with its raylet, where it can: not those behind a broken network or a
    stopped raylet, nor those of one that ended in a container whose first process reaps nobody. False where Ray
    does not say.
    """
    own = ray.get_runtime_context().get_node_id()
    try:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
    except RayError:
        return False
    return any(node["NodeID"] == own and not node["Alive"] for node in nodes)


def call(ref: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    """The result of a call; an error of ours that it raised is raised here as itself."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayTaskError as error:
        raise unwrapped(error) from None


def unwrapped(error: BaseException) -> BaseException:
    """The error that an actor raised, out of Ray's wrapper."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(error, RayTaskError) and isinstance(cause, Exception) else error


def backoff(first_s: float, max_s: float) -> Iterator[float]:
    """Waits that double up to `max_s`, each shortened at random by up to half so that callers spread out."""
    wait_s = first_s
    while True:
        yield wait_s * random.uniform(0.5, 1.0)
        wait_s = min(wait_s * 2, max_s)


def persist(
    attempt: Callable[[], _ResultT],
    what: str,
    *,
    first_s: float,
    max_s: float,
    limit_s: float,
    stopped: Callable[[], bool],
    on_outage: Callable[[BaseException], None] | None = None,
) -> _ResultT:
    """Call `attempt` until it returns; retry outages only, and give up after `limit_s`.

    Raises DependencyUnreachable at the limit, Stopped when `stopped()`, and any other error at once.
    """
    started = time.monotonic()
    waits = backoff(first_s, max_s)
    while True:
        if stopped():
            raise Stopped(what)
        try:
            return attempt()
        except (*Outage, ConnectionError, DependencyUnreachable) as error:
            if on_outage is not None:
                on_outage(error)
            if time.monotonic() - started > limit_s:
                raise DependencyUnreachable(
                    f"{what} has not answered for {limit_s:.0f} s ({first_line(error)})"
                ) from None
            time.sleep(next(waits))


def take(waiting: queue.SimpleQueue[_ResultT], stopped: Callable[[], bool]) -> _ResultT:
    """The next of a queue between threads; raises Stopped once nothing is there and `stopped()`."""
    while True:
        try:
            return waiting.get(timeout=_LOOK_S)
        except queue.Empty:
            if stopped():
                raise Stopped("what the thread before hands on") from None


def log_in_actor() -> None:
    """Events of this actor's process as JSON lines in its Ray log; DYSRA_LOG sets the level (INFO)."""
    configure_logging(os.environ.get("DYSRA_LOG", "INFO"), json_lines=True)


def collect_rarely() -> None:
    """Look for cycles of garbage in this process every 20,000 more objects, not 700: articles leave none in a cycle
    (0 found in 4,000), and looking took 3 to 12% of the carrying thread's time in three runs, about 2% now."""
    gc.set_threshold(20_000, 20, 20)


class Stopped(Exception):
    """The caller was asked to stop while it waited."""


def first_line(error: BaseException) -> str:
    """An error as one line for a log."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if isinstance(error, DysraError) else f"{type(error).__name__}: {lines[-1]}"


__all__ = [
    "CALL_TIMEOUT_S",
    "NAMESPACE",
    "Outage",
    "RayError",
    "Stopped",
    "backoff",
    "call",
    "end_actor",
    "find_actor",
    "first_line",
    "given_up",
    "log_in_actor",
    "named_actor",
    "persist",
    "store_name",
    "take",
    "unwrapped",
]
