"""One way to reach Ray: the job's cluster, a cluster of the operator's own, or an embedded one."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import ray

from pipeline.errors import DependencyUnreachable

NAMESPACE = "dysra"
"""All named actors of DySRA live in this Ray namespace."""

_EMBEDDED_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_OBJECT_STORE_BYTES_PER_CPU = 8 * 1024 * 1024
"""Room for what is under way from ingesters to shards and near-duplicate actors, one ingester to three cores."""

_START_TIMEOUT_S = 120


def connect_ray(address: str | None = None, *, num_cpus: int | None = None, dashboard: bool = False) -> str:
    """Connect to Ray and return "cluster" or "embedded".

    Under `ray job submit` and after `ray start` the running cluster is joined; otherwise a small one is
    started inside this process. Raises DependencyUnreachable when a named address does not answer.
    """
    if ray.is_initialized():
        return "cluster" if os.environ.get("RAY_ADDRESS") else "embedded"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
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
    cpus = num_cpus or max(8, os.cpu_count() or 1)
    try:
        ray.init(
            num_cpus=cpus,
            object_store_memory=max(_EMBEDDED_OBJECT_STORE_BYTES, cpus * _OBJECT_STORE_BYTES_PER_CPU),
            include_dashboard=dashboard,
            **common,
        )
    except Exception as error:
        # Ray raises a plain Exception when its processes do not come up in time.
        raise DependencyUnreachable(
            f"an embedded Ray did not start: {str(error).splitlines()[0]}; "
            "is the machine out of memory or very busy? `dysra doctor` tells what it has"
        ) from error
    return "embedded"


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
