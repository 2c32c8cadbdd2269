"""A run of faults from its plan to its table; each result is kept as it comes, so a run can be cut and resumed."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from infra.bench.faults.cluster_run import ClusterRun
from infra.bench.faults.kinds import Kind
from infra.bench.faults.merged import result
from infra.bench.faults.plan import FaultsConfig, faults
from infra.bench.faults.process import Worker
from infra.bench.faults.report import FaultResult, append_line, figures, read_lines
from infra.bench.faults.tiny_model import save_tiny_model
from infra.bench.faults.tmpfs import small_disk
from infra.bench.faults.world_run import WorldRun
from infra.bench.measure import commit

_DISK_MB = 24
_STORE_DISK_MB = 200
_PROGRESS_S = 5.0


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


class Injector(Protocol):
    """What injects the faults of some places."""

    def inject(self, number: int, kind: Kind) -> FaultResult:
        """One fault, its recovery, the check."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


def run(config: FaultsConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Inject the faults of `config` and check after each; the result as benchmarks keep it."""
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            # A terminated run ends what it started: a broker, a cluster, mounts.
            before = signal.signal(signal.SIGTERM, _end)
            stack.callback(signal.signal, signal.SIGTERM, before)
        if config.work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dysra-faults-")))
        else:
            work = config.work.expanduser().absolute()
            work.mkdir(parents=True, exist_ok=True)
        kept = work / "faults.jsonl"
        if not config.resume:
            kept.unlink(missing_ok=True)
        results = read_lines(kept)
        injectors, can_fill = _injectors(config, work, stack, say)
        _inject_all(config, injectors, results, kept, say, can_fill=can_fill)
    return result(results, config.seed)


def _injectors(
    config: FaultsConfig, work: Path, stack: ExitStack, say: Callable[[str], None]
) -> tuple[dict[str, Injector], bool]:
    """What can be injected here, by place, and whether a cluster's disk can be filled; what cannot is said."""
    can_fill = False
    wanted = {kind.place for kind in config.chosen()}
    sessions = any(place.startswith("session") for place in wanted)
    preload = [
        "infra.bench.faults.shard_worker",
        *(["infra.bench.faults.session_worker"] if sessions else []),
    ]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    disk = None
    if any(place.endswith("tmpfs") for place in wanted):
        disk = stack.enter_context(small_disk(work / "disk", _DISK_MB))
        if disk is None:
            say("no file system may be mounted here: faults of a full disk are left out")
    model = save_tiny_model(work / "tiny-model") if sessions else None
    Worker.limit_s = config.settle_s
    worlds = WorldRun(work, config.seed, disk, model)
    stack.callback(worlds.close)
    injectors: dict[str, Injector] = {"shard": worlds, "session": worlds}
    if disk is not None:
        injectors |= {"tmpfs": worlds, "session-tmpfs": worlds}
    if "cluster" in wanted:
        store_disk = stack.enter_context(small_disk(work / "store-disk", _STORE_DISK_MB))
        can_fill = store_disk is not None
        if not can_fill:
            say("no file system may be mounted here: the fault fill-disk is left out")
        cluster = ClusterRun(work, config.seed, store_disk, say, config.settle_s)
        stack.callback(cluster.close)
        injectors["cluster"] = cluster
    return {place: injector for place, injector in injectors.items() if place in wanted}, can_fill


def _inject_all(
    config: FaultsConfig,
    injectors: dict[str, Injector],
    results: list[FaultResult],
    kept: Path,
    say: Callable[[str], None],
    *,
    can_fill: bool,
) -> None:
    done = {one.number for one in results}
    if done:
        say(f"going on after {len(done)} faults of {kept}")
    at_commit, began, shown = commit(), time.monotonic(), 0.0
    for number, kind in faults(config, set(injectors), without=() if can_fill else ("fill-disk",)):
        if number in done:
            continue
        if config.minutes and time.monotonic() - began > 60 * config.minutes:
            say(f"{config.minutes:g} minutes are over after {len(results)} faults; --resume goes on")
            break
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _end)  # again: connecting to Ray puts its own handler there
        started = time.monotonic()
        try:
            found = injectors[kind.place].inject(number, kind)
        except BaseException:
            # Ended from outside: which fault stood, and for how long, is told nowhere else.
            say(f"  ended during fault {number}, {kind.name}, after {time.monotonic() - started:.0f} s of it")
            raise
        found = dataclasses.replace(
            found, at=datetime.now(UTC).isoformat(timespec="seconds"), commit=at_commit
        )
        append_line(kept, found)
        results.append(found)
        if not found.held:
            say(f"  NOT HELD: fault {number}, {kind.name} ({found.note}): {'; '.join(found.problems)[:600]}")
        if time.monotonic() - shown >= _PROGRESS_S:
            shown = time.monotonic()
            say(_progress(results, config.faults, time.monotonic() - began))


def _progress(results: list[FaultResult], wanted: int, seconds: float) -> str:
    now = figures(results)
    places = Counter(one.place for one in results)
    spread = ", ".join(f"{count} {place}" for place, count in sorted(places.items()))
    return (
        f"  {now['faults']:,} of {wanted:,} faults ({spread}) in {seconds:.0f} s: {now['lost']} lost, "
        f"{now['doubled']} doubled, {now['wrong_version']} wrong versions, {now['sessions_differing']} sessions "
        f"differing; recovery p50 {now['recovery_p50_s']} s, p99 {now['recovery_p99_s']} s"
    )
