"""The ingest job without embedding against a bare kafka-python loop over the same topic, by turns.

The job (`embedder: none`) validates, chunks, finds near-duplicates, writes and flushes the log, indexes the words,
and commits offsets. The bare loop polls and decodes the value as UTF-8; the second one parses it as JSON too. All
use the project's own consumer settings; rates are records a second from the first record to the last. A bare loop
is one process, so `cores` says how many cores each took: processor time over time. The broker's processor time is
told apart for all. `--set ingesters=8 --set partitions=16 --set shards=4` lays the job over more cores than two.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from typing import Any

from infra.bench.local import Local, cpu_by_part, local, news, publish, until
from infra.bench.measure import commit
from pipeline.bare_loop import bare_loop
from pipeline.errors import UsageError
from pipeline.kafka import KafkaConfig

_LIMIT_S = 900.0


def job_run(system: Local, kafka: KafkaConfig, count: int, **ingest: Any) -> dict[str, Any]:
    """The ingest job over the whole topic into a new store: seconds from the first record polled to the last that
    is durable and searchable."""
    spec = system.spec(kafka, **ingest)
    with system.running(spec) as job:
        begun: list[float] = []
        before: dict[str, float] = {}

        def done() -> bool:
            progress = job.progress()
            if progress["polled"] and not begun:
                begun.append(time.perf_counter())
                before.update(cpu_by_part())
            return bool(begun) and job.ledger().read >= count

        until(done, _LIMIT_S, f"{count} records durable", interval_s=0.02)
        seconds = time.perf_counter() - begun[0]
        after = cpu_by_part()
        figures = job.figures(job.progress())
    parts = {part: spent - before.get(part, 0.0) for part, spent in after.items()}
    broker_s = parts.pop("broker", 0.0)
    return {
        "seconds": seconds,
        "cpu_s": sum(parts.values()),
        "broker_s": broker_s,
        "parts": parts,
        "figures": figures,
    }


def run(
    articles: int = 20_000,
    repeats: int = 3,
    ingesters: int = 1,
    partitions: int = 4,
    shards: int = 1,
) -> dict[str, Any]:
    """Publish newswire articles once, then read them by turns; medians, and the lowest and highest."""
    if partitions < ingesters:
        raise UsageError(
            f"{ingesters} ingesters cannot share {partitions} partitions; set partitions to at least {ingesters}"
        )
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with local() as system:
        kafka = system.topic(partitions)
        sizes: list[int] = []

        def counted() -> Any:
            for record in news(articles):
                sizes.append(len(record[1] or b""))
                yield record

        count = publish(kafka, counted())
        for _ in range(repeats):
            for name, parse in (("bare_loop", False), ("bare_loop_json", True)):
                broker = cpu_by_part().get("broker", 0.0)
                spent, used = bare_loop(kafka, count, parse=parse)
                broker = cpu_by_part().get("broker", 0.0) - broker
                runs[name].append({"seconds": spent, "cpu_s": used, "broker_s": broker})
            runs["ingest"].append(
                job_run(system, kafka, count, num_ingesters=ingesters, store={"num_shards": shards})
            )
    last = runs["ingest"][-1]["figures"]
    rows = [{"loop": name, **_row(done, count, sizes)} for name, done in runs.items()]
    rows[-1] |= _by_part(runs["ingest"], count)
    rate = {row["loop"]: row["records_per_s"] for row in rows}
    work = {row["loop"]: row["cpu_us_per_record"] for row in rows}
    return {
        "bench": "ingest",
        "device": "cpu",
        "commit": commit(),
        "cores": os.cpu_count(),
        "ingesters": ingesters,
        "partitions": partitions,
        "shards": shards,
        "rows": rows,
        "accounting": {k: last[k] for k in ("read", "stored", "deleted", "dead_lettered", "duplicates")},
        "ratios": {
            "ingest_over_bare_loop": round(rate["ingest"] / rate["bare_loop"], 4),
            "ingest_over_bare_loop_json": round(rate["ingest"] / rate["bare_loop_json"], 4),
            "ingest_cpu_over_bare_loop": round(work["ingest"] / max(1, work["bare_loop"]), 2),
        },
    }


def _row(done: list[dict[str, Any]], count: int, sizes: list[int]) -> dict[str, Any]:
    rates = sorted(count / one["seconds"] for one in done)

    def each(name: str) -> float:
        return float(statistics.median(one[name] for one in done)) / count * 1e6

    return {
        "records": count,
        "mean_bytes": round(statistics.mean(sizes)),
        "records_per_s": round(statistics.median(rates)),
        "lowest_per_s": round(rates[0]),
        "highest_per_s": round(rates[-1]),
        "cpu_us_per_record": round(each("cpu_s")),
        "broker_us_per_record": round(each("broker_s")),
        "cores": round(statistics.median(one["cpu_s"] / one["seconds"] for one in done), 2),
        "repeats": len(done),
    }


def _by_part(done: list[dict[str, Any]], count: int) -> dict[str, float]:
    """Microseconds of processor time a record, by part of the system; the median run's of each."""
    parts = sorted({part for one in done for part in one["parts"]})
    return {
        f"{part}_us": round(statistics.median(one["parts"].get(part, 0.0) for one in done) / count * 1e6, 1)
        for part in parts
    }
