"""The store's actors: their names, how they are started, and how they are ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray

from actors.embedder import CONCURRENCY as EMBEDDER_CONCURRENCY
from actors.embedder import NUM_WAITING_CALLS, EmbedderActor
from actors.ingest_config import IngestConfig
from actors.remote import Outage, call, end_actor, find_actor, named_actor, store_name
from actors.shard import CONCURRENCY, ShardActor
from models.embed import EmbedderConfig
from pipeline.log import get_logger
from pipeline.store import StoreConfig, StoreMismatch

_EMBEDDER_START_S = 900.0
_SHARD_START_S = 300.0
_ACTOR_CPUS = 0.01
_HEAD = "node:__internal_head__"
"""The resource that only a cluster's head has: on another node a shard would find its folder empty."""


def shard_name(store: str, shard: int) -> str:
    """The actor name of a shard."""
    return f"{store}:shard:{shard}"


def embedder_name(store: str, index: int) -> str:
    """The actor name of an embedder."""
    return f"{store}:embedder:{index}"


def open_actors(
    store: StoreConfig, embedder: EmbedderConfig, ingest: IngestConfig, *, detached: bool
) -> tuple[str, StoreConfig, dict[str, Any]]:
    """Find or start a store's embedders and shards, all ready on return: name, absolute config, embedder facts."""
    store = replace(store, path=store.path.expanduser().absolute())
    name = store_name(store.path)
    names = [embedder_name(name, index) for index in range(ingest.num_embedders)]
    names += [shard_name(name, index) for index in range(store.num_shards)]
    ours = [actor for actor in names if find_actor(actor) is None]
    try:
        return name, store, _open(name, store, embedder, ingest, detached=detached)
    except BaseException:
        for actor in ours:  # one that could not open must not keep the name
            end_actor(actor)
        raise


def _open(
    name: str, store: StoreConfig, embedder: EmbedderConfig, ingest: IngestConfig, *, detached: bool
) -> dict[str, Any]:
    embedders = start_embedders(name, embedder, ingest, detached=detached)
    described = [call(actor.describe.remote(), _EMBEDDER_START_S) for actor in embedders]
    for one in described:
        if (one["model"], one["precision"]) != (embedder.model, embedder.precision):
            raise StoreMismatch(
                f"the store {store.path} runs with embedder {one['identity']} ({one['model']}), and "
                f"{embedder.model} was asked for; use the same embedder, or another store folder"
            )
    facts: dict[str, Any] = described[0]
    shards = [
        start_shard(name, store, index, facts["identity"], facts["dim"], ingest, detached=detached)
        for index in range(store.num_shards)
    ]
    for shard in shards:
        call(shard.ping.remote(), _SHARD_START_S)
    return facts


def close_actors(name: str, num_shards: int, num_embedders: int) -> None:
    """Close every shard's files and end the store's actors."""
    for shard in range(num_shards):
        actor = find_actor(shard_name(name, shard))
        if actor is not None:
            try:
                call(actor.close.remote(), 30.0)
            except Outage:
                get_logger(store=name).warning("shard_not_closed", shard_id=shard)
            end_actor(shard_name(name, shard))
    for index in range(num_embedders):
        end_actor(embedder_name(name, index))


def start_embedders(name: str, config: EmbedderConfig, ingest: IngestConfig, *, detached: bool) -> list[Any]:
    """The store's embedder actors, started where they do not live yet; on a GPU where there is one."""
    gpus = ingest.gpus_per_embedder if config.device != "cpu" and _num_gpus() else 0
    return [
        named_actor(
            EmbedderActor,
            embedder_name(name, index),
            config,
            detached=detached,
            num_cpus=_ACTOR_CPUS,
            num_gpus=gpus,
            max_concurrency=NUM_WAITING_CALLS,
            concurrency_groups=EMBEDDER_CONCURRENCY,
            max_restarts=-1,
        )
        for index in range(ingest.num_embedders)
    ]


def _num_gpus() -> float:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0.0)


def start_shard(
    name: str,
    config: StoreConfig,
    index: int,
    embedder_identity: str,
    dim: int,
    ingest: IngestConfig,
    *,
    detached: bool,
) -> Any:
    """A shard's actor, started where it does not live yet; it reloads itself from disk after a kill."""
    return named_actor(
        ShardActor,
        shard_name(name, index),
        config,
        index,
        embedder_identity,
        dim,
        ingest.maintain_interval_s,
        detached=detached,
        num_cpus=_ACTOR_CPUS,
        concurrency_groups=CONCURRENCY,
        resources={_HEAD: _ACTOR_CPUS} if ingest.shard_placement == "head" else {},
        max_restarts=-1,
    )
