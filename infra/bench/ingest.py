"""The ingest job without embedding against a bare kafka-python loop over the same topic, by turns.

The job (`embedder: none`) validates, chunks, finds near-duplicates, writes and flushes the log, indexes the words,
and commits offsets. The bare loop polls and decodes the value as UTF-8; the second one parses it as JSON too. All
use the project's own consumer settings. A bare loop is one process, so `cores` says how many cores each took:
processor time over time. The broker's processor time is told apart for all.

The job's clock begins with the first batch that an ingester has prepared, less than a tenth of a second after its
first poll, and ends when all is durable and searchable by vector. `all_reading_per_s` counts what became durable
after every partition had begun: ingesters start one after the other. `keeper_busy` is the share of the job's
time in which the busiest near-duplicate keeper judged: near 1, all ingesters stand behind it.

Over more cores than two, for example: `--articles 800000 --set ingesters=16 --set partitions=16 --set shards=16
--set near_duplicate_shards=4 --set producers=24 --set loops=16 --set seconds=180` (`loops`: as many bare loops at
once, told beside; `seconds`: no repetition begins that would not end by then). `shapes` names other divisions of
the same cores, by turns with the first over the same topic: `--set shapes=12x14x4` has 12 ingesters, 14 shards and
4 near-duplicate keepers; several are divided by commas.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections import defaultdict
from typing import Any

from actors.near_duplicates import near_duplicates_name
from actors.remote import call, find_actor
from infra.bench.crowd import loops_together, publish_together
from infra.bench.local import Local, cpu_by_part, cpu_by_process, cpu_spent, local, news, publish, until
from infra.bench.measure import commit
from pipeline.bare_loop import bare_loop
from pipeline.errors import UsageError
from pipeline.kafka import KafkaConfig

_LIMIT_S = 900.0
_PUBLISH_S = 300.0


def job_run(system: Local, kafka: KafkaConfig, count: int, **ingest: Any) -> dict[str, Any]:
    """The ingest job over the whole topic into a new store: seconds from the first batch prepared to the last
    record durable and searchable; how many became durable after all partitions had begun, in which seconds."""
    spec = system.spec(kafka, **{"health_interval_s": 0.5, **ingest})
    with system.running(spec) as job:
        before = cpu_by_process()
        read = 0
        reading: tuple[int, float] | None = None

        def done() -> bool:
            nonlocal before, read, reading
            if not read:
                before = cpu_by_process()
            read = job.ledger().read
            if reading is None:
                places = job.progress()["durable"]
                if len(places) == kafka.partitions and all(places.values()):
                    read = job.ledger().read
                    reading = (read, time.time())
            return read >= count

        until(done, _LIMIT_S, f"{count} records durable", interval_s=0.05)
        ended = time.time()
        parts = cpu_spent(before, cpu_by_process())
        figures = job.figures(job.progress())
        begun, judging_s = _judged(job.client.name, spec.ingest.near_duplicate_shards)
    shutil.rmtree(spec.store.path, ignore_errors=True)  # gigabytes, and the next repetition makes its own
    broker_s = parts.pop("broker", 0.0)
    first, since = reading or (0, begun)
    return {
        "seconds": ended - begun,
        "all_reading": (count - first, max(ended - since, 1e-9)),
        "cpu_s": sum(parts.values()),
        "broker_s": broker_s,
        "keeper_busy": judging_s / (ended - begun),
        "parts": parts,
        "figures": figures,
    }


def _judged(store: str, keepers: int) -> tuple[float, float]:
    """When the near-duplicate index was first asked, which is when the first batch was prepared, and how many
    seconds its busiest keeper judged: it does that for one call at a time."""
    handles = [find_actor(near_duplicates_name(store, keeper)) for keeper in range(keepers)]
    stats: list[dict[str, int]] = [
        call(handle.stats.remote(), 30.0) for handle in handles if handle is not None
    ]
    begun_ms = min(one["first_ms"] for one in stats if one["first_ms"])
    return begun_ms / 1e3, max(one["busy_ms"] for one in stats) / 1e3


def run(
    articles: int = 20_000,
    repeats: int = 3,
    ingesters: int = 1,
    partitions: int = 4,
    shards: int = 1,
    near_duplicate_shards: int = 1,
    producers: int = 1,
    loops: int = 0,
    inflight: int = 4_096,
    commit_ms: float = 200.0,
    seconds: float = 0.0,
    shapes: str = "",
) -> dict[str, Any]:
    """Publish newswire articles once, then read them by turns; medians, and the lowest and highest."""
    tried = {"ingest": (ingesters, shards, near_duplicate_shards), **_shapes(shapes)}
    for one, _, _ in tried.values():
        if partitions < one:
            raise UsageError(
                f"{one} ingesters cannot share {partitions} partitions; set partitions to at least {one}"
            )
    begun = time.monotonic()
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with local() as system:
        kafka = system.topic(partitions)
        count, mean_bytes = _published(kafka, articles, producers, seconds or _PUBLISH_S)
        longest = 0.0
        for turn in range(repeats):
            started = time.monotonic()
            if turn and seconds and started - begun + longest > seconds:
                break
            _bare(runs, kafka, count, loops)
            for name, shape in tried.items():
                runs[name].append(job_run(system, kafka, count, **_settings(shape, inflight, commit_ms)))
            longest = max(longest, time.monotonic() - started)
    last = runs["ingest"][-1]["figures"]
    rows = [{"loop": name, **_row(done, count, mean_bytes)} for name, done in runs.items()]
    for row in rows:
        if row["loop"] in tried:
            row |= _of_job(runs[row["loop"]], count)
    rate = {row["loop"]: row["records_per_s"] for row in rows}
    work = {row["loop"]: row["cpu_us_per_record"] for row in rows}
    ratios = {
        "ingest_over_bare_loop": round(rate["ingest"] / rate["bare_loop"], 4),
        "ingest_over_bare_loop_json": round(rate["ingest"] / rate["bare_loop_json"], 4),
        "ingest_all_reading_over_bare_loop": round(
            next(row["all_reading_per_s"] for row in rows if row["loop"] == "ingest") / rate["bare_loop"], 4
        ),
        "ingest_cpu_over_bare_loop": round(work["ingest"] / max(1, work["bare_loop"]), 2),
    }
    for name in tried:
        ratios.setdefault(f"{name}_over_bare_loop", round(rate[name] / rate["bare_loop"], 4))
    if loops:
        ratios[f"ingest_over_{loops}_bare_loops"] = round(rate["ingest"] / rate[f"{loops} bare loops"], 4)
    return {
        "bench": "ingest",
        "device": "cpu",
        "commit": commit(),
        "cores": os.cpu_count(),
        "ingesters": ingesters,
        "partitions": partitions,
        "shards": shards,
        "near_duplicate_shards": near_duplicate_shards,
        "inflight": inflight,
        "commit_ms": commit_ms,
        "load": round(os.getloadavg()[0], 1),
        "rows": rows,
        "accounting": {k: last[k] for k in ("read", "stored", "deleted", "dead_lettered", "duplicates")},
        "ratios": ratios,
    }


def _shapes(given: str) -> dict[str, tuple[int, int, int]]:
    """Ingesters, shards and keepers of each other division, by the name of its row."""
    found: dict[str, tuple[int, int, int]] = {}
    for one in given.split(",") if given else ():
        numbers = one.strip().split("x")
        if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
            raise UsageError(
                f"shapes has {one!r}; each is ingesters, shards and near-duplicate keepers, such as 12x14x4"
            )
        ingesters, shards, keepers = map(int, numbers)
        found[f"ingest {one.strip()}"] = (ingesters, shards, keepers)
    return found


def _settings(shape: tuple[int, int, int], inflight: int, commit_ms: float) -> dict[str, Any]:
    """What `job_run` is given for a division of the cores."""
    ingesters, shards, keepers = shape
    return {
        "num_ingesters": ingesters,
        "near_duplicate_shards": keepers,
        "max_inflight_records": inflight,
        "store": {"num_shards": shards, "lexical_commit_ms": commit_ms},
    }


def _published(kafka: KafkaConfig, articles: int, producers: int, limit_s: float) -> tuple[int, float]:
    """Records on the topic, and the mean bytes of their values."""
    if producers > 1:
        return publish_together(kafka, articles, producers, limit_s)
    size = 0

    def counted() -> Any:
        nonlocal size
        for record in news(articles):
            size += len(record[1] or b"")
            yield record

    count = publish(kafka, counted())
    return count, size / max(1, count)


def _bare(runs: dict[str, list[dict[str, Any]]], kafka: KafkaConfig, count: int, loops: int) -> None:
    """One turn of the bare loops."""
    for name, parse in (("bare_loop", False), ("bare_loop_json", True)):
        broker = cpu_by_part().get("broker", 0.0)
        read = bare_loop(kafka, count, parse=parse)
        broker = cpu_by_part().get("broker", 0.0) - broker
        runs[name].append({"seconds": read.seconds, "cpu_s": read.cpu_s, "broker_s": broker})
    if loops:
        broker = cpu_by_part().get("broker", 0.0)
        every = loops_together(kafka, loops, parse=False, limit_s=_LIMIT_S)
        broker = cpu_by_part().get("broker", 0.0) - broker
        spent = max(one.ended_s for one in every) - min(one.begun_s for one in every)
        cpu_s = sum(one.cpu_s for one in every)
        runs[f"{loops} bare loops"].append({"seconds": spent, "cpu_s": cpu_s, "broker_s": broker})


def _row(done: list[dict[str, Any]], count: int, mean_bytes: float) -> dict[str, Any]:
    rates = sorted(count / one["seconds"] for one in done)

    def each(name: str) -> float:
        return float(statistics.median(one[name] for one in done)) / count * 1e6

    return {
        "records": count,
        "mean_bytes": round(mean_bytes),
        "records_per_s": round(statistics.median(rates)),
        "lowest_per_s": round(rates[0]),
        "highest_per_s": round(rates[-1]),
        "cpu_us_per_record": round(each("cpu_s")),
        "broker_us_per_record": round(each("broker_s")),
        "cores": round(statistics.median(one["cpu_s"] / one["seconds"] for one in done), 2),
        "repeats": len(done),
    }


def _of_job(done: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Of the job alone: its parts' processor time, its rate once all were reading, its busiest keeper."""
    reading = [number / spent for number, spent in (one["all_reading"] for one in done)]
    return {
        **_by_part(done, count),
        "all_reading_per_s": round(statistics.median(reading)),
        "keeper_busy": round(statistics.median(one["keeper_busy"] for one in done), 3),
    }


def _by_part(done: list[dict[str, Any]], count: int) -> dict[str, float]:
    """Microseconds of processor time a record, by part of the system; the median run's of each."""
    parts = sorted({part for one in done for part in one["parts"]})
    return {
        f"{part}_us": round(statistics.median(one["parts"].get(part, 0.0) for one in done) / count * 1e6, 1)
        for part in parts
    }
