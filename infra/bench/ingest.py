"""The ingest job without embedding against a bare kafka-python loop over the same topic, by turns.

The job (`embedder: none`) validates, chunks, finds near-duplicates, writes and flushes the log, indexes the words,
and commits offsets. The bare loop polls and decodes the value as UTF-8; the second one parses it as JSON too. All
use the project's own consumer settings; rates are records a second from the first record to the last, and processor
time is that of all processes over the same span.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

from infra.bench.local import Local, cpu_seconds, local, news, publish, until
from infra.bench.measure import commit
from pipeline.bare_loop import bare_loop
from pipeline.kafka import KafkaConfig

_LIMIT_S = 900.0


def job_run(system: Local, kafka: KafkaConfig, count: int, **ingest: Any) -> dict[str, Any]:
    """The ingest job over the whole topic into a new store: seconds from the first record polled to the last that
    is durable and searchable."""
    spec = system.spec(kafka, **ingest)
    cpu = 0.0
    with system.running(spec) as job:
        begun: list[float] = []

        def done() -> bool:
            progress = job.progress()
            if progress["polled"] and not begun:
                begun.append(time.perf_counter())
                begun.append(cpu_seconds())
            return bool(begun) and job.ledger().read >= count

        until(done, _LIMIT_S, f"{count} records durable")
        seconds = time.perf_counter() - begun[0]
        cpu = cpu_seconds() - begun[1]
        figures = job.figures(job.progress())
    return {"seconds": seconds, "cpu_s": cpu, "figures": figures}


def run(articles: int = 20_000, repeats: int = 3, ingesters: int = 1, shards: int = 1) -> dict[str, Any]:
    """Publish newswire articles once, then read them by turns; medians, and the lowest and highest."""
    seconds: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    last: dict[str, Any] = {}
    with local() as system:
        kafka = system.topic()
        sizes: list[int] = []

        def counted() -> Any:
            for record in news(articles):
                sizes.append(len(record[1] or b""))
                yield record

        count = publish(kafka, counted())
        for _ in range(repeats):
            for name, parse in (("bare_loop", False), ("bare_loop_json", True)):
                spent, used = bare_loop(kafka, count, parse=parse)
                seconds[name].append(spent)
                cpu[name].append(used)
            done = job_run(system, kafka, count, num_ingesters=ingesters, store={"num_shards": shards})
            seconds["ingest"].append(done["seconds"])
            cpu["ingest"].append(done["cpu_s"])
            last = done["figures"]
    rows: list[dict[str, Any]] = []
    for name, times in seconds.items():
        rates = sorted(count / s for s in times)
        rows.append(
            {
                "loop": name,
                "records": count,
                "mean_bytes": round(statistics.mean(sizes)),
                "records_per_s": round(statistics.median(rates)),
                "lowest_per_s": round(rates[0]),
                "highest_per_s": round(rates[-1]),
                "cpu_us_per_record": round(statistics.median(cpu[name]) / count * 1e6),
                "repeats": len(times),
            }
        )
    rate = {row["loop"]: row["records_per_s"] for row in rows}
    work = {row["loop"]: row["cpu_us_per_record"] for row in rows}
    return {
        "bench": "ingest",
        "device": "cpu",
        "commit": commit(),
        "rows": rows,
        "accounting": {k: last[k] for k in ("read", "stored", "deleted", "dead_lettered", "duplicates")},
        "ratios": {
            "ingest_over_bare_loop": round(rate["ingest"] / rate["bare_loop"], 4),
            "ingest_over_bare_loop_json": round(rate["ingest"] / rate["bare_loop_json"], 4),
            "ingest_cpu_over_bare_loop": round(work["ingest"] / max(1, work["bare_loop"]), 2),
        },
    }
