"""One way to reach Ray: the job's cluster, a cluster of the operator's own, or an embedded one."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import psutil
import ray

from pipeline.errors import DependencyUnreachable

NAMESPACE = "dysra"
"""All named actors of DySRA live in this Ray namespace."""

_EMBEDDED_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_OBJECT_STORE_BYTES_PER_CPU = 8 * 1024 * 1024
"""Room for what is under way from ingesters to shards and near-duplicate actors, one ingester to three cores."""

_START_TIMEOUT_S = 120
_START_ATTEMPTS = 3
_TOO_SLOW = "timed out during startup"


def connect_ray(address: str | None = None, *, num_cpus: int | None = None, dashboard: bool = False) -> str:
    """Connect to Ray and return "cluster" or "embedded".

    Under `ray job submit` and after `ray start` the running cluster is joined; otherwise a small one is
    started inside this process. Raises DependencyUnreachable when a named address does not answer.
    """
    if ray.is_initialized():
        return "cluster" if os.environ.get("RAY_ADDRESS") else "embedded"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # nothing is told to anybody unless the operator wants it
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(_START_TIMEOUT_S))
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": os.environ.get("DYSRA_ACTOR_LOGS") == "1",
        "logging_level": "ERROR",
    }
    wanted = address or os.environ.get("RAY_ADDRESS")
    if wanted is None and running_cluster():
        wanted = "auto"
    if wanted:
        try:
            ray.init(address=wanted, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DependencyUnreachable(
                f"no Ray cluster answers at {wanted!r}: {str(error).splitlines()[0]}; "
                "start one with `ray start --head`, or unset RAY_ADDRESS to use an embedded one"
            ) from None
        return "cluster"
    # those that this process may use, not all of the machine: a job may share it with others
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpus = num_cpus or max(8, allowed)
    _start_embedded(
        num_cpus=cpus,
        object_store_memory=max(_EMBEDDED_OBJECT_STORE_BYTES, cpus * _OBJECT_STORE_BYTES_PER_CPU),
        include_dashboard=dashboard,
        **common,
    )
    return "embedded"


def _start_embedded(**options: Any) -> None:
    """Start Ray inside this process, and again where a very busy machine was too slow for it.

    A raylet ends itself if its agent is not there within 15 s, which no setting changes.
    """
    for attempt in range(1, _START_ATTEMPTS + 1):
        before = set(psutil.Process().children())
        try:
            ray.init(**options)
            return
        except Exception as error:
            # Ray raises a plain Exception when its processes do not come up in time.
            ray.shutdown()
            _end_ray([child for child in psutil.Process().children() if child not in before])
            if _TOO_SLOW not in str(error) or attempt == _START_ATTEMPTS:
                raise DependencyUnreachable(
                    f"an embedded Ray did not start: {str(error).splitlines()[0]}; "
                    "is the machine out of memory or very busy? `dysra doctor` tells what it has"
                ) from error


def _end_ray(children: list[psutil.Process]) -> None:
    """End those of these processes that are of Ray, with all that they started."""
    home = str(Path(ray.__file__).parent)
    ended: list[psutil.Process] = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(home in part for part in child.cmdline()):
                ended += [*child.children(recursive=True), child]
    for process in ended:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ended, timeout=10)


def running_cluster() -> str:
    """The address of the cluster that `ray start` left running on this host; empty if there is none."""
    record = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    if not record.exists():
        return ""
    address = record.read_text(encoding="utf-8").strip()
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host or "127.0.0.1", int(port)), timeout=1.0):
            return address
    except (OSError, ValueError):
        return ""
