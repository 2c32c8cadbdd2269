"""What the ingest tests share: articles, a spec over a tiny embedder, and a job that is always stopped."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from actors.ingest_config import IngestConfig
from actors.ingest_job import IngestJob
from actors.ingest_spec import IngestSpec
from models.embed import EmbedderConfig
from pipeline.article import Article
from pipeline.kafka import KafkaConfig
from pipeline.store import StoreConfig
from tests.models.embed.tiny import make_tiny_embedder

START = datetime(2024, 5, 1, tzinfo=UTC)
_WORDS = [
    f"{a}{b}"
    for a in ("har", "bri", "coun", "fer", "min", "sto")
    for b in ("bour", "dge", "cil", "ry", "ster", "rm")
]
LIMIT_S = 240.0


def article(number: int, *, version: int = 0, stream: str = "", words: int = 60) -> Article:
    """Article `number`: its own random words and one that only it has."""
    chosen = random.Random(number * 1_000 + version).choices(_WORDS, k=words)
    return Article(
        id=f"article-{number}",
        published=START + timedelta(minutes=number),
        updated=START + timedelta(minutes=number, hours=version) if version else None,
        source="wire",
        title=f"Report {number}",
        text=f"unique{number} {' '.join(chosen)} version{version}.",
        stream=stream or f"stream-{number % 3}",
    )


def make_spec(kafka: KafkaConfig, folder: Path, *, num_shards: int = 2, **ingest: Any) -> IngestSpec:
    """A spec with a store in `folder` and the tiny embedder."""
    return IngestSpec(
        kafka=kafka,
        store=StoreConfig(path=folder / "store", num_shards=num_shards),
        embedder=EmbedderConfig(model=str(make_tiny_embedder(folder / "tiny"))),
        ingest=IngestConfig(**{"health_interval_s": 0.2, "commit_interval_s": 0.2, **ingest}),
    )


@contextmanager
def running(spec: IngestSpec) -> Iterator[IngestJob]:
    """A job that is stopped and whose store is closed however the test ends."""
    job = IngestJob.start(spec)
    try:
        yield job
    finally:
        job.stop()
        job.client.close_store()


def until_read(job: IngestJob, count: int) -> None:
    """Wait until the ledgers account for `count` records."""
    wait_for(lambda: job.progress() and job.ledger().read >= count, f"{count} records read")


def settle(job: IngestJob) -> dict[str, Any]:
    """Wait until all is durable, stop, and give the final figures."""
    assert job.wait(until_idle_s=0.5, timeout_s=LIMIT_S) == "idle", job.progress()
    return job.stop()


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Wait until `condition` holds, at most LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S:.0f} s: {what}"
        time.sleep(0.05)
