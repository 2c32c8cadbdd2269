"""The publisher on a real broker: order, acknowledgements, sizes, failures.

A broker that is lost: tests/infra/test_kafka_broker.py, which kills one of its own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.article import Article, Deletion, parse_record
from pipeline.errors import BadData, DependencyUnreachable
from pipeline.kafka import KafkaConfig
from pipeline.publisher import Publisher, partition_of
from pipeline.source import Record, RecordSource
from tests.broker import TopicFactory


def article(number: int, stream: str = "wire", text: str = "Rain fell.") -> Article:
    """A valid article."""
    moment = datetime(2025, 1, 1, tzinfo=UTC)
    return Article(id=f"a-{number}", published=moment, source="Wire", title="Rain", text=text, stream=stream)


def read_all(config: KafkaConfig, topic: str | None = None) -> list[Record]:
    """Everything on a topic, in offset order within a partition."""
    records: list[Record] = []
    with RecordSource(config, dict.fromkeys(range(config.partitions)), topic=topic) as source:
        wanted = sum(source.end_offsets().values())
        for _ in range(60):
            records += source.poll(0.5)
            if len(records) >= wanted:
                break
    return records


@given(stream=st.text(min_size=1), num_partitions=st.integers(1, 64))
def test_stream_always_gets_the_same_valid_partition(stream: str, num_partitions: int) -> None:
    """A stream's partition depends on its name and the number of partitions only, and exists."""
    first = partition_of(stream, num_partitions)

    assert first == partition_of(stream, num_partitions)
    assert 0 <= first < num_partitions


def test_partition_agrees_with_the_hash_of_java_clients() -> None:
    """Known values of Kafka's own murmur2 (its UtilsTest), so that other publishers can place streams alike."""
    from kafka.partitioner.default import murmur2

    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for text, signed in known.items():
        assert murmur2(text) == signed & 0xFFFFFFFF
        assert partition_of(text.decode(), 7) == (signed & 0x7FFFFFFF) % 7


@pytest.mark.broker
def test_stream_stays_in_order_on_one_partition(topic: TopicFactory) -> None:
    """Articles of a stream are read in the order in which they were published, from one partition."""
    config = topic(partitions=3)
    acks: list[int] = []
    with Publisher(config) as publisher:
        for number in range(600):
            publisher.publish(article(number, stream=f"s-{number % 5}"), lambda: acks.append(1))

    seen: dict[str, list[int]] = defaultdict(list)
    places: dict[str, set[int]] = defaultdict(set)
    for record in read_all(config):
        parsed = parse_record(record.key, record.value, record.headers)
        assert isinstance(parsed, Article)
        assert record.key == parsed.id.encode()
        seen[parsed.stream].append(int(parsed.id[2:]))
        places[parsed.stream].add(record.partition)
    assert {stream: sorted(numbers) for stream, numbers in seen.items()} == dict(seen)
    assert all(place == {partition_of(stream, 3)} for stream, place in places.items())
    assert (len(acks), publisher.sent, publisher.acked, publisher.failed) == (600, 600, 600, 0)


@pytest.mark.broker
def test_deletion_is_a_null_value_beside_its_article(topic: TopicFactory) -> None:
    """A withdrawal follows its article on the stream's partition and parses back to it."""
    config = topic(partitions=4)
    with Publisher(config) as publisher:
        publisher.publish(article(1, stream="s-9"))
        publisher.delete("a-1", "s-9")

    first, second = read_all(config)
    assert second.partition == first.partition
    assert second.value is None
    assert parse_record(second.key, second.value, second.headers) == Deletion(id="a-1")


@pytest.mark.broker
def test_article_larger_than_the_topic_takes_is_refused_by_name(topic: TopicFactory) -> None:
    """An over-large record raises at once, and the publisher goes on with the next."""
    config = topic(partitions=1, max_record_bytes=10_000)
    with Publisher(config) as publisher:
        with pytest.raises(BadData, match=r"more than topic .* takes \(10000\)"):
            publisher.publish(article(1, text="x" * 100_000))
        publisher.publish(article(2))

    assert [record.key for record in read_all(config)] == [b"a-2"]


@pytest.mark.broker
def test_topic_that_takes_less_than_the_configuration_says_raises(topic: TopicFactory) -> None:
    """The broker's own refusal of a large record is reported as such, not as an outage."""
    config = topic(partitions=1, max_record_bytes=10_000)
    publisher = Publisher(replace(config, max_record_bytes=1_000_000, compression="none"))
    publisher.publish(article(1, text="x" * 300_000))

    with pytest.raises(BadData, match=r"max\.message\.bytes"):
        publisher.flush(20.0)
    publisher.close()


def test_unreachable_broker_is_named_with_what_to_do() -> None:
    """No broker: the error names the address and the command that starts one."""
    config = KafkaConfig(bootstrap_servers="127.0.0.1:1", connect_timeout_s=1.0)

    with pytest.raises(DependencyUnreachable, match=r"127\.0\.0\.1:1 .*dysra kafka up.*--bootstrap-servers"):
        Publisher(config)
