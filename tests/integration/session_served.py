"""A service that tests share: its pages, its topic and store, and the undisturbed twin of a session."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from actors.keys import new_key
from actors.serve_config import ServeConfig
from actors.serve_settings import ServeSettings
from actors.slot_router import rank_of, slot_table
from infra.kafka import Broker
from models.cache import CacheConfig
from models.embed import EmbedderConfig
from models.hf import HfBackbone, HfConfig
from pipeline.article import Article, ArticleLimits, parse_article
from pipeline.kafka import KafkaConfig, ensure_topic
from pipeline.publisher import Publisher
from pipeline.session import SessionConfig
from pipeline.session.session import Session, SessionParts
from pipeline.session.state import SessionKey
from pipeline.source import RecordSource
from pipeline.store import StoreConfig
from tests.integration.session_store import StoreFiller
from tests.tiny_model import save_tiny_model

TENANT = "desk"
REPLICAS, SLOTS = 2, 16
ARTICLES = 6
LIMIT_S = 240.0


@dataclass
class Served:
    """What the tests share: a running service, and what is behind it."""

    settings: ServeSettings
    url: str
    key: str
    publisher: Publisher
    filler: StoreFiller
    streams: tuple[str, str]

    def client(self, key: str | None = None) -> httpx.Client:
        """An HTTP client with a tenant's key."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def page(self, stream: str, *, digest: bool = False) -> dict[str, Any]:
        """A session's page."""
        with self.client() as client:
            response = client.get(f"/v1/streams/{stream}", params={"digest": digest})
            response.raise_for_status()
            return dict(response.json())

    def wait(self, stream: str, true: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The session's page once it fulfils a condition."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                page = self.page(stream)
                if true(page):
                    return self.page(stream, digest=True)
            except httpx.HTTPError:
                page = {}
            assert time.monotonic() < deadline, f"{what}: {page}"
            time.sleep(0.1)

    def publish(self, stream: str, first: int, count: int) -> list[Article]:
        """Articles on the topic and in the store."""
        made = [news(stream, number) for number in range(first, first + count)]
        for article in made:
            self.publisher.publish(article)
        self.publisher.flush()
        self.filler.add(made)
        return made

    def twin_digest(self, stream: str) -> str:
        """The digest of a session that read the topic in this process, undisturbed."""
        settings = self.settings
        parts = SessionParts(
            config=settings.session,
            cache=settings.cache,
            limits=settings.articles,
            backbone=HfBackbone.load(settings.backbone),
        )
        session = Session.new(SessionKey(TENANT, stream), parts)
        with RecordSource(settings.kafka, {0: 0}) as source:
            end = source.end_offsets()[0]
            while source.positions()[0] < end:
                session.read(source.poll())
        return session.digest()


@contextlib.contextmanager
def serving(broker: Broker, root: Path) -> Iterator[Served]:
    """A service over two streams of six articles each, all read, in the connected Ray; stopped on leaving."""
    from actors.serve_app import deploy, shutdown

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = new_key(root / "keys.json", TENANT)
    kafka = KafkaConfig(bootstrap_servers=broker.bootstrap_servers, topic=f"served-{port}", partitions=1)
    ensure_topic(kafka)
    settings = ServeSettings(
        kafka=kafka,
        store=StoreConfig(path=root / "store", lexical_commit_ms=0),
        embedder=EmbedderConfig(model="static"),
        backbone=HfConfig(model=str(save_tiny_model(root / "tiny")), device="cpu", threads=1),
        cache=CacheConfig(sinks=2, ring=64, read_block=16, evict_block=16, rank=4, latent_blocks=3),
        session=SessionConfig(
            start="earliest", attend="both", snapshot_every_s=0.3, max_article_tokens=96, max_new_tokens=8
        ),
        articles=ArticleLimits(),
        serve=ServeConfig(
            port=port,
            sessions_dir=root / "sessions",
            keys_file=root / "keys.json",
            replicas=REPLICAS,
            slots=SLOTS,
            cpus_per_replica=0.5,
            max_questions=6,
            max_waiting_per_session=1,
            retry_after_s=3,
            answer_timeout_s=30,
            drain_s=40,
        ),
    )
    deployed = deploy(settings, timeout_s=240)
    with Publisher(kafka) as publisher:
        filler = StoreFiller(deployed.store, settings.embedder)
        one = Served(settings, deployed.url, key, publisher, filler, two_streams())
        for stream in one.streams:
            one.publish(stream, 0, ARTICLES)
            with one.client() as client:
                client.post(f"/v1/streams/{stream}").raise_for_status()
        for stream in one.streams:  # a test that counts on from here must not begin in the middle
            one.wait(stream, lambda p: p["articles_read"] == ARTICLES and not p["lag"]["records"], "not read")
        yield one
    shutdown()
    deployed.store.close_store()


def news(stream: str, number: int) -> Article:
    """An article of a stream."""
    return parse_article(
        {
            "id": f"{stream}-{number}",
            "published": f"2024-03-{1 + number % 28:02d}T08:00:00Z",
            "source": "Daily Courier",
            "title": f"Pier {number} of {stream} opens",
            "text": f"Pier {number} opened on Monday. The mayor of quay {number} said that trade will grow. "
            * 3,
            "stream": stream,
        }
    )


def two_streams() -> tuple[str, str]:
    """Names of two streams whose sessions live on different replicas."""
    table = slot_table(SLOTS, REPLICAS)
    names = [f"harbour{n}" for n in range(50)]
    ranks = {rank_of(SessionKey(TENANT, name).id, table): name for name in reversed(names)}
    return ranks[0], ranks[1]
