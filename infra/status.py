"""One look at a running system: each part is asked with a time limit, and a silent one does not hide the rest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from infra.cluster import NAMESPACE, connect_ray, running_cluster
from infra.config import Config
from pipeline.errors import DependencyUnreachable, DysraError

_BROKER_TIMEOUT_S = 3.0
_HTTP_TIMEOUT_S = 5.0
_ACTOR_TIMEOUT_S = 10.0
_SHARD_MARK = ":shard:"

Part = dict[str, Any]


def look(config: Config, *, url: str, key: str | None, address: str | None) -> dict[str, Part]:
    """Broker and lag, cluster, store, sessions and models. Raises DependencyUnreachable if nothing answers."""
    parts = {
        "broker": _asked(lambda: _broker(config)),
        "cluster": _asked(lambda: _cluster(address)),
        "store": _asked(_store),
        "sessions": _asked(lambda: _sessions(url, key)),
        "models": _asked(lambda: _models(config, url, key)),
    }
    if not any(parts[name]["reachable"] for name in ("broker", "cluster", "sessions")):
        reasons = "; ".join(str(parts[name]["summary"]) for name in ("broker", "cluster", "sessions"))
        error = DependencyUnreachable(f"nothing of DySRA answers: {reasons}")
        error.figures = parts  # type: ignore[attr-defined]
        raise error
    return parts


def _asked(question: Callable[[], Part]) -> Part:
    try:
        return {"reachable": True, **question()}
    except (DysraError, httpx.HTTPError, OSError) as error:
        return {"reachable": False, "summary": str(error).splitlines()[0] if str(error) else repr(error)}


def _broker(config: Config) -> Part:
    from pipeline.topics import group_lag, topic_offsets

    kafka = dataclasses.replace(config.kafka, connect_timeout_s=_BROKER_TIMEOUT_S)
    offsets = topic_offsets(kafka, kafka.topic)
    if not offsets:
        return {
            "summary": f"{kafka.bootstrap_servers} answers; topic {kafka.topic} does not exist",
            "topic": kafka.topic,
        }
    lag = group_lag(kafka)
    behind = sum(
        end - offsets[p][0] if lag.get(p) is None else int(lag[p] or 0) for p, (_, end) in offsets.items()
    )
    dead = sum(end - start for start, end in topic_offsets(kafka, kafka.dead_letter_topic).values())
    records = sum(end - start for start, end in offsets.values())
    return {
        "summary": f"topic {kafka.topic}: {records:,} records, {behind:,} not yet committed by {kafka.group_id}, "
        f"{dead:,} dead letters",
        "topic": kafka.topic,
        "records": records,
        "lag": behind,
        "lag_by_partition": {str(partition): waiting for partition, waiting in lag.items()},
        "committed": {
            str(p): end - (lag.get(p) or 0) for p, (_, end) in offsets.items() if lag.get(p) is not None
        },
        "dead_letters": dead,
    }


def _cluster(address: str | None) -> Part:
    where = address or os.environ.get("RAY_ADDRESS") or running_cluster()
    if not where:
        raise DependencyUnreachable(
            "no Ray cluster runs here (`ray start --head`), and RAY_ADDRESS is not set"
        )
    connect_ray(None if where.startswith("http") else where)
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    names = _actor_names()
    return {
        "summary": f"{where}: {len(nodes)} nodes, {resources.get('CPU', 0):g} CPUs, "
        f"{resources.get('GPU', 0):g} GPUs, {len(names)} named actors of ours",
        "nodes": len(nodes),
        "actors": names,
    }


def _actor_names() -> list[str]:
    from ray.util import list_named_actors

    return sorted(a["name"] for a in list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE)


def _store() -> Part:
    import ray

    if not ray.is_initialized():
        raise DependencyUnreachable("the store's shards live in the Ray cluster, which does not answer")
    names = [name for name in _actor_names() if _SHARD_MARK in name]
    if not names:
        raise DependencyUnreachable("no shard runs; `dysra ingest` or `dysra serve` starts them")
    shards, lines = [], []
    for name in names:
        try:
            handle = ray.get_actor(name, namespace=NAMESPACE)
            asked: Any = handle.stats.remote()
            row: Part = {"name": name, **ray.get(asked, timeout=_ACTOR_TIMEOUT_S)}
            lines.append(
                f"{name}: {row['live_articles']:,} articles, {row['live_chunks']:,} chunks, "
                f"{row['tombstones']:,} tombstones, newest {_day(row['newest_ms'])}"
            )
        except (ray.exceptions.RayError, ValueError) as error:
            row = {"name": name, "error": str(error).splitlines()[0]}
            lines.append(f"{name}: does not answer ({row['error']})")
        shards.append(row)
    alive = [row for row in shards if "error" not in row]
    articles = sum(int(row["live_articles"]) for row in alive)
    return {
        "summary": f"{len(alive)} of {len(shards)} shards answer, {articles:,} articles",
        "lines": lines,
        "shards": shards,
    }


def _sessions(url: str, key: str | None) -> Part:
    rows = _get(url, "/v1/streams", key)["streams"]
    lines = [
        f"{row['stream']}: {row['state']}"
        + (
            f", {row['tokens_seen']:,} tokens read, {row['lag']['records']:,} records behind"
            if "lag" in row
            else ""
        )
        for row in rows
    ]
    return {"summary": f"{len(rows)} sessions at {url}", "lines": lines, "streams": rows}


def _models(config: Config, url: str, key: str | None) -> Part:
    reader = _get(url, "/v1/models", key)["reader"]
    name = reader.get("model") if isinstance(reader, dict) else reader
    return {"summary": f"reader {name}, embedder {config.embedder.model}", "reader": reader}


def _get(url: str, path: str, key: str | None) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.get(url + path, headers=headers, timeout=_HTTP_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DependencyUnreachable(
            f"no sessions answer at {url} ({error}); start them with `dysra serve`"
        ) from None
    if response.status_code in (401, 403):
        raise DependencyUnreachable(f"{url} wants an API key: give --key or set DYSRA_API_KEY")
    if response.status_code != httpx.codes.OK:
        raise DependencyUnreachable(f"{url}{path} answered {response.status_code}")
    body: dict[str, Any] = response.json()
    return body


def _day(ms: int | None) -> str:
    return "-" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
