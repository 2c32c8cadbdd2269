"""Hours of articles as fast as they go: memory of every process, and files under retention.

720,000 articles are four hours at 50 a second. Each is published as of now and kept for a minute and a half,
so that the store soon holds a steady number of them and must drop as many as it takes in; the topic keeps an
hour. A process is flat where the least squares line through its samples after warm-up (the first quarter)
rises by less than a tenth of its size over the run; its size at each quarter's end stands beside. Publishing
keeps a little ahead of reading; with `seconds` it ends by then, and the rows say how many of the articles
were reached.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from infra.bench.local import Local, Record, local, news, publish, until
from infra.bench.measure import commit
from pipeline.article import isoformat
from pipeline.kafka import KafkaConfig
from pipeline.near_duplicates import NearDuplicateConfig

_LIMIT_S = 4 * 3_600.0
_RETAINED_S = 90.0
_WINDOW_S = 30.0
_INTERVAL_S = 1.0
_AHEAD = 20_000
_ROUND = 20_000
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


def fresh(articles: int) -> Iterator[Record]:
    """Newswire articles, each published at the moment it is taken.

    A wire of its own for every `_ROUND` articles: one remembers all that it has told, which would count as a rise.
    """
    for number in range(articles):
        round_, at = divmod(number, _ROUND)
        if at == 0:
            given = (record for record in news(2 * _ROUND, seed=5 + round_) if record[1] is not None)
        _, value, stream = next(given)
        fields = orjson.loads(value or b"{}")
        fields["id"] = f"{round_}-{fields['id']}"
        fields["published"] = isoformat(datetime.now(UTC))
        fields.pop("updated", None)
        yield fields["id"].encode(), orjson.dumps(fields), stream


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


class Feed:
    """Publishes in a thread, at most `_AHEAD` records ahead of what was read, until told to end."""

    def __init__(self, kafka: KafkaConfig, articles: int, read: Callable[[], int]) -> None:
        self._kafka, self._articles, self._read = kafka, articles, read
        self._over = threading.Event()
        self.published = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether more will come."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End after the record at hand."""
        self._over.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            publish(self._kafka, self._records())
        except BaseException as error:
            self.failure = error

    def _records(self) -> Iterator[Record]:
        for record in fresh(self._articles):
            if self.published % 1_000 == 0:
                while self.published - self._read() > _AHEAD and not self._over.wait(0.1):
                    pass
            if self._over.is_set():
                return
            yield record
            self.published += 1


def soak(
    system: Local, articles: int, seconds: float, partitions: int, ingesters: int, shards: int
) -> list[dict[str, Any]]:
    """Publish in a thread, ingest, sample; a row for each process and one for the files."""
    kafka = replace(system.topic(partitions), retention_hours=1.0)
    store = {
        "num_shards": shards,
        "retention_days": _RETAINED_S / 86_400,
        "window_hours": _WINDOW_S / 3_600,
        "seal_rows": 2_048,
        "min_seal_rows": 256,
    }
    spec = replace(
        system.spec(kafka, store=store, maintain_interval_s=2.0, num_ingesters=ingesters),
        duplicates=NearDuplicateConfig(max_articles=20_000),
    )
    begun = time.perf_counter()
    read = [0]
    with system.running(spec) as job:
        feed = Feed(kafka, articles, lambda: read[0])
        sampler = Sampler(spec.store.path)

        def done() -> bool:
            if feed.failure is not None:
                raise feed.failure
            read[0] = job.ledger().read if job.progress() else 0
            if seconds and time.perf_counter() - begun > seconds:
                feed.stop()
            return not feed.running and read[0] >= feed.published

        until(done, _LIMIT_S, f"{articles} articles to be read", interval_s=0.5)
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
    articles: int = 720_000, seconds: float = 0.0, partitions: int = 4, ingesters: int = 1, shards: int = 1
) -> dict[str, Any]:
    """Push them through; the ratios name the steepest rise of any process of the job and of the files."""
    with local() as system:
        rows = soak(system, articles, seconds, partitions, ingesters, shards)
    rises = [r["rise"] for r in rows if r["what"].startswith("memory of") and r["rise"] == r["rise"]]
    files = next(row for row in rows if row["what"] == "files of the store")
    return {
        "bench": "soak",
        "device": "cpu",
        "commit": commit(),
        "rows": rows,
        "ratios": {
            "articles": rows[-1]["read"],
            "steepest_memory_rise": max(rises, default=float("nan")),
            "files_rise": files["rise"],
            "share_kept_under_retention": rows[-1]["share_kept"],
        },
    }
