"""Compressed batches of Kafka unpacked within a limit: a few kilobytes on the topic cannot take all memory.

kafka-python unpacks a batch whole before anyone sees its size. `bound` gives one consumer (and no other) parts that
unpack piece by piece and stop at the limit. The records of a batch that is larger, or that cannot be unpacked, come
out one by one with their offsets and an `Unreadable` for a value, so that they can be put aside and counted. A poll
ends, with the records it has by then, once it has unpacked as much as one batch may hold.

Rests on private parts of kafka-python 3.0; `tests/pipeline/test_bounded_batches.py` holds the contract.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import xxhash
import zstandard
from kafka import KafkaConsumer, codec
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch

_PIECE = 262_144
_INPUT_PIECE = 65_536
_MAX_WINDOW = 1 << 27
_XERIAL_HEAD = 16
_LZ4_HEAD, _LZ4_SIZE = 7, 0x08
_LEAST_RECORD = 26
"""Bytes of the smallest record of the format before 2017."""


class Unreadable(bytes):
    """Stands for the value of a record whose batch was not unpacked; empty, and says why."""

    why: str

    @classmethod
    def because(cls, why: str) -> Unreadable:
        """One with its reason."""
        made = cls()
        made.why = why
        return made


class TooLarge(ValueError):
    """A batch unpacks to more than it may."""


@dataclass(slots=True)
class _Budget:
    """What one poll may still unpack, in bytes."""

    limit: int
    left: int = 0


def bound(client: KafkaConsumer, limit_bytes: int) -> Callable[[], None]:
    """Make the consumer unpack at most `limit_bytes` of a batch, and about as much in a poll.

    Call what is returned before every poll.
    """
    budget = _Budget(limit_bytes, limit_bytes)
    fetcher = client._fetcher
    append = fetcher._append

    class Records(_PartitionRecords):
        """Knows this consumer's budget."""

        poll_budget = budget

    def append_within(drained: Any, part: Any, max_records: int, update_offsets: bool) -> int:
        taken = int(append(drained, part, max_records, update_offsets))
        return max_records if budget.left <= 0 else taken  # all that was asked for: the poll ends

    fetcher.PartitionRecords = Records
    fetcher._append = append_within

    def begin() -> None:
        budget.left = budget.limit

    return begin


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc] # kafka-python has no types
    """Records of one fetch, unpacked as they are taken, within the poll's budget."""

    poll_budget: _Budget

    def take(self, n: int | None = None) -> list[Any]:
        """Up to `n` records; fewer, but one, once the budget is spent."""
        self._maybe_raise_next_inline_exception()
        taken: list[Any] = []
        try:
            while self.record_iterator is not None and (n is None or len(taken) < n):
                record = next(self.record_iterator, None)
                if record is None:
                    break
                taken.append(record)
                self.poll_budget.left -= max(0, record.serialized_key_size) + max(
                    0, record.serialized_value_size
                )
                if self.poll_budget.left <= 0:
                    break
        except Exception as error:
            if not taken:
                raise
            self._next_inline_exception = error
        return taken

    def _unpack_records(self, place: Any, records: Any, *others: Any) -> Iterator[Any]:
        bounded = _Batches(records, self.poll_budget, lambda: int(self.next_fetch_offset))
        found: Iterator[Any] = super()._unpack_records(place, bounded, *others)
        return found


class _Batches:
    """The batches of a fetch, each of a kind that unpacks within a limit."""

    def __init__(self, records: Any, budget: _Budget, due: Callable[[], int] = lambda: 0) -> None:
        """`due` says which offset comes next."""
        self._records = records
        self._budget = budget
        self._due = due

    def next_batch(self) -> Any:
        """The next one, None after the last."""
        raw = self._records._next_slice
        batch = self._records.next_batch()
        if batch is None or batch.compression_type == DefaultRecordBatch.CODEC_NONE:
            return batch
        if isinstance(batch, LegacyRecordBatch):
            return _LegacyBatch(raw, batch.magic, self._budget, self._due)
        return _Batch(raw, self._budget)


class _Batch(DefaultRecordBatch):  # type: ignore[misc] # kafka-python has no types
    """A batch of the present format."""

    _buffer: bytearray
    _pos: int
    _decompressed: bool

    def __init__(self, raw: Any, budget: _Budget) -> None:
        super().__init__(raw)
        self._budget = budget
        self._why = ""

    def _maybe_uncompress(self) -> None:
        if self._decompressed:
            return
        self._assert_has_codec(self.compression_type)
        data = memoryview(self._buffer)[self._pos :]
        size, limit = len(data), self._budget.limit
        try:
            self._buffer = unpack(data, self.compression_type, limit)
        except TooLarge:
            self._why = f"its batch of {size:,} bytes unpacks to more than {limit:,} (kafka.max_batch_bytes)"
            self._budget.left -= limit  # the work was done: a row of such batches must not hold up a poll
        except UNPACKING as error:
            self._why = f"its batch cannot be unpacked: {type(error).__name__}: {error}"
        if self._why:
            self._buffer = bytearray()
        self._pos = 0
        self._decompressed = True

    def __next__(self) -> Any:
        if not self._why:
            return super().__next__()
        if self._next_record_index >= self._num_records:
            raise StopIteration
        number = self._next_record_index
        self._next_record_index += 1
        return DefaultRecord(
            0,
            # a compacted batch says how many records it has left, not which
            self.base_offset + number,
            self.max_timestamp,
            self.timestamp_type,
            None,
            Unreadable.because(self._why),
            [],
        )

    next = __next__


class _LegacyBatch(LegacyRecordBatch):  # type: ignore[misc] # kafka-python has no types
    """A batch as brokers wrote them before 2017.

    Such a batch says which offset its last record has and not how many it holds. Of one that is not unpacked every
    offset from the next one due up to its last is told.
    """

    _buffer: memoryview
    _decompressed: bool
    _offset: int

    def __init__(self, raw: Any, magic: int, budget: _Budget, due: Callable[[], int]) -> None:
        super().__init__(raw, magic)
        self._budget = budget
        self._due = due

    def __iter__(self) -> Iterator[Any]:
        why = "" if self._decompressed else self._unpack()
        records: list[Any] = []
        try:
            if not why:
                records = list(super().__iter__())
        except (AssertionError, IndexError, TypeError, ValueError, struct.error) as error:
            why = f"what its batch unpacks to are no records: {type(error).__name__}: {error}"
        yield from self._told(why) if why else records

    def _unpack(self) -> str:
        """Unpack within the limit; why not, where it cannot be."""
        limit = self._budget.limit
        try:
            data = self._packed()
            self._buffer = memoryview(unpack(data, self.compression_type, limit))
        except TooLarge:
            self._budget.left -= limit  # the work was done: a row of such batches must not hold up a poll
            size = self.size_in_bytes
            return f"its batch of {size:,} bytes unpacks to more than {limit:,} (kafka.max_batch_bytes)"
        except (*UNPACKING, struct.error, IndexError) as error:
            return f"its batch cannot be unpacked: {type(error).__name__}: {error}"
        self._decompressed = True
        return ""

    def _packed(self) -> bytes:
        """The value of the one record that holds the others."""
        self._assert_has_codec(self.compression_type)
        at = self.KEY_OFFSET_V1 if self._magic == 1 else self.KEY_OFFSET_V0
        (key_size,) = struct.unpack_from(">i", self._buffer, at)
        at += self.KEY_LENGTH + max(0, key_size)
        (size,) = struct.unpack_from(">i", self._buffer, at)
        at += self.VALUE_LENGTH
        if not 0 <= size <= len(self._buffer) - at:
            raise ValueError(f"it gives its own length as {size}")
        data = bytes(self._buffer[at : at + size])
        if self._magic == 0 and self.compression_type == self.CODEC_LZ4:
            head = _LZ4_HEAD + (
                8 if data[4] & _LZ4_SIZE else 0
            )  # its checksum was wrongly made in those days
            right = xxhash.xxh32(data[4 : head - 1]).digest()[-2:-1]
            data = data[: head - 1] + right + data[head:]
        return data

    def _told(self, why: str) -> Iterator[Any]:
        """A record for each offset, without its content."""
        most = max(1, self._budget.limit // _LEAST_RECORD)  # a compacted topic may have a gap of any length
        for offset in range(max(self._due(), self._offset - most + 1), self._offset + 1):
            stamp = -1 if self._timestamp is None else self._timestamp
            yield DefaultRecord(0, offset, stamp, self.timestamp_type, None, Unreadable.because(why), [])


def unpack(data: Any, kind: int, limit: int) -> bytearray:
    """The bytes of a compressed batch; TooLarge once they are more than `limit`, one of UNPACKING for damage."""
    if kind == DefaultRecordBatch.CODEC_SNAPPY:
        if snappy_size(data) > limit:
            raise TooLarge
        return bytearray(codec.snappy_decode(bytes(data)))
    pieces = {
        DefaultRecordBatch.CODEC_GZIP: _gzip,
        DefaultRecordBatch.CODEC_LZ4: _lz4,
        DefaultRecordBatch.CODEC_ZSTD: _zstd,
    }[kind]
    unpacked = bytearray()
    for piece in pieces(data):
        unpacked += piece
        if len(unpacked) > limit:
            raise TooLarge
    return unpacked


def _zstd(data: Any) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    with decompressor.stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        while piece := reader.read(_PIECE):
            yield piece


def _gzip(data: Any) -> Iterator[bytes]:
    decompressor = zlib.decompressobj(wbits=31)
    for at in range(0, len(data), _INPUT_PIECE):
        left = bytes(data[at : at + _INPUT_PIECE])
        while left:
            yield decompressor.decompress(left, _PIECE)
            left = decompressor.unconsumed_tail
            if decompressor.eof:
                left = decompressor.unused_data
                decompressor = zlib.decompressobj(wbits=31)


def _lz4(data: Any) -> Iterator[bytes]:
    decompressor = codec.lz4.LZ4FrameDecompressor()
    for at in range(0, len(data), _INPUT_PIECE):
        yield decompressor.decompress(bytes(data[at : at + _INPUT_PIECE]), max_length=_PIECE)
        while not decompressor.needs_input and not decompressor.eof:
            yield decompressor.decompress(b"", max_length=_PIECE)
        if decompressor.eof:
            return


def snappy_size(data: Any) -> int:
    """What snappy data says that it unpacks to, in one block or in the frames of the Java client."""
    if bytes(data[:8]) != b"\x82SNAPPY\x00":
        return _varint(data)
    total, at = 0, _XERIAL_HEAD
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        total += _varint(data[at + 4 : at + 9])
        at += 4 + size
    return total


def _varint(data: Any) -> int:
    value = 0
    for place, byte in enumerate(bytes(data[:5])):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return value


UNPACKING = (zlib.error, zstandard.ZstdError, RuntimeError, EOFError, ValueError, OSError)
"""What the decompressors raise for damaged data."""
