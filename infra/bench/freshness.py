"""From published to searchable at steady rates, through a broker, the ingest job and its embedder.

Two clocks: every article's own, from its Kafka timestamp to the append that makes it searchable by vector (the
job's histogram, 10% wide buckets); and probes from outside, one article a second whose only word nobody else has,
asked for by keyword until it is found (keyword search commits at most every `store.lexical_commit_ms`).

A search that no shard answers in time is counted and asked again: a store that stands still for a moment is a wait.
With `searches` so many titles a second are asked for meanwhile, by words and by vector; `device` is where shards
search by vector. On a GPU: `--set embedder=minilm --set device=cuda:0 --set searches=20`, with
RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0, since Ray hides the GPUs from actors that claim none, as shards do.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson

from actors.delays import Delays
from infra.bench.local import Local, local, news, publish_steadily, until
from infra.bench.measure import commit, environment
from pipeline.article import isoformat
from pipeline.errors import DependencyUnreachable, DysraError
from pipeline.publisher import Publisher

_PROBE_LIMIT_S = 60.0


class _Asking(ABC):
    """A thread that asks a store beside what is measured.

    `waits_ms`: of each answer; `failed`: searches that no shard answered in time: they are counted, and it goes on,
    for a store that is slow for a moment is what is measured here.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._over = threading.Event()
        self.waits_ms: list[float] = []
        self.failed = 0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watched, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after what is at hand; raises what ended it before, and where it does not end."""
        self._over.set()
        self._thread.join(timeout=_PROBE_LIMIT_S + 5)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            raise DysraError(f"{type(self).__name__} did not end within {_PROBE_LIMIT_S + 5:.0f} s")

    @abstractmethod
    def _run(self) -> None:
        """Ask until `_over`."""

    def _watched(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._failure = error

    def _search(self, text: str, k: int, mode: str) -> Any:
        """The store's result, None where the search failed."""
        try:
            return self._client.search([text], k=k, mode=mode)
        except DependencyUnreachable:
            self.failed += 1
            return None


class Prober(_Asking):
    """Publishes one article a second and asks for it until it is found; `lost`: not found within a minute."""

    def __init__(
        self, kafka: Any, client: Any, interval_s: float = 1.0, limit_s: float = _PROBE_LIMIT_S
    ) -> None:
        self._kafka, self._interval_s, self._limit_s = kafka, interval_s, limit_s
        self.lost = 0
        super().__init__(client)

    def _run(self) -> None:
        with Publisher(self._kafka) as publisher:
            for number in itertools.count():
                if self._over.wait(self._interval_s):
                    return
                word = f"probe{number}x{time.time_ns()}"
                now = isoformat(datetime.now(UTC))
                value = orjson.dumps(
                    {
                        "id": word,
                        "published": now,
                        "source": "probe",
                        "title": "Probe",
                        "text": f"It says {word}.",
                    }
                )
                started = time.perf_counter()
                publisher.publish_raw(word.encode(), value, stream="probe")
                publisher.flush()
                while time.perf_counter() - started < self._limit_s:
                    found = self._search(word, 1, "bm25")
                    if found is not None and found.passages[0] and found.passages[0][0].article_id == word:
                        self.waits_ms.append((time.perf_counter() - started) * 1e3)
                        break
                    time.sleep(0.01)
                else:
                    self.lost += 1


class Searcher(_Asking):
    """Asks for titles of the newswire at a steady rate, one search at a time, by words and by vector."""

    def __init__(self, client: Any, rate: float) -> None:
        self._rate = rate
        self.partial = 0
        super().__init__(client)

    def _run(self) -> None:
        values = (value for _, value, _ in news(200, seed=3) if value is not None)
        titles = [str(orjson.loads(value)["title"]) for value in values]
        due = time.perf_counter()
        for title in itertools.cycle(titles):
            due = max(due + 1.0 / self._rate, time.perf_counter() - 1.0)  # what was missed is not made up for
            if self._over.wait(max(0.0, due - time.perf_counter())):
                return
            started = time.perf_counter()
            found = self._search(title, 10, "hybrid")
            if found is not None:
                self.waits_ms.append((time.perf_counter() - started) * 1e3)
                self.partial += bool(found.partial)


def steady(
    system: Local,
    rate: float,
    seconds: float,
    embedder: str,
    partitions: int,
    ingesters: int,
    searches: float = 0.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """One rate for some seconds, after five of warming up."""
    kafka = system.topic(partitions)
    spec = system.spec(kafka, embedder=embedder, num_ingesters=ingesters, store={"device": device})
    wanted = int(rate * (seconds + 10) * 1.3) + 100
    articles = (record for record in news(wanted, seed=int(rate)) if record[1] is not None)
    with system.running(spec) as job:
        warm, _ = publish_steadily(kafka, articles, rate, 5.0)
        until(lambda: bool(job.progress()) and job.ledger().read >= warm, 120.0, "the warm-up to be read")
        time.sleep(3 * spec.ingest.health_interval_s)  # the job's figures follow its ledgers by that much
        before = Counter(job.progress()["delays"])
        prober = Prober(kafka, job.client)
        searcher = Searcher(job.client, searches) if searches else None
        count, behind_s = publish_steadily(kafka, articles, rate, seconds)
        if searcher is not None:
            searcher.stop()
        prober.stop()
        total = warm + count + len(prober.waits_ms) + prober.lost
        until(lambda: bool(job.progress()) and job.ledger().read >= total, 300.0, "everything to be read")
        time.sleep(3 * spec.ingest.health_interval_s)
        after = Counter(job.progress()["delays"])
        lag = sum(job.progress()["lag"].values())
        chunks = sum(int(row["live_chunks"]) for row in job.client.stats())
    delays = Delays(after - before)
    waits = prober.waits_ms or [float("nan")]
    return {
        "rate_per_s": rate,
        "published": count,
        "seconds": seconds,
        "embedder": embedder,
        "publisher_behind_s": round(behind_s, 3),
        "searchable_p50_ms": delays.percentile(0.5),
        "searchable_p99_ms": delays.percentile(0.99),
        "probe_keyword_p50_ms": round(float(np.percentile(waits, 50)), 1),
        "probe_keyword_max_ms": round(max(waits), 1),
        "probes": len(prober.waits_ms),
        "probes_lost": prober.lost,
        "probe_searches_failed": prober.failed,
        "lag_at_end": lag,
        "chunks_at_end": chunks,
        "store_device": device,
        **({} if searcher is None else _asked(searcher, seconds)),
    }


def _asked(searcher: Searcher, seconds: float) -> dict[str, Any]:
    waits = searcher.waits_ms or [float("nan")]
    return {
        "searches_per_s": round(len(searcher.waits_ms) / seconds, 1),
        "search_p50_ms": round(float(np.percentile(waits, 50)), 1),
        "search_p99_ms": round(float(np.percentile(waits, 99)), 1),
        "searches_partial": searcher.partial,
        "searches_failed": searcher.failed,
    }


def run(
    seconds: float = 30.0,
    embedder: str = "static",
    partitions: int = 4,
    ingesters: int = 1,
    rates: str = "50,200",
    searches: float = 0.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Each of `rates` articles a second for `seconds`."""
    from models.embed import EmbedderConfig, load_embedder

    load_embedder(EmbedderConfig(model=embedder))  # what is made once a machine is made before the clock runs
    wanted = [float(rate) for rate in rates.split(",")]
    with local() as system:
        rows = [
            steady(system, rate, seconds, embedder, partitions, ingesters, searches, device)
            for rate in wanted
        ]
    ratios: dict[str, Any] = {}
    for row in rows:
        ratios[f"published_to_searchable_p99_ms_{row['rate_per_s']:.0f}"] = row["searchable_p99_ms"]
        ratios[f"probe_keyword_max_ms_{row['rate_per_s']:.0f}"] = row["probe_keyword_max_ms"]
    return {
        "bench": "freshness",
        "device": environment()["device"],
        "commit": commit(),
        "rows": rows,
        "ratios": ratios,
    }
