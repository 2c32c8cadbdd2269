"""Grafana dashboard and Prometheus alerts, built from the declared metrics so that none is forgotten.

Run `python -m infra.dashboards` to write `grafana.json` and `alerts.yaml` anew; a test compares them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from actors.metrics import METRICS, Metric

FOLDER = Path(__file__).parent
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3

ALERTS: dict[str, tuple[str, str, str]] = {
    "DysraLagGrows": (
        "sum(ray_dysra_consumer_lag_records) > 10000 and deriv(ray_dysra_consumer_lag_records[10m]) > 0",
        "10m",
        "ingest falls behind the topic: add ingesters or shards, or look at `dysra status`",
    ),
    "DysraDeadLetters": (
        "rate(ray_dysra_dead_letters_total[10m]) > 1",
        "10m",
        "many records cannot be read: `dysra dlq list` shows them with their reasons",
    ),
    "DysraSlowToSearchable": (
        "histogram_quantile(0.99, sum by (le) "
        "(rate(ray_dysra_published_to_searchable_ms_bucket[5m]))) > 10000",
        "10m",
        "articles become searchable late: embedding or a shard is the bottleneck",
    ),
    "DysraPartialSearches": (
        "rate(ray_dysra_partial_searches_total[5m]) > 0.1",
        "5m",
        "a shard misses its deadline: answers are marked partial",
    ),
    "DysraSnapshotsOld": (
        "max(ray_dysra_snapshot_age_s) > 300",
        "5m",
        "session snapshots are not written: check the snapshot folder's disk",
    ),
}


def grafana() -> dict[str, Any]:
    """The dashboard: one panel a metric, histograms as their median and 99th percentile."""
    panels = [_panel(index, name, metric) for index, (name, metric) in enumerate(METRICS.items())]
    return {
        "title": "DySRA",
        "uid": "dysra",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["dysra", "ray"],
        "panels": panels,
    }


def alerts() -> dict[str, Any]:
    """The Prometheus rule group."""
    rules = [
        {"alert": name, "expr": expression, "for": wait, "labels": {"severity": "warning"},
         "annotations": {"summary": summary}}
        for name, (expression, wait, summary) in ALERTS.items()
    ]  # fmt: skip
    return {"groups": [{"name": "dysra", "rules": rules}]}


def rendered() -> dict[str, str]:
    """File name to content of what is deployed."""
    return {
        "grafana.json": json.dumps(grafana(), indent=1) + "\n",
        "alerts.yaml": yaml.safe_dump(alerts(), sort_keys=False, width=110),
    }


def _panel(index: int, name: str, metric: Metric) -> dict[str, Any]:
    full = f"ray_dysra_{name}"
    by = ", ".join(metric.tags)
    if metric.kind == "counter":
        queries = {by or "rate": f"sum by ({by}) (rate({full}[1m]))"}
    elif metric.kind == "gauge":
        queries = {by or "value": f"sum by ({by}) ({full})"}
    else:
        queries = {
            f"p{quantile * 100:.0f}": f"histogram_quantile({quantile}, sum by (le) (rate({full}_bucket[5m])))"
            for quantile in (0.5, 0.99)
        }
    legend = " ".join(f"{{{{{tag}}}}}" for tag in metric.tags)
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": name,
        "description": metric.help,
        "gridPos": {
            "x": index % _COLUMNS * _WIDTH, "y": index // _COLUMNS * _HEIGHT, "w": _WIDTH, "h": _HEIGHT,
        },
        "targets": [
            {"refId": chr(65 + number), "expr": query,
             "legendFormat": label if metric.kind == "histogram" else legend}
            for number, (label, query) in enumerate(queries.items())
        ],
    }  # fmt: skip
