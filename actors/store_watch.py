"""Watches the actors that ingest needs beside its ingesters: starts again what died, and counts restarts."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from actors.ingest_config import IngestConfig
from actors.ingest_spec import IngestSpec
from actors.late_calls import LateCalls
from actors.near_duplicates import NearDuplicateActor, near_duplicates_name
from actors.remote import Outage, call, find_actor, named_actor
from actors.store_actors import shard_name, start_embedders, start_shard
from actors.store_client import StoreClient
from pipeline.errors import DependencyUnreachable, UsageError
from pipeline.log import get_logger

_ACTOR_CPUS = 0.01
_PING_S = 2.0


class Restarts:
    """Restarts by name within a window; too many end the job instead of looping for ever."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._times: dict[str, deque[float]] = {}

    def note(self, name: str, reason: str) -> int:
        """Count one restart of `name`; how many lie in the window. DependencyUnreachable above the limit."""
        now = time.monotonic()
        times = self._times.setdefault(name, deque())
        times.append(now)
        while times[0] < now - self._config.restart_window_s:
            times.popleft()
        if len(times) > self._config.max_restarts:
            raise DependencyUnreachable(
                f"{name} was restarted {len(times)} times within {self._config.restart_window_s:.0f} s "
                f"({reason}); look at the Ray logs of its node"
            )
        return len(times)


class StoreWatch:
    """Looks after the shards, the embedders and the near-duplicate index of one store."""

    def __init__(self, spec: IngestSpec, client: StoreClient, restarts: Restarts, *, detached: bool) -> None:
        self._spec, self._client, self._restarts, self._detached = spec, client, restarts, detached
        self._pids: dict[str, int] = {}
        self._late = LateCalls()
        self._log = get_logger(store=client.name)
        self.counts = {"shards": 0, "embedders": 0, "near_duplicates": 0}

    def look(self) -> None:
        """Start what has died for good, and count what Ray restarted by itself."""
        client, ingest = self._client, self._spec.ingest
        actors: dict[str, tuple[str, Any]] = {}
        for index in range(client.num_shards):
            name = shard_name(client.name, index)
            actor = find_actor(name)
            if actor is None:
                self._died("shards", name)
                self._pids.pop(name, None)
                actor = start_shard(
                    client.name,
                    client.config,
                    index,
                    client.embedder_identity,
                    client.dim,
                    ingest,
                    detached=self._detached,
                )
            actors[name] = "shards", actor
        embedders = start_embedders(client.name, self._spec.embedder, ingest, detached=self._detached)
        for index, actor in enumerate(embedders):
            actors[f"embedder {index}"] = "embedders", actor
        for index in range(ingest.near_duplicate_shards):
            actors[f"near-duplicates {index}"] = "near_duplicates", self._keeper(index)
        asked = {
            name: (kind, actor, actor.ping.remote())
            for name, (kind, actor) in actors.items()
            if not self._late.full(actor)
        }
        for name, (kind, actor, ref) in asked.items():
            try:
                pid = call(ref, _PING_S)
            except Outage:
                self._late.note(actor, ref)
                continue  # restarting, or loading what it holds; its callers wait with a limit of their own
            if self._pids.setdefault(name, pid) != pid:
                self._pids[name] = pid
                self._died(kind, name)

    def start_near_duplicates(self) -> None:
        """Start the near-duplicate index where it does not live; it ends with the job.

        Raises UsageError where a living one is divided otherwise: two jobs that do not ask the same keepers
        would not see each other's articles.
        """
        wanted = self._spec.ingest.near_duplicate_shards
        living = find_actor(near_duplicates_name(self._client.name))
        if living is not None:
            try:
                found = call(living.num_keepers.remote(), _PING_S)
            except Outage:
                found = wanted  # it ends with the job before, or restarts as it was
            if found != wanted:
                raise UsageError(
                    f"ingest.near_duplicate_shards is {wanted}, and another job fills {self._client.name} with "
                    f"{found}; give {found}, or stop that job first"
                )
        for index in range(wanted):
            self._keeper(index)

    def _keeper(self, index: int) -> Any:
        client, wanted = self._client, self._spec.ingest.near_duplicate_shards
        return named_actor(
            NearDuplicateActor,
            near_duplicates_name(client.name, index),
            self._spec.duplicates,
            [shard_name(client.name, shard) for shard in range(client.num_shards)],
            index,
            wanted,
            detached=False,
            num_cpus=_ACTOR_CPUS,
            max_restarts=-1,
        )

    def _died(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        times = self._restarts.note(name, "its process ended")
        self._log.warning("actor_restarted", actor=name, restarts=times)


__all__ = ["Restarts", "StoreWatch", "near_duplicates_name"]
