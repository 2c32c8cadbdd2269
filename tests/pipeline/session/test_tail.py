"""Where a session starts on a real topic, what it is handed, and how far behind it says it is."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from pipeline.article import ArticleLimits
from pipeline.errors import UsageError
from pipeline.kafka import KafkaConfig
from pipeline.publisher import Publisher, partition_of
from pipeline.session import SessionConfig
from pipeline.session.tail import StreamTail
from pipeline.source import Record
from tests.broker import TopicFactory
from tests.pipeline.session.support import STREAM, article, new_session

pytestmark = pytest.mark.broker


def publish(kafka: KafkaConfig, first: int, count: int, stream: str = STREAM) -> None:
    """Articles of a stream on the topic."""
    with Publisher(kafka) as publisher:
        for number in range(first, first + count):
            publisher.publish(article(number, stream=stream))


def open_tail(
    kafka: KafkaConfig, offsets: dict[int, int] | None = None, **config: object
) -> tuple[StreamTail, str, dict[int, int]]:
    """An open tail, and where it says that it began."""
    tail = StreamTail(kafka, replace(SessionConfig(), **config), ArticleLimits(), STREAM)  # type: ignore[arg-type]
    start = tail.open(offsets)
    return tail, start.described, start.offsets


def take(tail: StreamTail, count: int) -> list[Record]:
    """The next records, waited for."""
    records: list[Record] = []
    deadline = time.monotonic() + 30
    while len(records) < count:
        records += tail.next_records(count - len(records))
        assert time.monotonic() < deadline, f"{len(records)} of {count} records came"
    return records


def test_session_follows_the_one_partition_of_its_stream(topic: TopicFactory) -> None:
    """All of the stream's articles are handed out, in order, from one partition; the lag falls to 0."""
    kafka = topic(partitions=4)
    publish(kafka, 0, 5)
    tail, _, offsets = open_tail(kafka, start="earliest")
    assert list(offsets) == [partition_of(STREAM, 4)]
    assert tail.lag() == 5
    assert [record.key for record in take(tail, 5)] == [f"a{n}".encode() for n in range(5)]
    assert tail.lag() == 0 and tail.next_records(5) == []
    publish(kafka, 5, 2)
    assert tail.ends() == {partition_of(STREAM, 4): 7}
    tail.close()


def test_window_begins_at_the_last_articles_of_the_stream(topic: TopicFactory) -> None:
    """With other streams between them, the start is the oldest of the last articles that are wanted."""
    kafka = topic(partitions=1)
    publish(kafka, 0, 6)
    publish(kafka, 100, 40, stream="elsewhere")
    publish(kafka, 6, 4)
    tail, described, _ = open_tail(kafka, start="window", window_articles=6)
    session = new_session()
    session.read(take(tail, 46))
    assert list(session.state.read) == [f"a{n}" for n in range(4, 10)]
    assert described.startswith("the last 6 articles")
    tail.close()
    whole, described, offsets = open_tail(kafka, start="window", window_articles=50)
    assert described.startswith("all 10 articles") and offsets == {0: 0}
    whole.close()


def test_window_looks_no_further_than_it_may(topic: TopicFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the window stops after a stated number of records, at what it found."""
    monkeypatch.setattr("pipeline.session.tail._SCAN_BLOCK", 10)
    kafka = topic(partitions=1)
    publish(kafka, 0, 3)
    publish(kafka, 100, 40, stream="elsewhere")
    publish(kafka, 3, 2)
    tail, described, _ = open_tail(kafka, start="window", window_articles=5, max_scan_records=10)
    assert described.startswith("the last 2 articles")
    tail.close()


def test_latest_begins_with_what_comes_next(topic: TopicFactory) -> None:
    """A session that starts at the end reads only what is published afterwards."""
    kafka = topic(partitions=1)
    publish(kafka, 0, 3)
    tail, _, offsets = open_tail(kafka, start="latest")
    assert offsets == {0: 3} and tail.next_records(9) == []
    publish(kafka, 3, 1)
    assert [record.key for record in take(tail, 1)] == [b"a3"]
    tail.close()


def test_continued_session_begins_at_its_offset(topic: TopicFactory) -> None:
    """Given offsets win over the configured start."""
    kafka = topic(partitions=1)
    publish(kafka, 0, 4)
    tail, _, _ = open_tail(kafka, {0: 2}, start="latest")
    assert [record.offset for record in take(tail, 2)] == [2, 3]
    tail.close()


def test_any_placement_is_followed_over_all_partitions(topic: TopicFactory) -> None:
    """Where publishers place records freely, every partition is read."""
    kafka = topic(partitions=3)
    with Publisher(kafka) as publisher:
        for number in range(6):
            value = article(number).to_json()
            publisher.publish_raw(f"a{number}".encode(), value, partition=number % 3)
    tail, _, offsets = open_tail(kafka, start="earliest", partition_by="any")
    assert sorted(offsets) == [0, 1, 2]
    assert {record.key for record in take(tail, 6)} == {f"a{n}".encode() for n in range(6)}
    tail.close()
    last, _, _ = open_tail(kafka, start="window", window_articles=2, partition_by="any")
    session = new_session()
    session.read(take(last, 2))
    assert set(session.state.read) == {"a4", "a5"}
    last.close()


def test_empty_topic_is_waited_on(topic: TopicFactory) -> None:
    """A session of a stream without articles begins at the end and reads the first that comes."""
    kafka = topic(partitions=2)
    tail, described, _ = open_tail(kafka, start="window")
    assert "none" in described and tail.lag() == 0
    publish(kafka, 0, 1)
    assert len(take(tail, 1)) == 1
    tail.close()


def test_missing_topic_is_named(topic: TopicFactory) -> None:
    """A topic that is not there is the operator's error, told at once."""
    kafka = replace(topic(), topic="not-there")
    with pytest.raises(UsageError, match="not-there"):
        open_tail(kafka)


def test_an_outage_takes_back_no_missed_record(topic: TopicFactory) -> None:
    """A tail that is opened anew counts what its new connection missed, and hands out nothing twice."""
    kafka = topic(partitions=1)
    publish(kafka, 0, 3)
    tail, _, _ = open_tail(kafka, start="earliest")
    take(tail, 1)
    tail._opened().stats.records_expired = 5
    assert (tail.take_expired(), tail.take_expired()) == (5, 0)
    tail.close()
    tail.open({0: 1})
    assert tail.take_expired() == 0
    assert [record.offset for record in take(tail, 2)] == [1, 2] and tail.next_records(9) == []
    tail.close()
