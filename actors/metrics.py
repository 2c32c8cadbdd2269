"""Every metric that the actors export through Ray (`ray_dysra_…` in Prometheus), declared once.

Tags are few and bounded: never a session id, an article id or a URL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ray.util import metrics as ray_metrics


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its kind, meaning, tags, and for histograms the bucket boundaries."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


_MS = (5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000)
_COUNT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
_TOKENS = (16, 64, 256, 1_024, 4_096, 16_384)

METRICS: dict[str, Metric] = {
    "consumer_lag_records": Metric("gauge", "records published and not yet durable", ("topic", "partition")),
    "records_total": Metric("counter", "records accounted for, by outcome", ("outcome",)),
    "dead_letters_total": Metric("counter", "records sent to the dead-letter topic", ("reason",)),
    "published_to_searchable_ms": Metric(
        "histogram", "from a record's Kafka timestamp to its being searchable, ms", (), _MS
    ),
    "ingest_batch_records": Metric("histogram", "records in one ingest batch", (), _COUNT),
    "embed_batch_chunks": Metric("histogram", "chunks in one embedding batch", (), _COUNT),
    "partitions_paused": Metric("gauge", "partitions paused by back-pressure", ("ingester",)),
    "ingest_stalls_total": Metric("counter", "consumers recreated by the stall watchdog", ("ingester",)),
    "index_chunks": Metric("gauge", "live chunks in a shard", ("shard",)),
    "index_tombstones": Metric("gauge", "dead chunks not yet compacted away", ("shard",)),
    "index_bytes": Metric("gauge", "bytes of a shard's index in memory", ("shard",)),
    "search_ms": Metric("histogram", "one search over all shards, ms", ("mode",), _MS),
    "partial_searches_total": Metric("counter", "searches that a shard's deadline cut short"),
    "session_resident": Metric("gauge", "sessions held in memory", ("replica",)),
    "session_bytes": Metric("gauge", "bytes of all session caches of a replica", ("replica",)),
    "session_lag_records": Metric(
        "gauge", "records that the furthest-behind session has yet to read", ("replica",)
    ),
    "snapshot_age_s": Metric("gauge", "age of the oldest session's newest snapshot, s", ("replica",)),
    "session_rebuilds_pending": Metric(
        "gauge", "sessions whose cache is being read anew after a correction or withdrawal", ("replica",)
    ),
    "session_retractions_total": Metric(
        "counter", "articles that sessions dropped because they were corrected or withdrawn", ("replica",)
    ),
    "session_rebuilds_total": Metric("counter", "caches read anew from articles", ("replica",)),
    "session_rebuild_tokens_total": Metric("counter", "tokens read anew for that", ("replica",)),
    "tokens_read_per_answer": Metric("histogram", "tokens read for one answer", ("route",), _TOKENS),
    "answer_ms": Metric("histogram", "from question to last token, ms", ("route",), _MS),
    "requests_total": Metric("counter", "HTTP requests, by route and status", ("route", "status")),
    "rejected_total": Metric("counter", "requests refused with 429", ("route",)),
}

_created: dict[str, Any] = {}


def metric(name: str) -> Any:
    """The Ray metric called `name`, created once per process (`.inc`, `.set` or `.observe`)."""
    if name not in _created:
        declared = METRICS[name]
        full_name = f"dysra_{name}"
        if declared.kind == "histogram":
            _created[name] = ray_metrics.Histogram(
                full_name,
                declared.help,
                boundaries=[float(b) for b in declared.boundaries],
                tag_keys=declared.tags,
            )
        else:
            kind = ray_metrics.Counter if declared.kind == "counter" else ray_metrics.Gauge
            _created[name] = kind(full_name, declared.help, tag_keys=declared.tags)
    return _created[name]
