"""Newswire records for the benches and how they are published; loads neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from pipeline.kafka import KafkaConfig
from pipeline.newswire import generate
from pipeline.publisher import Publisher

Record = tuple[bytes, bytes | None, str]
"""Key, value and stream of a record to publish."""


def news(num_articles: int, seed: int = 7) -> Iterator[Record]:
    """Newswire records in order of publication: updates, withdrawals and repeats among them."""
    for event in generate(seed=seed, num_articles=num_articles):
        record = event.record
        article_id = str(record["id"])
        stream = str(record.get("stream") or record.get("source") or "wire")
        value = orjson.dumps(record) if "title" in record else None
        yield article_id.encode(), value, stream


def publish(kafka: KafkaConfig, records: Iterable[Record]) -> int:
    """Publish as fast as it goes, each stream on one partition; the number of records."""
    count = 0
    with Publisher(kafka) as publisher:
        for key, value, stream in records:
            headers = [("article-id", key)] if value is None else []
            publisher.publish_raw(key, value, stream=stream, headers=headers)
            count += 1
        publisher.flush()
    return count
