"""The source on a real broker: every record once, from where the caller says, over outages and stalls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition

from infra.kafka import find, start, stop
from pipeline.errors import BadData, DependencyUnreachable, UsageError
from pipeline.kafka import KafkaConfig, admin, ensure_topic, topic_partitions
from pipeline.publisher import Publisher
from pipeline.source import Record, RecordSource, SourceConfig
from pipeline.topics import group_lag, topic_offsets
from tests.broker import TopicFactory

pytestmark = pytest.mark.broker


def fill(kafka: KafkaConfig, count: int, first: int = 0) -> None:
    """Numbered records, spread evenly over the partitions."""
    with Publisher(kafka) as publisher:
        for number in range(first, first + count):
            publisher.publish_raw(b"%d" % number, b"v%d" % number, partition=number % kafka.partitions)


def take(source: RecordSource, count: int, timeout_s: float = 60.0) -> list[Record]:
    """At least `count` records, or what came in time."""
    records: list[Record] = []
    deadline = time.monotonic() + timeout_s
    while len(records) < count and time.monotonic() < deadline:
        records += source.poll(0.2)
    return records


def numbers(records: list[Record]) -> list[int]:
    """What the records' keys say."""
    return sorted(int(record.key or b"-1") for record in records)


def test_every_record_comes_once_in_order_of_its_partition(topic: TopicFactory) -> None:
    """From the start of three partitions: all records, offsets without gaps, positions at the end."""
    kafka = topic(partitions=3)
    fill(kafka, 1_000)
    with RecordSource(kafka, dict.fromkeys(range(3)), SourceConfig(max_records=64)) as source:
        records = take(source, 1_000)

        assert numbers(records) == list(range(1_000))
        for partition in range(3):
            offsets = [record.offset for record in records if record.partition == partition]
            assert offsets == list(range(len(offsets)))
        assert source.positions() == source.end_offsets() == {0: 334, 1: 333, 2: 333}
        assert source.lag() == {0: 0, 1: 0, 2: 0}
        assert source.stats.records == 1_000


def test_record_carries_all_that_kafka_holds(topic: TopicFactory) -> None:
    """Key, value, headers and time come through; a null value stays null."""
    kafka = topic(partitions=1)
    before_ms = int(time.time() * 1_000)
    with Publisher(kafka) as publisher:
        publisher.publish_raw(b"k", None, headers=[("a", b"1"), ("b", b"")])
    with RecordSource(kafka, {0: 0}) as source:
        (record,) = take(source, 1)

    assert (record.topic, record.partition, record.offset) == (kafka.topic, 0, 0)
    assert (record.key, record.value, record.headers) == (b"k", None, (("a", b"1"), ("b", b"")))
    assert before_ms - 1_000 <= record.timestamp_ms <= int(time.time() * 1_000) + 1_000


def test_reading_starts_at_the_given_offsets(topic: TopicFactory) -> None:
    """An offset is the next one to be read; without one `start` decides; other partitions are not read."""
    kafka = topic(partitions=3)
    fill(kafka, 30)
    with RecordSource(kafka, {0: 7, 1: None}, SourceConfig(start="latest")) as source:
        fill(kafka, 3, first=30)
        records = take(source, 5)

    assert [(r.partition, r.offset) for r in sorted(records)] == [(0, 7), (0, 8), (0, 9), (0, 10), (1, 10)]


def test_replaced_assignment_reads_from_its_own_offsets(topic: TopicFactory) -> None:
    """A coordinator that moves partitions gets exactly the new ones; none at all is allowed."""
    kafka = topic(partitions=2)
    fill(kafka, 20)
    with RecordSource(kafka, {0: 0}) as source:
        assert {record.partition for record in take(source, 10)} == {0}
        source.assign({1: 5})
        assert [(r.partition, r.offset) for r in take(source, 5)] == [(1, offset) for offset in range(5, 10)]
        source.assign({})
        assert source.poll(0.2) == []


def test_paused_partition_gives_nothing_until_it_is_resumed(topic: TopicFactory) -> None:
    """Pausing stops one partition only, loses nothing, and is no stall."""
    kafka = topic(partitions=2)
    fill(kafka, 400)
    with RecordSource(kafka, {0: 0, 1: 0}, SourceConfig(max_records=10, stall_s=0.5, check_s=0.2)) as source:
        records = source.poll(5.0)
        source.pause([0])
        before = source.positions()[0]
        later = take(source, 500, timeout_s=1.2)
        assert {record.partition for record in later} <= {1}
        assert source.positions()[0] == before
        assert (source.paused, source.stats.stalls) == (frozenset({0}), 0)
        source.resume([0])
        records += later + take(source, 400 - len(records) - len(later))

    assert numbers(records) == list(range(400))


def test_committed_offsets_are_seen_by_kafkas_own_tools(topic: TopicFactory) -> None:
    """A commit gives the group a lag, though partitions are assigned by hand."""
    kafka = topic(partitions=2)
    fill(kafka, 10)
    with RecordSource(kafka, {0: 0, 1: 0}) as source:
        assert source.committed() == {0: None, 1: None}
        assert source.commit({0: 3})
        assert source.committed() == {0: 3, 1: None}

    assert group_lag(kafka) == {0: 2, 1: None}


def test_expired_offset_continues_at_the_oldest_record(topic: TopicFactory) -> None:
    """Records that retention took are counted as expired; the rest is read."""
    kafka = topic(partitions=1)
    fill(kafka, 100)
    client = admin(kafka)
    client.delete_records({TopicPartition(kafka.topic, 0): 60})
    client.close()
    with RecordSource(kafka, {0: 10}) as source:
        records = take(source, 40)

    assert numbers(records) == list(range(60, 100))
    assert (source.stats.offset_resets, source.stats.records_expired) == (1, 50)
    assert topic_offsets(kafka, kafka.topic) == {0: (60, 100)}


def test_offset_beyond_the_end_stops_unless_a_reset_is_wanted(topic: TopicFactory) -> None:
    """A topic that was made anew is told, not read under old offsets; a session may start over."""
    kafka = topic(partitions=1)
    fill(kafka, 5)
    with (
        RecordSource(kafka, {0: 99}) as source,
        pytest.raises(BadData, match=r"offset 99 .* beyond its end, 5"),
    ):
        take(source, 1, timeout_s=10.0)
    with RecordSource(kafka, {0: 99}, SourceConfig(reset_beyond_end=True)) as source:
        assert numbers(take(source, 5)) == [0, 1, 2, 3, 4]


def test_absent_topic_partition_and_broker_are_named(topic: TopicFactory) -> None:
    """Wrong use is told apart from an outage, and says what is there."""
    kafka = topic(partitions=2)
    mistyped = kafka.topic.replace("news", "nwes")
    with pytest.raises(UsageError, match=rf"there is no topic {mistyped} .*topics there: .*{kafka.topic}"):
        RecordSource(kafka, {0: 0}, topic=mistyped)
    with pytest.raises(UsageError, match=r"partitions 0 to 1; 5 was asked for"):
        RecordSource(kafka, {5: 0})
    with pytest.raises(UsageError, match="negative"):
        RecordSource(kafka, {0: -1})
    with pytest.raises(DependencyUnreachable, match=r"127\.0\.0\.1:1 "):
        RecordSource(replace(kafka, bootstrap_servers="127.0.0.1:1", connect_timeout_s=0.3), {0: 0})


def test_stalled_client_is_replaced_and_loses_nothing(topic: TopicFactory) -> None:
    """A client that polls empty while records wait (a known fault of the library) is made anew and counted."""
    kafka = topic(partitions=2)
    fill(kafka, 100)
    config = SourceConfig(stall_s=0.5, check_s=0.1)
    with RecordSource(kafka, {0: 0, 1: 0}, config) as source:
        records = take(source, 100)
        fill(kafka, 100, first=100)
        source.pause([1])
        client: Any = source._client
        client.poll = _silent
        records += take(source, 50)
        assert source.paused == frozenset({1})
        source.resume([1])
        records += take(source, 50)

    assert numbers(records) == list(range(200))
    assert source.stats.stalls == 1


def _silent(timeout_ms: int, **_: Any) -> dict[Any, Any]:
    """What the fault looks like from outside."""
    time.sleep(timeout_ms / 1_000)
    return {}


def test_client_that_never_recovers_ends_in_an_error(
    topic: TopicFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing clients has a limit; the error names the partition and offset that stand still."""
    kafka = topic(partitions=1)
    fill(kafka, 5)
    monkeypatch.setattr("kafka.KafkaConsumer.poll", lambda self, timeout_ms, **_: _silent(timeout_ms))
    config = SourceConfig(stall_s=0.2, check_s=0.1, max_stalls=2)
    with (
        RecordSource(kafka, {0: 0}, config) as source,
        pytest.raises(DependencyUnreachable, match=r"\[0\] at offset 0 of 5 does not move"),
    ):
        take(source, 1, timeout_s=30.0)


def test_transaction_marks_are_no_stall(topic: TopicFactory) -> None:
    """Offsets that hold a transaction's end and no record are passed, not waited for."""
    from pipeline.kafka import producer

    kafka = topic(partitions=1)
    client = producer(kafka, transactional_id=f"t-{kafka.topic}")
    client.init_transactions()
    client.begin_transaction()
    client.send(kafka.topic, b"v", key=b"0")
    client.commit_transaction()
    client.close()
    with RecordSource(kafka, {0: 0}, SourceConfig(stall_s=0.5, check_s=0.1)) as source:
        assert numbers(take(source, 1)) == [0]
        take(source, 1, timeout_s=2.0)
        assert source.positions() == source.end_offsets() == {0: 2}
        assert source.stats.stalls == 0


@contextmanager
def own_broker(directory: Path) -> Iterator[tuple[KafkaConfig, Callable[[], object], Callable[[], object]]]:
    """A broker that a test may stop and start; it comes back on its port."""
    running = start(directory, 0)
    kafka = KafkaConfig(
        bootstrap_servers=running.bootstrap_servers,
        partitions=2,
        connect_timeout_s=1.0,
        request_timeout_s=5.0,
    )
    ensure_topic(kafka)
    try:
        yield kafka, lambda: stop(directory), lambda: start(directory, running.port)
    finally:
        stop(directory)
        assert find(directory) is None


def test_broker_that_goes_and_comes_back_loses_no_record(broker: object, tmp_path: Path) -> None:
    """Over a restart reading goes on by itself; while it lasts polls are empty; it is counted once."""
    with own_broker(tmp_path) as (kafka, go, come):
        fill(kafka, 100)
        with RecordSource(kafka, {0: 0, 1: 0}, SourceConfig(check_s=0.5)) as source:
            records = take(source, 100)
            go()
            assert take(source, 1, timeout_s=2.0) == []
            assert not source.commit({0: 50}, timeout_s=0.5)
            come()
            fill(kafka, 100, first=100)
            records += take(source, 100)
            assert source.commit(source.positions())

            assert numbers(records) == list(range(200))
            assert (source.stats.outages, source.stats.failed_commits) == (1, 1)

            go()
            source.config = SourceConfig(check_s=0.5, outage_limit_s=1.0)
            with pytest.raises(DependencyUnreachable, match="gave up after"):
                take(source, 1, timeout_s=40.0)


def test_deleted_topic_is_an_error_not_a_silence(
    topic: TopicFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic that goes away while it is read ends in an error that says so."""
    kafka = topic(partitions=1)
    monkeypatch.setattr("pipeline.source._TOPIC_GRACE_S", 1.0)
    with RecordSource(kafka, {0: 0}, SourceConfig(check_s=0.5)) as source:
        source.poll(0.1)
        client = admin(kafka)
        client.delete_topics([kafka.topic])
        client.close()
        with pytest.raises(UsageError, match="there is no topic"):
            take(source, 1, timeout_s=40.0)
    with pytest.raises(UsageError):
        topic_partitions(kafka, kafka.topic)
