"""The coordinator of an ingest job: partitions to ingesters under epochs, restarts, lag, and when all is idle."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from actors.delays import Delays
from actors.ingest import Ingester, with_broker
from actors.ingest_spec import Assignment, IngestSpec
from actors.remote import Stopped, backoff, call, first_line, given_up, log_in_actor
from actors.store_client import StoreClient
from actors.store_watch import Restarts, StoreWatch
from pipeline.errors import DependencyUnreachable, DysraError
from pipeline.kafka import ensure_topic, topic_partitions
from pipeline.log import get_logger
from pipeline.store import OffsetGap, StaleEpoch
from pipeline.topics import topic_offsets

_ACTOR_CPUS = 0.01
_FIGURES_TIMEOUT_S = 10.0
_NEW_PARTITIONS_S = 60.0
_BUSY_LOOK_S = 5.0
_NODE_LOOK_S = 5.0
_START_S = 120.0
"""A new ingester may need so long for its first word, however short `silent_limit_s` is: on a crowded machine one
that was replaced before it had started would be followed by others that do not start either."""


def coordinator_name(store: str, topic: str, group_id: str) -> str:
    """The actor name of the coordinator that fills a store from a topic."""
    return f"{store}:ingest:{topic}:{group_id}"


@dataclass(slots=True)
class _Worker:
    """One ingester's slot: its actor comes and goes, its partitions stay."""

    index: int
    partitions: list[int]
    actor: Any = None
    figures: dict[str, Any] = field(default_factory=dict)
    seen_at: float = 0.0
    answered: bool = False
    start_at: float = 0.0

    def silent_too_long(self, limit_s: float) -> bool:
        """Whether its actor has said nothing for longer than it may."""
        return time.monotonic() - self.seen_at >= (limit_s if self.answered else max(limit_s, _START_S))


class Coordinator:
    """The actor class: starts at once, supervises in a thread, and answers for the whole job."""

    def __init__(self, spec: IngestSpec, client: StoreClient, detached: bool) -> None:
        log_in_actor()
        self._spec, self._client = spec, client
        self._config = spec.ingest
        self._log = get_logger(topic=spec.kafka.topic)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._workers: list[_Worker] = []
        self._epoch = 0
        self._failure: BaseException | None = None
        self._ends: dict[int, int] = {}
        self._idle_since: float | None = None
        self._looked_at = 0.0
        self._last: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._past = Delays()
        self._totals = {"polled": 0, "pauses": 0, "resumes": 0, "chunks": 0, "stalls": 0, "expired": 0}
        self._restarts = Restarts(spec.ingest)
        self._watch = StoreWatch(spec, client, self._restarts, detached=detached)
        self._lost_ingesters = 0
        self._thread = threading.Thread(target=self._supervise, name="supervise", daemon=True)
        self._thread.start()

    @ray.method(enable_task_events=False)
    def figures(self) -> dict[str, Any]:
        """The job's progress; `failure` holds the error that ended it, `idle_s` how long nothing was left to do."""
        return self._progress()

    def _progress(self) -> dict[str, Any]:
        with self._lock:
            delays = Delays(dict(self._past.counts))
            totals = dict(self._totals)
            durable, committed = self._offsets()
            inflight, paused = 0, 0
            for worker in self._workers:
                delays.merge(worker.figures.get("delays", {}))
                for name in totals:
                    totals[name] += worker.figures.get(name, 0)
                inflight += worker.figures.get("inflight_records", 0)
                paused += bool(worker.figures.get("paused"))
            lag = {p: max(0, end - durable[p]) for p, end in self._ends.items() if p in durable}
            return {
                **totals,
                "pid": os.getpid(),
                "ingester_pids": [worker.figures.get("pid") for worker in self._workers],
                "partitions": sorted(p for worker in self._workers for p in worker.partitions),
                "durable": durable,
                "committed": committed,
                "lag": lag,
                "inflight_records": inflight,
                "paused_ingesters": paused,
                "delays": dict(delays.counts),
                "restarts": {"ingesters": self._lost_ingesters, **self._watch.counts},
                "idle_s": 0.0 if self._idle_since is None else time.monotonic() - self._idle_since,
                "failure": self._failure,
            }

    def stop(self) -> dict[str, Any]:
        """Stop every ingester within its grace; the last figures."""
        self._stopping.set()
        self._thread.join(timeout=2.0)
        with self._lock:
            live = [
                (worker, worker.actor.stop.remote()) for worker in self._workers if worker.actor is not None
            ]
        for worker, ref in live:
            try:
                figures = call(ref, self._config.stop_grace_s + 10.0)
                with self._lock:
                    worker.figures = figures
            except RayError as error:
                self._log.warning("ingester_not_stopped", ingester=worker.index, error=first_line(error))
            ray.kill(worker.actor)
        # An append that was under way is through before the fence is, and none comes after it: figures are final.
        try:
            for worker, _ in live:
                self._fence(worker)
        except (RayError, DependencyUnreachable) as error:
            self._log.warning("store_not_fenced", error=first_line(error))
        return self._progress()

    # -- supervision

    def _supervise(self) -> None:
        try:
            self._begin()
            next_partitions = time.monotonic() + _NEW_PARTITIONS_S
            next_node = 0.0
            while not self._stopping.is_set():
                if time.monotonic() >= next_node:
                    next_node = time.monotonic() + _NODE_LOOK_S
                    self._end_if_given_up()
                self._watch.look()
                for worker in self._workers:
                    if worker.actor is None and time.monotonic() >= worker.start_at:
                        self._start(worker)
                    elif worker.actor is not None:
                        self._look_at(worker)
                self._look_at_topic()
                if time.monotonic() >= next_partitions:
                    next_partitions = time.monotonic() + _NEW_PARTITIONS_S
                    self._add_partitions()
                self._stopping.wait(self._config.health_interval_s)
        except Stopped:
            pass
        except BaseException as error:
            self._fail(error)

    def _begin(self) -> None:
        spec = self._spec

        def look() -> list[int]:
            found = topic_partitions(spec.kafka, spec.kafka.topic)
            ensure_topic(spec.kafka, spec.kafka.dead_letter_topic, partitions=len(found))
            return found

        # One that Ray starts again may meet an outage that its ingesters would have waited for.
        partitions = with_broker(look, spec, self._stopping.is_set, self._log)
        count = min(self._config.num_ingesters, len(partitions))
        self._watch.start_near_duplicates()
        self._workers = [_Worker(index, partitions[index::count]) for index in range(count)]

    def _end_if_given_up(self) -> None:
        """End this process where another coordinator runs in its place: both would take the partitions from each
        other, epoch over epoch, and neither's ingesters would get anywhere."""
        if given_up():
            self._log.error("given_up", node=ray.get_runtime_context().get_node_id())
            os._exit(1)

    def _start(self, worker: _Worker) -> None:
        """Give a worker's partitions to a new ingester, under a new epoch, from the store's own offsets."""
        self._end_if_given_up()
        topic = self._spec.kafka.topic
        try:
            before = self._client.offsets()
            self._fence(worker)
            durable = tuple(
                {p: offset for (name, p), offset in after.items() if name == topic and (topic, p) in first}
                for first, after in zip(before, self._client.offsets(), strict=True)
            )
        except (RayError, DependencyUnreachable) as error:
            self._log.warning("store_not_ready", error=first_line(error))
            worker.start_at = time.monotonic() + self._config.health_interval_s
            return
        offsets = {
            partition: min((known[partition] for known in durable), default=0)
            if all(partition in known for known in durable)
            else None
            for partition in worker.partitions
        }
        assignment = Assignment(ingester=worker.index, epoch=self._epoch, offsets=offsets, durable=durable)
        now = time.monotonic()
        with self._lock:
            worker.actor = (
                ray.remote(Ingester)
                .options(num_cpus=_ACTOR_CPUS, max_concurrency=4, max_restarts=0, enable_task_events=False)
                .remote(self._spec, self._client, assignment)
            )
            worker.seen_at, worker.answered = now, False
        self._log.info(
            "ingester_started", ingester=worker.index, epoch=self._epoch, partitions=worker.partitions
        )

    def _fence(self, worker: _Worker) -> None:
        """Find an epoch above all that the shards have seen, and make them refuse older ones from now on."""
        places = [(self._spec.kafka.topic, partition) for partition in worker.partitions]
        step = 1
        self._epoch = max(self._epoch + 1, int(time.time() * 1_000))
        while True:
            try:
                self._client.fence(places, self._epoch)
                return
            except StaleEpoch:  # the clock went back since the last epoch was drawn
                step *= 2
                self._epoch += step * 1_000

    def _look_at(self, worker: _Worker) -> None:
        try:
            figures = call(
                worker.actor.figures.remote(), min(_FIGURES_TIMEOUT_S, self._config.silent_limit_s)
            )
        except RayError as error:
            timed_out = not isinstance(error, ray.exceptions.RayActorError)
            if timed_out and not worker.silent_too_long(self._config.silent_limit_s):
                return
            self._replace(worker, error)
            return
        failure = figures["failure"]
        with self._lock:
            worker.figures, worker.seen_at, worker.answered = figures, time.monotonic(), True
        if failure is not None and not self._stopping.is_set():
            if isinstance(failure, DysraError | ValueError) and not isinstance(
                failure, StaleEpoch | OffsetGap
            ):
                raise failure
            self._replace(worker, failure)

    def _replace(self, worker: _Worker, error: BaseException) -> None:
        """Let go of a dead ingester and plan the next one; raises where it dies again and again."""
        if self._stopping.is_set():
            return
        self._lost_ingesters += 1
        self._log.warning("ingester_lost", ingester=worker.index, error=first_line(error))
        ray.kill(worker.actor)
        with self._lock:
            self._past.merge(worker.figures.get("delays", {}))
            for name in self._totals:
                self._totals[name] += worker.figures.get(name, 0)
            kept = {name: worker.figures.get(name, {}) for name in ("durable", "committed")}
            worker.actor, worker.figures = None, kept
        tries = self._restarts.note(f"ingester {worker.index}", first_line(error))
        worker.start_at = time.monotonic() + self._wait(tries)

    def _wait(self, tries: int) -> float:
        waits = backoff(self._config.retry_first_s, self._config.retry_max_s)
        for _ in range(max(0, tries - 1)):
            next(waits)
        return next(waits)

    def _look_at_topic(self) -> None:
        """Note the topic's ends, and since when everything up to them has been durable."""
        now = time.monotonic()
        busy = any(
            w.figures.get("inflight_records") or any(w.figures.get("lag", {}).values()) for w in self._workers
        )
        if busy and now - self._looked_at < _BUSY_LOOK_S:
            self._idle_since = None
            return
        self._looked_at = now
        try:
            ends = {p: end for p, (_, end) in topic_offsets(self._spec.kafka, self._spec.kafka.topic).items()}
        except DependencyUnreachable as error:
            self._log.warning("broker_lost", error=first_line(error))
            return
        with self._lock:
            durable, _ = self._offsets()
            inflight = sum(worker.figures.get("inflight_records", 0) for worker in self._workers)
            self._ends = ends
            settled = (
                bool(ends) and not inflight and all(durable.get(p, -1) >= end for p, end in ends.items())
            )
            if not settled or self._last != (ends, durable):
                self._idle_since = time.monotonic() if settled else None
            self._last = (ends, durable)

    def _add_partitions(self) -> None:
        """Give partitions that the topic has gained to the ingesters with the fewest."""
        known = {p for worker in self._workers for p in worker.partitions}
        try:
            found = topic_partitions(self._spec.kafka, self._spec.kafka.topic)
        except DependencyUnreachable:
            return
        for partition in found:
            if partition not in known:
                worker = min(self._workers, key=lambda one: len(one.partitions))
                worker.partitions.append(partition)
                if worker.actor is not None:
                    call(worker.actor.stop.remote(), self._config.stop_grace_s + 10.0)
                    self._replace(worker, RuntimeError(f"partition {partition} was added"))

    def _offsets(self) -> tuple[dict[int, int], dict[int, int]]:
        durable: dict[int, int] = {}
        committed: dict[int, int] = {}
        for worker in self._workers:
            durable.update(worker.figures.get("durable", {}))
            committed.update(worker.figures.get("committed", {}))
        return durable, committed

    def _fail(self, error: BaseException) -> None:
        self._log.error("ingest_failed", error=first_line(error))
        with self._lock:
            self._failure = error
            actors = [worker.actor for worker in self._workers if worker.actor is not None]
        for actor in actors:
            actor.stop.remote()
