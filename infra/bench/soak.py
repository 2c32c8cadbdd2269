"""Hours of articles as fast as they go: memory of every process, and files under retention.

720,000 articles are four hours at 50 a second. Each is published as of now and kept for a minute and a half
(`retained_s`), so that the store soon holds a steady number of them and must drop as many as it takes in; the topic
keeps an hour. A process is flat where the least squares line through its samples after warm-up (the first quarter)
rises by less than a tenth of its size over the run; its size at each quarter's end stands beside. Publishing
keeps a little ahead of reading; with `seconds` it ends by then, and the rows say how many of the articles
were reached.

Over many cores the run is shorter, and so must be what is kept: `--set producers=12 --set ingesters=10 --set
partitions=20 --set shards=8 --set near_duplicate_shards=2 --set retained_s=12 --set window_s=3`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from infra.bench.local import Local, local, until
from infra.bench.measure import commit
from infra.bench.soak_feed import Feed
from pipeline.errors import UsageError
from pipeline.near_duplicates import NearDuplicateConfig

_LIMIT_S = 4 * 3_600.0
_INTERVAL_S = 1.0
_ROLES = ("Ingester", "ShardActor", "EmbedderActor", "NearDuplicate", "Coordinator")
_PROGRAMS = ("java", "raylet", "gcs_server")


class Sampler:
    """Resident bytes of every process of the job by role, and the store's bytes on disk, each second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.disk: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        own = psutil.Process()
        begun = time.monotonic()
        while not self._over.wait(_INTERVAL_S):
            now = time.monotonic() - begun
            self.memory["bench and driver"].append((now, own.memory_info().rss))
            for process in own.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    role = _role(process.cmdline())
                    if role is not None:
                        self.memory[f"{role} {process.pid}"].append((now, process.memory_info().rss))
            with contextlib.suppress(OSError):
                size = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
                self.disk.append((now, size))


def _role(command: list[str]) -> str | None:
    """What a process of the job is: an actor's class, or the program's name; None for others."""
    line = " ".join(command)
    program = Path(command[0].split()[0]).name if line.strip() else ""
    return program if program in _PROGRAMS else next((role for role in _ROLES if role in line), None)


def quarters(samples: list[tuple[float, float]]) -> str:
    """Megabytes at the end of each quarter of the samples."""
    return " / ".join(
        f"{samples[max(0, len(samples) * part // 4 - 1)][1] / 1e6:.0f}" for part in (1, 2, 3, 4)
    )


def rise(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """Bytes at the end of the run, and by how much of that the line after warm-up rises over the run."""
    rows = np.array(samples[len(samples) // 4 :], dtype=np.float64)
    if len(rows) < 8:
        return float(samples[-1][1]), float("nan")
    slope = np.polyfit(rows[:, 0], rows[:, 1], 1)[0]
    return float(rows[-1, 1]), float(slope * (rows[-1, 0] - rows[0, 0]) / rows[:, 1].mean())


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
) -> list[dict[str, Any]]:
    """Publish beside, ingest, sample; a row for each process and one for the files."""
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
            maintain_interval_s=2.0,
            num_ingesters=ingesters,
            near_duplicate_shards=near_duplicate_shards,
        ),
        duplicates=NearDuplicateConfig(max_articles=20_000),
    )
    begun = time.perf_counter()
    with system.running(spec) as job:
        feed = Feed(kafka, articles, producers)
        sampler = Sampler(spec.store.path)
        try:

            def done() -> bool:
                feed.check()
                read = job.ledger().read if job.progress() else 0
                feed.note(read)
                if seconds and time.perf_counter() - begun > seconds:
                    feed.stop()
                return not feed.running and read >= feed.published

            until(done, _LIMIT_S, f"{articles} articles to be read", interval_s=0.1)
        finally:
            feed.stop()
        time.sleep(6.0)  # two looks at maintenance
        sampler.stop()
        ledger = job.ledger()
        live = sum(int(row["live_articles"]) for row in job.client.stats())
    lasted = time.perf_counter() - begun
    rows: list[dict[str, Any]] = []
    for name, samples in sampler.memory.items():
        size, rising = rise(samples)
        if len(samples) > 4:
            rows.append({"what": f"memory of {name}", "end_mb": round(size / 1e6, 1), "rise": round(rising, 4),
                         "quarters_mb": quarters(samples), "samples": len(samples)})  # fmt: skip
    size, rising = rise(sampler.disk)
    peak = max(value for _, value in sampler.disk)
    rows.append({"what": "files of the store", "end_mb": round(size / 1e6, 1), "peak_mb": round(peak / 1e6, 1),
                 "rise": round(rising, 4), "quarters_mb": quarters(sampler.disk),
                 "samples": len(sampler.disk)})  # fmt: skip
    rows.append({"what": "articles", "read": ledger.read, "asked": articles, "stored": ledger.stored,
                 "live_at_end": live, "share_kept": round(live / max(1, ledger.stored), 4),
                 "seconds": round(lasted, 1), "articles_per_s": round(ledger.read / lasted, 1)})  # fmt: skip
    return rows


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
) -> dict[str, Any]:
    """Push them through; the ratios name the steepest rise of any process of the job and of the files."""
    if partitions < ingesters:
        raise UsageError(
            f"{ingesters} ingesters cannot share {partitions} partitions; set partitions to at least {ingesters}"
        )
    with local() as system:
        rows = soak(
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
        )
    rises = [r["rise"] for r in rows if r["what"].startswith("memory of") and r["rise"] == r["rise"]]
    files = next(row for row in rows if row["what"] == "files of the store")
    return {
        "bench": "soak",
        "device": "cpu",
        "commit": commit(),
        "cores": os.cpu_count(),
        "ingesters": ingesters,
        "partitions": partitions,
        "shards": shards,
        "near_duplicate_shards": near_duplicate_shards,
        "producers": producers,
        "retained_s": retained_s,
        "window_s": window_s,
        "seal_rows": seal_rows,
        "rows": rows,
        "ratios": {
            "articles": rows[-1]["read"],
            "steepest_memory_rise": max(rises, default=float("nan")),
            "files_rise": files["rise"],
            "share_kept_under_retention": rows[-1]["share_kept"],
        },
    }
