"""Sessions served over HTTP in the cluster of faults, and their twins in this process, which nothing disturbs."""

from __future__ import annotations

import math
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

from infra.bench.faults.check import Differences
from infra.bench.faults.ray_cluster import RayCluster, free_port
from infra.bench.faults.tiny_model import save_tiny_model
from pipeline.article import Article
from pipeline.kafka import KafkaConfig, ensure_topic
from pipeline.publisher import Publisher
from pipeline.source import RecordSource
from pipeline.store import StoreConfig

STREAMS = ("desk-a", "desk-b")
_HEALTH_TIMEOUT_S = 4.0
"""Three such in a row, and Serve replaces the replica. The default's are 100 s; a crowded machine needs some."""
_LIMIT_S = 240.0
_START = datetime(2024, 3, 1, tzinfo=UTC)
_TENANT = "faults"


class Served:
    """A Serve deployment with one session a stream, its own topic, and a twin for each session."""

    def __init__(self, folder: Path, bootstrap_servers: str, store: StoreConfig) -> None:
        from actors.keys import new_key
        from actors.serve_app import deploy
        from actors.serve_config import ServeConfig
        from actors.serve_settings import ServeSettings
        from models.cache import CacheConfig
        from models.embed import EmbedderConfig
        from models.hf import HfBackbone, HfConfig
        from pipeline.article import ArticleLimits
        from pipeline.session import SessionConfig
        from pipeline.session.session import Session, SessionParts
        from pipeline.session.state import SessionKey

        self.due = math.inf
        """Waits end by then, on the monotonic clock."""
        port = free_port()
        self._sessions = folder / "sessions"
        self._kafka = KafkaConfig(
            bootstrap_servers=bootstrap_servers, topic=f"faults-sessions-{port}", partitions=1
        )
        ensure_topic(self._kafka)
        key = new_key(folder / "keys.json", _TENANT)
        settings = ServeSettings(
            kafka=self._kafka,
            store=store,
            embedder=EmbedderConfig(model="static"),
            backbone=HfConfig(model=str(save_tiny_model(folder / "tiny")), device="cpu", threads=1),
            cache=CacheConfig(sinks=2, ring=64, read_block=16, evict_block=16, rank=4, latent_blocks=3),
            session=SessionConfig(start="earliest", snapshot_every_s=0.3, max_article_tokens=64),
            articles=ArticleLimits(),
            serve=ServeConfig(
                port=port,
                sessions_dir=self._sessions,
                keys_file=folder / "keys.json",
                replicas=1,
                slots=8,
                cpus_per_replica=0.5,
                answer_timeout_s=20,  # as long as the client waits
                drain_s=30,
                health_timeout_s=_HEALTH_TIMEOUT_S,
            ),
        )
        self._deployed = deploy(settings, timeout_s=240.0, detached_store=True)
        self._client = httpx.Client(
            base_url=self._deployed.url, headers={"Authorization": f"Bearer {key}"}, timeout=20.0
        )
        parts = SessionParts(
            config=settings.session,
            cache=settings.cache,
            limits=settings.articles,
            backbone=HfBackbone.load(settings.backbone),
        )
        self._twins = {stream: Session.new(SessionKey(_TENANT, stream), parts) for stream in STREAMS}
        self._read_to = 0
        self._published = 0
        self.publish(4)
        for stream in STREAMS:
            self._wait(lambda stream=stream: self._client.post(f"/v1/streams/{stream}"), "a session")

    def publish(self, count: int) -> None:
        """Articles for every stream, a repeat now and then."""
        with Publisher(self._kafka) as publisher:
            for _ in range(count):
                number = self._published
                self._published += 1
                for stream in STREAMS:
                    article = _article(stream, number)
                    publisher.publish(article)
                    if number % 5 == 4:
                        publisher.publish(article)

    def replica_pid(self) -> int:
        """The process that holds the sessions."""
        return int(self._page(STREAMS[0])["replica"]["pid"])

    @property
    def patience_s(self) -> float:
        """From one health check to the next, where a replica answers none."""
        return 1.5 * _HEALTH_TIMEOUT_S

    def lose_ranks(self) -> None:
        """Take the locks on ranks from their holders, as a network disk does that has lost sight of a host."""
        for path in (self._sessions / ".ranks").glob("[0-9]*"):
            path.unlink(missing_ok=True)

    def wait_for_other(self, pid: int) -> int:
        """The process that holds the sessions once it is not `pid` any more."""

        def ask() -> int | None:
            # asked as a client does that wants an answer: where the sessions rest on disk, this opens them
            pages = [self._client.post(f"/v1/streams/{stream}") for stream in STREAMS]
            return (
                now if all(page.is_success for page in pages) and (now := self.replica_pid()) != pid else None
            )

        return int(self._wait(ask, f"another process than {pid} to hold the sessions"))

    def owners(self) -> dict[str, str]:
        """Epoch and owner in the lease of each session, by its folder's name."""
        leases = {path: orjson.loads(path.read_bytes()) for path in self._sessions.glob("*/*/lease.json")}
        return {path.parent.name: f"{lease['epoch']} {lease['owner']}" for path, lease in leases.items()}

    def proxy_pid(self, cluster: RayCluster) -> int:
        """The process that takes HTTP requests."""
        for process in cluster.processes():
            try:
                if "ProxyActor" in " ".join(process.cmdline()):
                    return int(process.pid)
            except psutil.NoSuchProcess:
                continue
        raise TimeoutError("no Serve proxy runs")

    def settle(self) -> None:
        """Return once every session has read to the end and can be asked."""
        for stream in STREAMS:
            self._wait(lambda stream=stream: self._at_the_end(stream), f"session {stream} to read to the end")

    def check(self) -> Differences:
        """The sessions that do not have the bytes of their twins."""
        with RecordSource(self._kafka, {0: self._read_to}) as source:
            end = source.end_offsets()[0]
            deadline = min(time.monotonic() + _LIMIT_S, self.due)
            while source.positions()[0] < end and time.monotonic() < deadline:
                records = source.poll(0.2)
                for twin in self._twins.values():
                    twin.read(records)
            self._read_to = source.positions()[0]
        found = Differences()
        for stream, twin in self._twins.items():
            page = self._page_at(stream, self._read_to)
            if page["digest"] != twin.digest():
                found.add("sessions_differing", f"{stream} after {page['articles_read']} articles")
        return found

    def close(self) -> None:
        """Stop serving."""
        from actors.serve_app import shutdown

        self._client.close()
        shutdown(30.0)

    def _at_the_end(self, stream: str) -> bool:
        page = self._page(stream)
        return page.get("articles_read") == self._published and page["lag"]["records"] == 0

    def _page_at(self, stream: str, end: int) -> dict[str, Any]:
        """The page of a session that has passed all records before `end`, repeats after its last article too: one
        that was just restored has read all its articles, and its digest holds its offsets."""

        def ask() -> dict[str, Any] | None:
            page = self._page(stream, digest=True)
            return page if page["offsets"].get("0", 0) >= end else None

        return dict(self._wait(ask, f"session {stream} to pass record {end - 1}"))

    def _page(self, stream: str, *, digest: bool = False) -> dict[str, Any]:
        answer = self._client.get(f"/v1/streams/{stream}", params={"digest": digest})
        answer.raise_for_status()
        return dict(answer.json())

    def _wait(self, ask: Any, what: str) -> Any:
        began = time.monotonic()
        deadline = min(began + _LIMIT_S, self.due)
        while True:
            problem = ""
            try:
                value = ask()
                if isinstance(value, httpx.Response):
                    value.raise_for_status()
                if value:
                    return value
            except (httpx.HTTPError, KeyError) as error:
                problem = f"{type(error).__name__}: {error}"
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {time.monotonic() - began:.0f} s {problem}")
            time.sleep(0.1)


def _article(stream: str, number: int) -> Article:
    words = random.Random(f"{stream}/{number}").choices(
        ("pier", "quay", "grain", "vote", "bridge", "storm"), k=30
    )
    return Article(
        id=f"{stream}-{number}",
        published=_START + timedelta(minutes=number),
        source="Wire",
        title=f"Item {number} of {stream}",
        text=f"Number {number}: {' '.join(words)}.",
        stream=stream,
    )
