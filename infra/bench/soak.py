"""Hours of articles as fast as they go: memory of every process, and files under retention.

720,000 articles are four hours at 50 a second. Each is published as of now and kept for a minute and a half
(`retained_s`), so that the store soon holds a steady number of them and must drop as many as it takes in; the topic
keeps an hour. Warm-up is the first quarter of the time under load, or `warm_s`; what comes after the last article
does not count. **A process is flat** where the least squares line through its anonymous memory (its own: pages of
files and memory shared with others can be taken from it at any time, and stand beside) rises after warm-up by
less than a tenth of its size, and over the latter half of that by less than a twentieth: it may fill, but must
have filled. What fills late is known (a shard's list of changes, what the allocator keeps): on two cores a shard
settled after five minutes, so a run on which something hangs is given a `warm_s` of 330. Files are judged by what
retention allows (soak_files.py). The quarters of the time after warm-up stand beside as medians, growth in the
latter half as bytes for each article that the job read, and the whole course under `traces`.

Publishing keeps `ahead` records before reading; with `seconds` it ends by then, and the rows say how many of the
articles were reached. Over many cores: `--articles 20000000 --set seconds=600 --set warm_s=120 --set ahead=60000
--set producers=12 --set ingesters=8 --set partitions=24 --set shards=6 --set near_duplicate_shards=2 --set
retained_s=12 --set window_s=3`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from infra.bench.local import Local, local, until
from infra.bench.measure import commit
from infra.bench.soak_feed import AHEAD, Feed
from infra.bench.soak_files import LOOK_S, Samples, judged_files
from infra.bench.soak_trace import bytes_an_article, counted, trace
from pipeline.errors import UsageError
from pipeline.near_duplicates import NearDuplicateConfig

_LIMIT_S = 4 * 3_600.0
_INTERVAL_S = 1.0
_FLAT = 0.1
_ROLES = ("Ingester", "ShardActor", "EmbedderActor", "NearDuplicate", "Coordinator")
_PROGRAMS = ("java", "raylet", "gcs_server")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of a process: its own, pages of files, and what it shares with others (Ray's object store)."""

    anonymous: int
    files: int
    shared: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        """As the kernel tells it now; OSError where the process is gone."""
        told = dict.fromkeys(("RssAnon", "RssFile", "RssShmem"), 0)
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in told:
                told[name] = int(value.split()[0]) * 1_024
        return cls(told["RssAnon"], told["RssFile"], told["RssShmem"])


class Sampler:
    """Memory of every process of the job by role, and the store's bytes on disk, each second until `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory: dict[str, list[tuple[float, Memory]]] = defaultdict(list)
        self.disk: Samples = []
        self.read: Samples = []
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._thread.join(timeout=30)

    def note(self, read: int) -> None:
        """How many articles have been read by now."""
        self.read.append((time.monotonic() - self._begun, read))

    def _run(self) -> None:
        own = psutil.Process()
        while not self._over.wait(_INTERVAL_S):
            now = time.monotonic() - self._begun
            self.memory["bench and driver"].append((now, Memory.of(own.pid)))
            for process in own.children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    role = _role(process.cmdline())
                    if role is not None:
                        self.memory[f"{role} {process.pid}"].append((now, Memory.of(process.pid)))
            with contextlib.suppress(OSError):
                size = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
                self.disk.append((now, size))


def _role(command: list[str]) -> str | None:
    """What a process of the job is: an actor's class, or the program's name; None for others."""
    line = " ".join(command)
    program = Path(command[0].split()[0]).name if line.strip() else ""
    return program if program in _PROGRAMS else next((role for role in _ROLES if role in line), None)


def quarters(samples: Samples) -> str:
    """Medians of megabytes in each quarter of the time that the samples span."""
    begun, ended = samples[0][0], samples[-1][0]
    parts: list[list[float]] = [[], [], [], []]
    for at, value in samples:
        parts[min(3, int(4 * (at - begun) / max(ended - begun, 1e-9)))].append(value)
    return " / ".join(f"{statistics.median(part) / 1e6:.0f}" if part else "-" for part in parts)


def rise(samples: Samples) -> float:
    """By how much of their mean the line through the samples rises from the first to the last; nan for fewer than
    eight."""
    rows = np.array(samples, dtype=np.float64).reshape(-1, 2)
    if len(rows) < 8:
        return float("nan")
    slope = np.polyfit(rows[:, 0], rows[:, 1], 1)[0]
    return float(slope * (rows[-1, 0] - rows[0, 0]) / max(rows[:, 1].mean(), 1.0))


def warm(samples: Samples, warm_s: float) -> Samples:
    """The samples after warm-up: `warm_s` seconds of the run, or its first quarter (0)."""
    if not samples:
        return []
    ended = samples[-1][0]
    return [one for one in samples if one[0] >= (warm_s or ended / 4)]


def judged(samples: Samples) -> dict[str, Any]:
    """Rise after warm-up, rise of the latter half of that, and whether both are small enough to be called flat."""
    whole, later = rise(samples), rise(samples[len(samples) // 2 :])
    return {
        "rise": round(whole, 4),
        "later_rise": round(later, 4),
        "flat": whole < _FLAT and later < _FLAT / 2,
    }


def memory_row(
    name: str, samples: list[tuple[float, Memory]], warm_s: float, read: Samples | None = None
) -> dict[str, Any] | None:
    """A process' row; None where it lived too short a time after warm-up to be judged. `read`: articles by time."""

    def kept(pick: Callable[[Memory], int]) -> Samples:
        return warm([(at, pick(one)) for at, one in samples], warm_s)

    own = kept(lambda one: one.anonymous)
    resident = kept(lambda one: one.anonymous + one.files + one.shared)
    if len(own) < 16:
        return None
    return {
        "what": f"memory of {name}",
        "end_mb": round(resident[-1][1] / 1e6, 1),
        **judged(own),
        "later_bytes_an_article": round(bytes_an_article(own[len(own) // 2 :], read or []), 1),
        "anonymous_mb": quarters(own),
        "files_mb": quarters(kept(lambda one: one.files)),
        "shared_mb": quarters(kept(lambda one: one.shared)),
        "resident_rise": round(rise(resident), 4),
        "samples": len(own),
    }


def soak(
    system: Local,
    articles: int,
    *,
    seconds: float,
    partitions: int,
    ingesters: int,
    shards: int,
    near_duplicate_shards: int,
    producers: int,
    retained_s: float,
    window_s: float,
    seal_rows: int,
    warm_s: float = 0.0,
    ahead: int = AHEAD,
) -> tuple[list[dict[str, Any]], dict[str, list[list[float]]]]:
    """Publish beside, ingest, sample; a row for each process and one for the files, and the course of each."""
    kafka = replace(system.topic(partitions), retention_hours=1.0)
    store = {
        "num_shards": shards,
        "retention_days": retained_s / 86_400,
        "window_hours": window_s / 3_600,
        "seal_rows": seal_rows,
        "min_seal_rows": seal_rows // 8,
    }
    spec = replace(
        system.spec(
            kafka,
            store=store,
            maintain_interval_s=LOOK_S,
            num_ingesters=ingesters,
            near_duplicate_shards=near_duplicate_shards,
        ),
        duplicates=NearDuplicateConfig(max_articles=20_000),
    )
    begun = time.perf_counter()
    with system.running(spec) as job:
        feed = Feed(kafka, articles, producers, ahead)
        sampler = Sampler(spec.store.path)
        try:

            def done() -> bool:
                feed.check()
                read = job.ledger().read if job.progress() else 0
                feed.note(read)
                sampler.note(read)
                if seconds and time.perf_counter() - begun > seconds:
                    feed.stop()
                return not feed.running and read >= feed.published

            until(done, _LIMIT_S, f"{articles} articles to be read", interval_s=0.1)
        finally:
            sampler.stop()
            feed.stop()
        time.sleep(3 * LOOK_S)
        ledger = job.ledger()
        live = sum(int(row["live_articles"]) for row in job.client.stats())
    lasted = time.perf_counter() - begun
    made = [memory_row(name, samples, warm_s, sampler.read) for name, samples in sampler.memory.items()]
    rows = [row for row in made if row is not None]
    disk = warm(sampler.disk, warm_s)
    bounds = judged_files(
        sampler.disk, sampler.read, retained_s=retained_s, window_s=window_s, warm_s=disk[0][0]
    )
    rows.append({"what": "files of the store", "end_mb": round(disk[-1][1] / 1e6, 1), "rise": round(rise(disk), 4),
                 "peak_mb": round(max(value for _, value in sampler.disk) / 1e6, 1), **bounds,
                 "quarters_mb": quarters(disk), "samples": len(disk)})  # fmt: skip
    rows.append({"what": "articles", "read": ledger.read, "asked": articles, "stored": ledger.stored,
                 "live_at_end": live, "share_kept": round(live / max(1, ledger.stored), 4),
                 "seconds": round(lasted, 1), "articles_per_s": round(ledger.read / lasted, 1)})  # fmt: skip
    traces = {
        name: trace([(at, float(one.anonymous)) for at, one in samples])
        for name, samples in sampler.memory.items()
    }
    courses = {"files of the store": trace(sampler.disk), "articles read": counted(sampler.read)}
    return rows, traces | courses


def run(
    articles: int = 720_000,
    seconds: float = 0.0,
    partitions: int = 4,
    ingesters: int = 1,
    shards: int = 1,
    near_duplicate_shards: int = 1,
    producers: int = 1,
    retained_s: float = 90.0,
    window_s: float = 30.0,
    seal_rows: int = 2_048,
    warm_s: float = 0.0,
    ahead: int = AHEAD,
) -> dict[str, Any]:
    """Push them through; the ratios name the steepest rise of any process of the job and of the files, and how many
    processes are flat of how many."""
    if seconds and warm_s >= seconds:
        raise UsageError(f"warm_s is {warm_s:g} and seconds {seconds:g}; set warm_s to less than seconds")
    if ahead < 1:
        raise UsageError(f"ahead is {ahead}; set it to at least 1")
    if partitions < ingesters:
        raise UsageError(
            f"{ingesters} ingesters cannot share {partitions} partitions; set partitions to at least {ingesters}"
        )
    with local() as system:
        rows, traces = soak(
            system,
            articles,
            seconds=seconds,
            partitions=partitions,
            ingesters=ingesters,
            shards=shards,
            near_duplicate_shards=near_duplicate_shards,
            producers=producers,
            retained_s=retained_s,
            window_s=window_s,
            seal_rows=seal_rows,
            warm_s=warm_s,
            ahead=ahead,
        )
    processes = [row for row in rows if row["what"].startswith("memory of")]
    files = next(row for row in rows if row["what"] == "files of the store")
    return {
        "bench": "soak",
        "device": "cpu",
        "commit": commit(),
        "cores": len(os.sched_getaffinity(0)),
        "ingesters": ingesters,
        "partitions": partitions,
        "shards": shards,
        "near_duplicate_shards": near_duplicate_shards,
        "producers": producers,
        "retained_s": retained_s,
        "window_s": window_s,
        "seal_rows": seal_rows,
        "warm_s": warm_s,
        "ahead": ahead,
        "rows": rows,
        "traces": traces,
        "ratios": {
            "articles": rows[-1]["read"],
            "steepest_memory_rise": max((row["rise"] for row in processes), default=float("nan")),
            "steepest_resident_rise": max((row["resident_rise"] for row in processes), default=float("nan")),
            "processes": len(processes),
            "flat_processes": sum(row["flat"] for row in processes),
            "files_rise": files["rise"],
            "files_share_of_allowed": files["share_of_allowed"],
            "files_bounded": files["bounded"],
            "share_kept_under_retention": rows[-1]["share_kept"],
        },
    }
