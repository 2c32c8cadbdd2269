"""An ingest job from the outside: start it, watch it, wait for it, stop it; figures that hold over any kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

import ray

from actors.coordinator import Coordinator, coordinator_name
from actors.delays import Delays
from actors.ingest_spec import IngestSpec
from actors.remote import NAMESPACE, Outage, call, end_actor, find_actor, first_line, persist
from actors.store_client import StoreClient, open_store
from pipeline.errors import DependencyUnreachable, UsageError
from pipeline.kafka import topic_partitions
from pipeline.log import get_logger
from pipeline.store import TopicLedger

Reason = Literal["idle", "limit", "stopped", "timeout"]
_ACTOR_CPUS = 0.01
_FINAL_FIGURES_S = 20.0
_ResultT = TypeVar("_ResultT")


class IngestJob:
    """A running job. It ends with the process that started it; on a cluster the store's actors stay."""

    def __init__(self, spec: IngestSpec, client: StoreClient, coordinator: Any, before: TopicLedger) -> None:
        self.spec = spec
        self.client = client
        self.coordinator = coordinator
        self._name = coordinator_name(client.name, spec.kafka.topic, spec.kafka.group_id)
        self._before = before
        self._embed_before = client.embed_stats()
        self._started = time.monotonic()
        self._first_polled: float | None = None
        self._last_progress: tuple[int, float] = (0, self._started)
        self._last: dict[str, Any] = {}
        self._final: dict[str, Any] | None = None

    @classmethod
    def start(cls, spec: IngestSpec, *, detached: bool = False) -> IngestJob:
        """Open the store and start ingesting `spec.kafka.topic`.

        `detached` leaves the store's actors running when this process ends (on a cluster). Raises UsageError for
        a topic that is not there, a store of another embedder, or where the same job runs already.
        """
        topic_partitions(spec.kafka, spec.kafka.topic)
        client = open_store(spec.store, spec.embedder, spec.search, spec.ingest, detached=detached)
        spec = replace(spec, store=client.config)
        name = coordinator_name(client.name, spec.kafka.topic, spec.kafka.group_id)
        before = client.ledger().get(spec.kafka.topic, TopicLedger())
        if find_actor(name) is not None:
            raise UsageError(
                f"topic {spec.kafka.topic} is being ingested into {spec.store.path} already; stop that job first"
            )
        coordinator = (
            ray.remote(Coordinator)
            .options(name=name, namespace=NAMESPACE, num_cpus=_ACTOR_CPUS, max_concurrency=8, max_restarts=-1)
            .remote(spec, client, detached)
        )
        return cls(spec, client, coordinator, before)

    def progress(self) -> dict[str, Any]:
        """The coordinator's figures now; raises the error that ended the job."""
        started = time.monotonic()
        while True:
            try:
                figures: dict[str, Any] = call(self.coordinator.figures.remote(), 10.0)
                break
            except Outage as error:
                if time.monotonic() - started > self.spec.ingest.outage_limit_s:
                    raise DependencyUnreachable(f"the ingest coordinator does not answer: {error}") from None
                time.sleep(0.2)
        if figures["failure"] is not None:
            raise figures["failure"]
        if self._first_polled is None and figures["polled"]:
            self._first_polled = started
        self._last = figures
        return figures

    def ledger(self, limit_s: float | None = None) -> TopicLedger:
        """Outcomes since the job started, from the shards' own ledgers."""
        after = self._asked(self.client.ledger, limit_s).get(self.spec.kafka.topic, TopicLedger())
        names = TopicLedger.__slots__
        return TopicLedger(**{name: getattr(after, name) - getattr(self._before, name) for name in names})

    def wait(
        self,
        *,
        until_idle_s: float | None = None,
        limit: int | None = None,
        timeout_s: float | None = None,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        interval_s: float = 0.25,
    ) -> Reason:
        """Return once the topic is silent for `until_idle_s` and all durable, `limit` records are accounted for,
        `stopped()` is true, or the time is over. `on_progress` gets `figures()` about every second."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        shown = 0.0
        while True:
            if stopped():
                return "stopped"
            progress = self.progress()
            if time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                figures = self.figures(progress)
                if limit is not None and figures["read"] >= limit:
                    return "limit"
                if on_progress is not None:
                    on_progress(figures)
            if until_idle_s is not None and progress["idle_s"] >= until_idle_s:
                return "idle"
            if deadline is not None and time.monotonic() > deadline:
                return "timeout"
            time.sleep(interval_s)

    def figures(self, progress: dict[str, Any] | None = None, limit_s: float | None = None) -> dict[str, Any]:
        """What the job did: read = stored + deleted + dead_lettered + duplicates, from the shards' ledgers."""
        progress = self._last if progress is None else progress
        done = self.ledger(limit_s)
        if done.read > self._last_progress[0]:
            self._last_progress = (done.read, time.monotonic())
        # From the first record to the last that became durable: neither the start nor the silence at the end.
        seconds = max(
            self._last_progress[1] - (self._first_polled or self._started), self.spec.ingest.health_interval_s
        )
        embed = self._asked(self.client.embed_stats, limit_s)
        return {
            "topic": self.spec.kafka.topic,
            "read": done.read,
            "stored": done.stored,
            "deleted": done.deleted,
            "dead_lettered": done.dead_lettered,
            "duplicates": done.duplicates,
            "duplicates_linked": done.linked,
            "committed": {str(p): offset for p, offset in sorted(progress.get("committed", {}).items())},
            "lag": sum(progress.get("lag", {}).values()),
            "articles_per_s": round(done.read / seconds, 1),
            "chunks": progress.get("chunks", 0),
            "embed_seconds": round(max(0.0, embed["busy_s"] - self._embed_before["busy_s"]), 2),
            "published_to_searchable_ms": Delays(progress.get("delays", {})).to_dict(),
            "pauses": progress.get("pauses", 0),
            "resumes": progress.get("resumes", 0),
            "stalls": progress.get("stalls", 0),
            "records_expired": progress.get("expired", 0),
            "restarts": progress.get("restarts", {}),
            "embedder": self.client.embedder_identity,
            "ledger_total": self._asked(self.client.ledger, limit_s).total().to_dict(),
            "seconds": round(time.monotonic() - self._started, 2),
        }

    def _asked(self, ask: Callable[[], _ResultT], limit_s: float | None) -> _ResultT:
        """A figure from the store's actors, waited for while one of them restarts."""
        config = self.spec.ingest
        return persist(
            ask,
            "the store",
            first_s=config.retry_first_s,
            max_s=config.retry_max_s,
            limit_s=config.outage_limit_s if limit_s is None else limit_s,
            stopped=lambda: False,
        )

    def stop(self) -> dict[str, Any]:
        """Stop reading, finish or leave what is under way, commit; the final figures. Safe to call twice."""
        if self._final is None:
            try:
                self._last = call(self.coordinator.stop.remote(), self.spec.ingest.stop_grace_s + 15.0)
            except Outage as error:
                get_logger(topic=self.spec.kafka.topic).warning("coordinator_lost", error=first_line(error))
            finally:
                end_actor(self._name)
            self._final = self.figures(limit_s=_FINAL_FIGURES_S)
        return self._final
