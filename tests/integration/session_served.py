"""A service that tests share: its pages, its topic and store, and the undisturbed twin of a session."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from actors.serve_settings import ServeSettings
from actors.slot_router import rank_of, slot_table
from models.hf import HfBackbone
from pipeline.article import Article, parse_article
from pipeline.publisher import Publisher
from pipeline.session.session import Session, SessionParts
from pipeline.session.state import SessionKey
from pipeline.source import RecordSource
from tests.integration.session_store import StoreFiller

TENANT = "desk"
REPLICAS, SLOTS = 2, 16
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
