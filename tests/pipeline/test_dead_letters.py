"""Dead letters: kept whole, listed once, published again once."""

from __future__ import annotations

import hashlib

import pytest

from pipeline.dead_letters import (
    ATTEMPTS_HEADER,
    DeadLetterWriter,
    read_dead_letters,
    replay_dead_letters,
)
from pipeline.errors import BadData, UsageError
from pipeline.kafka import HEADER_ROOM_BYTES, KafkaConfig
from pipeline.publisher import Publisher
from pipeline.source import Record
from tests.broker import TopicFactory
from tests.pipeline.test_publisher import read_all

pytestmark = pytest.mark.broker


def publish_and_read(config: KafkaConfig, *values: bytes | None) -> list[Record]:
    """Records of these values as ingest would read them."""
    with Publisher(config) as publisher:
        for number, value in enumerate(values):
            publisher.publish_raw(b"k-%d" % number, value, partition=1, headers=[("trace", b"t-%d" % number)])
    return read_all(config)


def test_dead_letter_keeps_the_record_and_says_why(topic: TopicFactory) -> None:
    """Key, value, headers, coordinates and cause all come back."""
    config = topic(partitions=2)
    (record,) = publish_and_read(config, b"{not json")
    with DeadLetterWriter(config) as writer:
        writer.send(record, "not_json", "the value is not JSON")

    (letter,) = read_dead_letters(config)
    assert (letter.key, letter.value, letter.headers) == (b"k-0", b"{not json", (("trace", b"t-0"),))
    assert (letter.topic, letter.partition, letter.offset) == (config.topic, 1, 0)
    assert (letter.reason, letter.detail, letter.attempts) == ("not_json", "the value is not JSON", 1)
    assert (letter.timestamp_ms, letter.replayable) == (record.timestamp_ms, True)


def test_null_and_empty_values_are_told_apart(topic: TopicFactory) -> None:
    """A null value comes back null, an empty one empty; a record with neither key nor value is kept too."""
    config = topic(partitions=2)
    records = publish_and_read(config, None, b"")
    bare = records[0]._replace(offset=99, key=None, value=None, headers=())
    with DeadLetterWriter(config) as writer:
        writer.send_many([(record, "no_key", "") for record in [*records, bare]])

    letters = list(read_dead_letters(config))
    assert [(letter.value, letter.replayable) for letter in letters] == [
        (None, True),
        (b"", True),
        (None, False),
    ]


def test_record_put_aside_twice_is_listed_once(topic: TopicFactory) -> None:
    """A kill between the dead letter and the commit repeats it; the list does not."""
    config = topic(partitions=2)
    records = publish_and_read(config, b"one", b"two")
    with DeadLetterWriter(config) as writer:
        for _ in range(2):
            writer.send_many([(record, "not_json", "bad") for record in records])

    assert [letter.offset for letter in read_dead_letters(config)] == [0, 1]


def test_largest_record_that_the_topic_takes_is_kept_whole(topic: TopicFactory) -> None:
    """The dead-letter topic has room for any record of its topic, headers included."""
    config = topic(partitions=2, max_record_bytes=100_000, compression="none")
    (record,) = publish_and_read(config, b"x" * 100_000)
    with DeadLetterWriter(config) as writer:
        writer.send(record, "too_large", "d" * 10_000)

    (letter,) = read_dead_letters(config)
    assert (letter.value, letter.replayable) == (b"x" * 100_000, True)


@pytest.mark.parametrize("header_bytes", [10, 200_000])
def test_larger_record_keeps_head_size_and_hash(topic: TopicFactory, header_bytes: int) -> None:
    """What the dead-letter topic cannot take is kept by its head, size and hash, and is never republished."""
    config = topic(partitions=2, max_record_bytes=100_000, compression="none")
    value = bytes(range(256)) * 2_000
    record = Record(config.topic, 1, 7, 1_000, b"k", value, (("big", b"h" * header_bytes),))
    with DeadLetterWriter(config) as writer:
        writer.send(record, "too_large", "over the limit")

    (letter,) = read_dead_letters(config)
    raw = dict(read_all(config, config.dead_letter_topic)[0].headers)
    assert letter.value and value.startswith(letter.value)
    assert len(letter.value) < 100_000 + HEADER_ROOM_BYTES
    assert (letter.value_bytes, letter.replayable) == (len(value), False)
    assert raw["dysra-value-sha256"].decode() == hashlib.sha256(value).hexdigest()
    with pytest.raises(BadData, match="cannot be published again"):
        replay_dead_letters(config, [letter])


def test_replay_returns_the_record_to_its_partition_once(topic: TopicFactory) -> None:
    """A replayed letter is the original record plus its attempts; it is not listed or replayed again."""
    config = topic(partitions=2)
    records = publish_and_read(config, b"one", b"two")
    with DeadLetterWriter(config) as writer:
        writer.send_many([(record, "not_json", "bad") for record in records])

    chosen = [letter for letter in read_dead_letters(config) if letter.offset == 1]
    assert replay_dead_letters(config, chosen) == 1

    again = read_all(config)[-1]
    assert (again.partition, again.offset, again.key, again.value) == (1, 2, b"k-1", b"two")
    assert dict(again.headers) == {"trace": b"t-1", ATTEMPTS_HEADER: b"1"}
    assert [letter.offset for letter in read_dead_letters(config)] == [0]
    with DeadLetterWriter(config) as writer:
        writer.send(again, "not_json", "bad again")
    assert [(letter.offset, letter.attempts) for letter in read_dead_letters(config)] == [(0, 1), (2, 2)]


def test_no_dead_letters_is_an_empty_list_and_no_topic_an_error(topic: TopicFactory) -> None:
    """A topic that never had a bad record has no dead-letter topic; a topic that is not there is named."""
    config = topic(partitions=2)

    assert list(read_dead_letters(config)) == []
    with pytest.raises(UsageError, match="there is no topic nowhere"):
        list(read_dead_letters(KafkaConfig(bootstrap_servers=config.bootstrap_servers, topic="nowhere")))
