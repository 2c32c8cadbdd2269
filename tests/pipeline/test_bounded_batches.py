"""Batches that unpack to far more than they are: bounded in memory, each record told, and the reading goes on."""

from __future__ import annotations

import gzip
import inspect
import tracemalloc
import zlib

import kafka as kafka_python
import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatch, LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from pipeline.bounded_batches import UNPACKING, TooLarge, _Batches, _Budget, snappy_size, unpack
from pipeline.dead_letters import DeadLetterWriter, read_dead_letters, replay_dead_letters
from pipeline.errors import BadData
from pipeline.kafka import KafkaConfig, producer
from pipeline.source import RecordSource, SourceConfig
from tests.broker import TopicFactory

GZIP, LZ4, ZSTD = DefaultRecordBatch.CODEC_GZIP, DefaultRecordBatch.CODEC_LZ4, DefaultRecordBatch.CODEC_ZSTD
PACK = {
    GZIP: lambda data: gzip.compress(data, 6),
    LZ4: lambda data: lz4.frame.compress(data, block_linked=False),
    ZSTD: lambda data: zstandard.ZstdCompressor(level=6).compress(data),
}
NAMES = {GZIP: "gzip", LZ4: "lz4", ZSTD: "zstd"}


@pytest.mark.parametrize("kind", PACK, ids=NAMES.get)
@given(data=st.one_of(st.binary(max_size=3_000), st.integers(0, 700_000).map(lambda n: b"ab" * n)))
def test_what_fits_comes_out_as_it_went_in(kind: int, data: bytes) -> None:
    """Every byte, at the limit itself too, and none beyond it."""
    packed = PACK[kind](data)
    assert unpack(memoryview(packed), kind, max(1, len(data))) == data
    if len(data) > 1:
        with pytest.raises(TooLarge):
            unpack(memoryview(packed), kind, len(data) - 1)


@pytest.mark.parametrize("kind", PACK, ids=NAMES.get)
def test_bomb_is_not_unpacked_beyond_its_limit(kind: int) -> None:
    """Of 200 MB of zeros no more than the limit and some pieces is ever in memory."""
    packed = PACK[kind](bytes(200_000_000))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        unpack(memoryview(packed), kind, 8_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24_000_000


@pytest.mark.parametrize("kind", [GZIP, ZSTD], ids=NAMES.get)
def test_several_frames_in_one_batch_are_one_text(kind: int) -> None:
    """Members of gzip and frames of zstd that follow each other are read on; lz4 has one by Kafka's rules."""
    assert unpack(memoryview(PACK[kind](b"one ") + PACK[kind](b"two")), kind, 100) == b"one two"


@pytest.mark.parametrize("kind", PACK, ids=NAMES.get)
def test_damage_raises_what_is_caught(kind: int) -> None:
    """Bytes that are no such data raise one of the named errors, and no other."""
    with pytest.raises(UNPACKING):
        unpack(memoryview(b"\x00no such data" * 9), kind, 1_000)


def test_snappy_tells_its_size_beforehand() -> None:
    """One block by its preamble; the Java client's frames by the sum of theirs."""
    block = b"\xac\x02rest"
    assert snappy_size(memoryview(block)) == 300
    framed = b"\x82SNAPPY\x00" + b"\x00\x00\x00\x01" * 2 + (len(block).to_bytes(4, "big") + block) * 3
    assert snappy_size(memoryview(framed)) == 900


def _batch(values: list[bytes], kind: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, kind, False, -1, -1, -1, 1 << 30)
    for number, value in enumerate(values):
        builder.append(number, 1_700_000_000_000 + number, b"k", value, [])
    return bytes(builder.build())


def test_records_of_a_batch_beyond_the_limit_are_told_one_by_one() -> None:
    """Their offsets and why; the batches around them are read as ever."""
    data = _batch([b"a", b"b"], ZSTD) + _batch([bytes(100_000)] * 3, ZSTD) + _batch([b"plain"], 0)
    budget = _Budget(10_000, 10_000)
    batches = _Batches(MemoryRecords(data), budget)
    found = []
    while (batch := batches.next_batch()) is not None:
        assert batch.validate_crc()
        found.append(
            [(record.offset, bytes(record.value), getattr(record.value, "why", "")) for record in batch]
        )
    assert found[0] == [(0, b"a", ""), (1, b"b", "")] and found[2] == [(0, b"plain", "")]
    assert [(offset, value) for offset, value, _ in found[1]] == [(0, b""), (1, b""), (2, b"")]
    assert all("kafka.max_batch_bytes" in why for _, _, why in found[1])
    assert budget.left <= 0  # the poll ends with it


def _old_batch(values: list[bytes], kind: int, magic: int = 1) -> bytes:
    """A batch of the format before 2017, as a broker keeps it: its own offset is that of its last record."""
    builder = LegacyRecordBatchBuilder(magic, kind, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number, timestamp=1 if magic else None, key=b"k", value=value)
    return bytes(builder.build())


def _at(batch: bytes, offset: int) -> bytes:
    return offset.to_bytes(8, "big") + batch[8:]


def _found(data: bytes, budget: _Budget, due: int = 0) -> list[list[tuple[int, bytes, str]]]:
    batches = _Batches(MemoryRecords(data), budget, lambda: due)
    found = []
    while (batch := batches.next_batch()) is not None:
        records = [(r.offset, bytes(r.value), getattr(r.value, "why", "")) for r in batch]
        due = records[-1][0] + 1
        found.append(records)
    return found


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("kind", [GZIP, LZ4], ids=NAMES.get)
def test_old_formats_are_bounded_too(kind: int, magic: int) -> None:
    """Of a batch of the format before 2017 that is too large every offset is told, and the next batch is read."""
    small = _old_batch([b"a", b"b"], kind, magic)
    bomb = _at(_old_batch([bytes(100_000)] * 3, kind, magic), 4)
    after = _at(_old_batch([b"c"], kind, magic), 5)
    budget = _Budget(10_000, 10_000)
    first, told, last = _found(_at(small, 1) + bomb + after, budget)
    assert [(value, why) for _, value, why in first] == [(b"a", ""), (b"b", "")]
    assert [(offset, value) for offset, value, _ in told] == [(2, b""), (3, b""), (4, b"")]
    assert all("kafka.max_batch_bytes" in why for _, _, why in told)
    assert [value for _, value, _ in last] == [b"c"]
    assert budget.left <= 0


def test_a_keyed_wrapper_is_no_way_around_the_limit() -> None:
    """The record that holds the others may have a key: its value is looked for behind it."""
    plain = _old_batch([bytes(100_000)], GZIP)
    at = LegacyRecordBatch.KEY_OFFSET_V1
    body = plain[16:at] + (3).to_bytes(4, "big") + b"key" + plain[at + 4 :]
    size = len(body) + 4
    keyed = plain[:8] + size.to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body
    ((told,),) = _found(keyed, _Budget(10_000, 10_000))
    assert "kafka.max_batch_bytes" in told[2]
    ((read,),) = _found(keyed, _Budget(200_000, 200_000))
    assert len(read[1]) == 100_000


@pytest.mark.parametrize("inside", [b"no records", b"", bytes(40), b"\xff" * 64])
def test_an_old_batch_that_holds_no_records_is_told(inside: bytes) -> None:
    """What it unpacks to is nothing that can be read: a dead letter for its offset, and no error."""
    packed = gzip.compress(inside)
    body = (
        b"\x01\x01" + (1).to_bytes(8, "big") + b"\xff\xff\xff\xff" + len(packed).to_bytes(4, "big") + packed
    )
    head = (7).to_bytes(8, "big") + (len(body) + 4).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big")
    (told,) = _found(head + body, _Budget(10_000, 10_000), due=6)
    assert [(offset, value) for offset, value, _ in told] == [(6, b""), (7, b"")]
    assert all("no records" in why for _, _, why in told)


def test_a_gap_before_an_old_batch_is_not_told_without_end() -> None:
    """A compacted topic may lack millions of offsets before a batch: no more are told than it could hold."""
    bomb = _at(_old_batch([bytes(100_000)], GZIP), 50_000_000)
    (told,) = _found(bomb, _Budget(10_000, 10_000))
    assert told[-1][0] == 50_000_000 and len(told) <= 10_000 // 26


def test_kafka_python_still_has_what_this_rests_on() -> None:
    """The private parts of kafka-python 3.0 that are overridden are there, and used as they were."""
    assert kafka_python.__version__.startswith("3.0."), "look at pipeline/bounded_batches.py first"
    assert "self.PartitionRecords(" in inspect.getsource(Fetcher._parse_fetched_data)
    assert "self._append(drained" in inspect.getsource(Fetcher.fetched_records)
    assert "part.take(max_records)" in inspect.getsource(Fetcher._append)
    assert list(inspect.signature(Fetcher._append).parameters) == [
        "self",
        "drained",
        "part",
        "max_records",
        "update_offsets",
    ]
    assert "records.next_batch()" in inspect.getsource(Fetcher.PartitionRecords._unpack_records)
    assert "self.next_fetch_offset = record.offset + 1" in inspect.getsource(
        Fetcher.PartitionRecords._unpack_records
    )
    assert "if not self._decompressed:" in inspect.getsource(LegacyRecordBatch.__iter__)
    assert "self._next_slice" in inspect.getsource(MemoryRecords.next_batch)
    assert "self._maybe_uncompress()" in inspect.getsource(DefaultRecordBatch.__iter__)


def _small(topic: TopicFactory) -> KafkaConfig:
    kafka = topic(partitions=1)
    return KafkaConfig(
        bootstrap_servers=kafka.bootstrap_servers,
        topic=kafka.topic,
        partitions=1,
        max_record_bytes=100_000,
        max_batch_bytes=2_000_000,
    )


def _publish(kafka: KafkaConfig, compression: str, values: list[bytes]) -> None:
    """Each value in a batch of its own, as a producer would that knows no limit."""
    client = producer(
        kafka, compression_type=compression, max_request_size=1 << 30, buffer_memory=1 << 30, linger_ms=0
    )
    for value in values:
        client.send(kafka.topic, key=b"k", value=value, partition=0).get(60)
    client.close()


@pytest.mark.broker
@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_bomb_on_a_topic_is_told_and_the_reading_goes_on(topic: TopicFactory, compression: str) -> None:
    """From a real broker: the bomb's place and why, before and after it the records as they were published."""
    kafka = _small(topic)
    _publish(kafka, compression, [b"before", bytes(30_000_000), b"after"])
    with RecordSource(kafka, {0: 0}, SourceConfig()) as source:
        records = []
        while len(records) < 3:
            records += source.poll(0.5)
        assert source.positions() == {0: 3}
    assert [(r.offset, r.value, r.key) for r in records] == [
        (0, b"before", b"k"),
        (1, b"", None),
        (2, b"after", b"k"),
    ]
    assert "2,000,000" in records[1].unreadable and not records[0].unreadable


@pytest.mark.broker
def test_poll_ends_once_it_has_unpacked_enough(topic: TopicFactory) -> None:
    """Many records that each fit do not come in one poll: it hands out what it has, and the next goes on."""
    kafka = _small(topic)
    _publish(kafka, "zstd", [bytes(1_500_000)] * 8)
    with RecordSource(kafka, {0: 0}, SourceConfig()) as source:
        polls = []
        while sum(polls) < 8:
            polls.append(len(source.poll(0.5)))
    assert max(polls) == 2


@pytest.mark.broker
def test_unread_record_becomes_a_dead_letter_that_cannot_be_replayed(topic: TopicFactory) -> None:
    """Its place and its reason are kept; there is nothing to publish again."""
    kafka = _small(topic)
    _publish(kafka, "zstd", [bytes(30_000_000)])
    with RecordSource(kafka, {0: 0}, SourceConfig()) as source, DeadLetterWriter(kafka) as writer:
        (record,) = source.poll(10.0)
        writer.send(record, "unreadable", record.unreadable)
    (letter,) = read_dead_letters(kafka)
    assert (letter.topic, letter.partition, letter.offset) == (kafka.topic, 0, 0)
    assert letter.reason == "unreadable" and not letter.replayable
    with pytest.raises(BadData, match="nothing of it was kept"):
        replay_dead_letters(kafka, [letter])
