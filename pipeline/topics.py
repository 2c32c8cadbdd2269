"""What a cluster holds, as an operator asks it: topics, offsets, sizes and the lag of a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient, OffsetSpec

from pipeline.kafka import KafkaConfig, admin, unreachable


def topic_offsets(config: KafkaConfig, topic: str) -> dict[int, tuple[int, int]]:
    """First offset held and next offset to be written, by partition; empty if there is no such topic."""
    with _admin(config) as client:
        return _offsets(client, topic)


def topic_sizes(config: KafkaConfig) -> list[dict[str, Any]]:
    """One row a topic: topic, partitions, records (offsets held), bytes on disk over all replicas."""
    with _admin(config) as client:
        names = sorted(name for name in client.list_topics() if not name.startswith("__"))
        if not names:
            return []
        sizes: Counter[str] = Counter()
        for broker in client.describe_log_dirs(names):
            for folder in broker["log_dirs"]:
                for topic in folder["topics"]:
                    sizes[topic["name"]] += sum(part["partition_size"] for part in topic["partitions"])
        rows = []
        for name in names:
            offsets = _offsets(client, name)
            records = sum(end - start for start, end in offsets.values())
            rows.append({"topic": name, "partitions": len(offsets), "records": records, "bytes": sizes[name]})
        return rows


def group_lag(config: KafkaConfig) -> dict[int, int | None]:
    """Records of the articles' topic that the group has not committed; None where it never committed."""
    with _admin(config) as client:
        offsets = _offsets(client, config.topic)
        groups = client.list_group_offsets([config.group_id])
        committed = {
            place.partition: entry.offset
            for place, entry in groups.get(config.group_id, {}).items()
            if place.topic == config.topic and entry.offset >= 0
        }
        return {
            partition: end - committed[partition] if partition in committed else None
            for partition, (_, end) in offsets.items()
        }


@contextmanager
def _admin(config: KafkaConfig) -> Iterator[KafkaAdminClient]:
    client = admin(config)
    try:
        yield client
    except (kafka_errors.KafkaError, OSError) as error:
        raise unreachable(config, error) from error
    finally:
        client.close()


def _offsets(client: KafkaAdminClient, topic: str) -> dict[int, tuple[int, int]]:
    described = [row for row in client.describe_topics([topic]) if row["error_code"] == 0]
    places = [
        TopicPartition(topic, part["partition_index"]) for row in described for part in row["partitions"]
    ]
    if not places:
        return {}
    first = client.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
    last = client.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
    return {place.partition: (first[place].offset, last[place].offset) for place in sorted(places)}
