"""Newswire articles on a topic, for tests that need some news to be there."""

from __future__ import annotations

from pipeline.article import parse_article
from pipeline.kafka import KafkaConfig
from pipeline.newswire import demo_set
from pipeline.publisher import Publisher


def publish_newswire(kafka: KafkaConfig, num_articles: int) -> int:
    """Publish a small newswire with its updates and withdrawals; how many records that were."""
    records = demo_set(7, num_articles, 1).records
    with Publisher(kafka) as publisher:
        for record in records:
            if record.get("deleted"):
                publisher.delete(record["id"], record["stream"])
            else:
                publisher.publish(parse_article(record))
    return len(records)
