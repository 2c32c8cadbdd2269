"""Start, find and stop the local broker of a folder.

A folder holds one broker: `data/` (records), `logs/`, `server.properties` (written at each start) and
`broker.json` (who runs it). The broker runs in its own session, so it outlives the shell that started it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.kafka.jars import HERE, KAFKA_VERSION, ensure_jars, java
from models.formats import FORMAT, KEY, NewerFormat, check_format
from pipeline.errors import DependencyUnreachable, DysraError, UsageError
from pipeline.kafka import KafkaConfig, reachable
from pipeline.shared_files import locked, replace_file

HOST = "127.0.0.1"
DEFAULT_PORT = 9092
JAVA_OPTIONS = (
    "-Xmx512m",
    "-Xms128m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
)
_PORT_ATTEMPTS = 3

# Handles of brokers started by this process, so that they can be reaped when they end.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Broker:
    """A local broker that was started: its process, where it listens and where its files are."""

    pid: int
    port: int
    bootstrap_servers: str
    directory: str
    log: str
    version: str = KAFKA_VERSION
    started: bool = True

    def figures(self) -> dict[str, Any]:
        """What `--json` prints; `started` is false for a broker that was running already."""
        return {**asdict(self), "already_running": not self.started}


class _PortLost(Exception):
    """Another process took a port between its choice and the broker's start."""


def start(
    directory: Path,
    port: int | None = None,
    *,
    timeout_s: float = 90.0,
    on_step: Callable[[str], None] | None = None,
) -> Broker:
    """The running broker of `directory`, started unless it runs already; `port` 0 picks a free one.

    Returns once a client gets the cluster's metadata. Raises UsageError for a taken port, and
    DependencyUnreachable with the last lines of the log if the broker ends or is not ready within `timeout_s`
    (fetching its jars apart).
    """
    directory = directory.expanduser().absolute()
    if port is not None and not 0 <= port < 65_536:
        raise UsageError(f"--port is {port}; it must be 0 (any free one) to 65535")
    step = on_step or (lambda _: None)
    try:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the broker's folder {directory} cannot be made: {error.strerror}") from None
    with locked(directory / "lock", timeout_s, DependencyUnreachable):
        running = find(directory)
        if running is not None:
            if port not in (None, 0, running.port):
                raise UsageError(
                    f"the broker of {directory} runs already, on port {running.port}; stop it first "
                    f"(`dysra kafka down --dir {directory}`) or give another --dir"
                )
            _wait_ready(running, timeout_s)
            return running
        program = java()
        wanted = DEFAULT_PORT if port is None else port
        if wanted:
            _require_free(wanted)
        jars = ensure_jars(on_step=step)
        for attempt in range(_PORT_ATTEMPTS):
            try:
                return _launch(directory, wanted or free_port(), program, jars, timeout_s, step)
            except _PortLost as error:
                if wanted or attempt == _PORT_ATTEMPTS - 1:
                    raise UsageError(f"{error}; give another --port, or --port 0 for a free one") from None
    raise AssertionError("every attempt returns or raises")


def find(directory: Path) -> Broker | None:
    """The broker of `directory` if its process is alive and is ours; says nothing of its readiness.

    UsageError where a later version of DySRA has started it: its process is not this one's to judge or end.
    """
    directory = directory.expanduser().absolute()
    try:
        state = json.loads((directory / "broker.json").read_text(encoding="utf-8"))
        check_format(state, directory / "broker.json")
        state.pop(KEY, None)
        broker = Broker(**{**state, "started": False})
    except NewerFormat as error:
        raise UsageError(f"{error}; or give another --dir") from None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return broker if _is_ours(broker.pid, directory) else None


def stop(directory: Path, *, timeout_s: float = 30.0) -> Broker | None:
    """Stop the broker of `directory`: SIGTERM, then SIGKILL after `timeout_s`. None if none runs."""
    directory = directory.expanduser().absolute()
    broker = find(directory)
    if broker is None:
        return None
    _end(broker.pid, directory, timeout_s)
    if find(directory) is not None:
        raise DysraError(f"the broker with process id {broker.pid} does not end, not even on SIGKILL")
    (directory / "broker.json").unlink(missing_ok=True)
    return broker


def free_port() -> int:
    """A port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _launch(
    directory: Path, port: int, program: str, jars: Path, timeout_s: float, step: Callable[[str], None]
) -> Broker:
    data, logs, properties = directory / "data", directory / "logs", directory / "server.properties"
    template = (HERE / "server.properties").read_text(encoding="utf-8")
    properties.write_text(
        template.format(port=port, controller_port=free_port(), data=data), encoding="utf-8"
    )
    base = [
        program,
        *JAVA_OPTIONS,
        f"-Ddysra.logs={logs}",
        f"-Dlog4j2.configurationFile={HERE / 'log4j2.yaml'}",
    ]
    base += ["-cp", f"{jars}/*"]
    console = logs / "console.log"
    if not (data / "meta.properties").exists():
        step("formatting the broker's storage (once)")
        _format(base, properties, timeout_s)
    step(f"starting Apache Kafka {KAFKA_VERSION} on {HOST}:{port}")
    with console.open("wb") as output:
        process = subprocess.Popen(
            [*base, "kafka.Kafka", str(properties)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            start_new_session=True,
        )
    _children[process.pid] = process
    broker = Broker(
        pid=process.pid,
        port=port,
        bootstrap_servers=f"{HOST}:{port}",
        directory=str(directory),
        log=str(logs / "broker.log"),
    )
    _write_state(directory, broker)
    try:
        _wait_ready(broker, timeout_s)
    except BaseException:
        _end(process.pid, directory, 5.0)
        (directory / "broker.json").unlink(missing_ok=True)
        raise
    return broker


def _format(base: list[str], properties: Path, timeout_s: float) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # An option parser would take a leading dash for an option.
    cluster_id = "A" + cluster_id[1:]
    command = [*base, "kafka.tools.StorageTool", "format", "--ignore-formatted"]
    command += ["-t", cluster_id, "-c", str(properties)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise DependencyUnreachable(f"formatting the broker's storage took over {timeout_s:.0f} s") from None
    if ran.returncode != 0:
        said = (ran.stdout + ran.stderr).strip()[-2_000:]
        raise DependencyUnreachable(f"the broker's storage cannot be formatted: {said}")


def _wait_ready(broker: Broker, timeout_s: float) -> None:
    """Return once a client gets metadata; raise as soon as the process has ended, or at the limit."""
    deadline = time.monotonic() + timeout_s
    config = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
    while time.monotonic() < deadline:
        if not _is_ours(broker.pid, Path(broker.directory)):
            tail = _log_tail(Path(broker.directory))
            if "BindException" in tail or "Address already in use" in tail:
                raise _PortLost(f"port {broker.port} is taken by another process")
            raise DependencyUnreachable(
                f"the broker ended while starting; the last lines of {broker.log}:\n{tail}"
            )
        with contextlib.suppress(OSError, DependencyUnreachable):
            socket.create_connection((HOST, broker.port), timeout=0.5).close()
            reachable(config, timeout_s=2.0)
            return
        time.sleep(0.1)
    raise DependencyUnreachable(
        f"the broker was not ready after {timeout_s:.0f} s; the last lines of {broker.log}:\n"
        + _log_tail(Path(broker.directory))
    )


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            try:
                reachable(KafkaConfig(bootstrap_servers=f"{HOST}:{port}"), timeout_s=2.0)
                hint = f"a Kafka broker answers there: use it by --bootstrap-servers {HOST}:{port}"
            except DependencyUnreachable:
                hint = "what listens there is no Kafka broker"
            raise UsageError(
                f"port {port} cannot be used ({error.strerror}); {hint}. Give another --port, or "
                "--port 0 for a free one"
            ) from None


def _end(pid: int, directory: Path, timeout_s: float) -> None:
    for sign, limit_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + limit_s
        if _is_ours(pid, directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        while _is_ours(pid, directory):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return


def _is_ours(pid: int, directory: Path) -> bool:
    """Whether the process is alive and is the broker of `directory` (process ids are used again)."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            command = proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return False
    else:
        listing = ["ps", "-ww", "-p", str(pid), "-o", "command="]
        try:
            listed = subprocess.run(listing, capture_output=True, text=True, check=False, timeout=10.0)
        except subprocess.TimeoutExpired:
            return False
        command = listed.stdout
    # Between fork and exec the child still shows our own command line.
    return child is not None or f"kafka.Kafka {directory / 'server.properties'}" in command


def _write_state(directory: Path, broker: Broker) -> None:
    replace_file(directory / "broker.json", json.dumps({KEY: FORMAT, **asdict(broker)}).encode())


def _log_tail(directory: Path, lines: int = 12) -> str:
    kept: list[str] = []
    for name in ("broker.log", "console.log"):
        with contextlib.suppress(OSError):
            text = (directory / "logs" / name).read_text(encoding="utf-8", errors="replace")
            wanted = [
                line for line in text[-40_000:].splitlines() if line.strip() and not line.startswith("\t")
            ]
            kept += [f"  {line[:300]}" for line in wanted[-lines:]]
    return "\n".join(kept) or "  (both logs are empty)"
