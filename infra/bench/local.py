"""What the benches of the running system share: a broker of their own, Ray in this process, articles to publish."""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from actors.ingest_config import IngestConfig
from actors.ingest_job import IngestJob
from actors.ingest_spec import IngestSpec
from infra.bench.wire import Record, news, publish
from infra.signals import StoppedBySignal
from models.embed import EmbedderConfig
from pipeline.errors import DependencyUnreachable, DysraError
from pipeline.kafka import KafkaConfig, ensure_topic
from pipeline.publisher import Publisher, partition_of
from pipeline.store import StoreConfig

_RAY_ATTEMPTS = 3


class Local:
    """A folder, a broker in it, and Ray; topics and jobs are made as they are needed."""

    def __init__(self, folder: Path, bootstrap_servers: str, broker_pid: int) -> None:
        self.folder = folder
        self.broker_pid = broker_pid
        self._kafka = KafkaConfig(bootstrap_servers=bootstrap_servers, max_record_bytes=24_000_000)
        self._numbers = itertools.count()

    def topic(self, partitions: int = 4, **fields: Any) -> KafkaConfig:
        """A fresh topic with a group of its own."""
        name = f"bench-{uuid.uuid4().hex[:8]}-{next(self._numbers)}"
        config = replace(self._kafka, topic=name, group_id=f"group-{name}", partitions=partitions, **fields)
        ensure_topic(config)
        return config

    def spec(
        self,
        kafka: KafkaConfig,
        *,
        embedder: str = "none",
        store: dict[str, Any] | None = None,
        **ingest: Any,
    ) -> IngestSpec:
        """A job from a topic into a store of its own, without embedding unless one is named."""
        path = self.folder / f"store-{next(self._numbers)}"
        return IngestSpec(
            kafka=kafka,
            store=StoreConfig(path=path, **(store or {})),
            embedder=EmbedderConfig(model=embedder),
            ingest=IngestConfig(**ingest),
        )

    @contextlib.contextmanager
    def running(self, spec: IngestSpec) -> Iterator[IngestJob]:
        """The job, stopped and its store closed at the end however that comes."""
        job = IngestJob.start(spec)
        try:
            yield job
        finally:
            job.stop()
            job.client.close_store()


@contextlib.contextmanager
def local(*, with_ray: bool = True) -> Iterator[Local]:
    """A broker of its own on a free port and an embedded Ray; both are gone afterwards, SIGTERM included."""
    from infra import kafka

    with contextlib.ExitStack() as cleanup:
        signals = cleanup.enter_context(StoppedBySignal())
        folder = Path(cleanup.enter_context(TemporaryDirectory(prefix="dysra-bench-")))
        broker = kafka.start(folder / "kafka", 0)
        cleanup.callback(kafka.stop, folder / "kafka")
        if with_ray:
            import ray

            from infra.cluster import connect_ray

            cleanup.callback(ray.shutdown)
            for attempt in range(_RAY_ATTEMPTS):
                try:
                    connect_ray()
                    break
                # On a busy machine: the raylet ends itself if its agent has not told its port within 15 s.
                except DependencyUnreachable:
                    ray.shutdown()
                    if attempt == _RAY_ATTEMPTS - 1:
                        raise
            signals.listen()  # again: Ray sets a handler of its own, which ends the process at once
        cleanup.callback(signals.stopping)
        yield Local(folder, broker.bootstrap_servers, broker.pid)


def publish_steadily(
    kafka: KafkaConfig, records: Iterable[Record], rate: float, seconds: float
) -> tuple[int, float]:
    """Publish at a steady rate for some seconds; the number published, and the seconds that it fell behind."""
    count, behind = 0, 0.0
    begun = time.monotonic()
    with Publisher(kafka) as publisher:
        for key, value, stream in records:
            due = begun + count / rate
            now = time.monotonic()
            if due - begun >= seconds:
                break
            if now < due:
                time.sleep(due - now)
            behind = max(behind, now - due)
            publisher.publish_raw(
                key, value, partition=partition_of(stream, publisher.num_partitions),
                headers=[("article-id", key)] if value is None else [],
            )  # fmt: skip
            count += 1
        publisher.flush()
    return count, behind


def until(condition: Callable[[], bool], limit_s: float, what: str, interval_s: float = 0.05) -> None:
    """Wait until the condition holds; an error that says what did not come."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise DysraError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(interval_s)


def cpu_seconds() -> float:
    """Seconds of processor time of this process and all that it started and that still run."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


_ACTORS = {"Ingester": "ingesters", "ShardActor": "shards", "NearDuplicateActor": "near_duplicates"}
"""Parts by the class that Ray names in the title of an actor's process: alone, or after the actor's name and before
the method that it is in."""


def cpu_by_part() -> dict[str, float]:
    """Seconds of processor time of this process (`bench`) and its children, by what they do; the rest is `ray`."""
    return cpu_spent({}, cpu_by_process())


def cpu_by_process() -> dict[int, tuple[str, float]]:
    """What each process of ours does, and its seconds of processor time."""
    own = psutil.Process()
    found: dict[int, tuple[str, float]] = {}
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            title = (process.cmdline() or [process.name()])[0].rsplit("/", 1)[-1]
            times = process.cpu_times()
            part = "bench" if process.pid == own.pid else _part(title)
            found[process.pid] = (part, times.user + times.system)
    return found


def cpu_spent(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]]) -> dict[str, float]:
    """Seconds between two looks by what a process does at the second: one that waited for an actor became it."""
    total: dict[str, float] = defaultdict(float)
    for pid, (part, seconds) in after.items():
        total[part] += seconds - before.get(pid, ("", 0.0))[1]
    return dict(total)


def _part(title: str) -> str:
    if not title.startswith("ray::"):
        return "broker" if title.startswith("java") else "ray"
    names = title.removeprefix("ray::").replace(".", ":").split(":")
    return next((_ACTORS[name] for name in names if name in _ACTORS), "other_actors")


__all__ = [
    "Local",
    "Record",
    "cpu_by_part",
    "cpu_by_process",
    "cpu_seconds",
    "cpu_spent",
    "local",
    "news",
    "publish",
    "publish_steadily",
    "until",
]
