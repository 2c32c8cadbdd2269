"""Records that cannot be articles: kept on `<topic>.dlq` with their cause, listed, and published again.

A dead letter is the original key, value and headers, plus headers of ours that say why, from where and how
often it was tried. Publishing it again writes a mark beside it, so that it is not listed or published twice.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.article import isoformat
from pipeline.errors import BadData, DependencyUnreachable, UsageError
from pipeline.kafka import HEADER_ROOM_BYTES, KafkaConfig, topic_partitions
from pipeline.publisher import Publisher
from pipeline.source import Record, RecordSource

PREFIX = "dysra-"
ATTEMPTS_HEADER = "dysra-attempts"
HEAD_BYTES = 65_536
"""What is kept of a value that the dead-letter topic does not take."""

_MAX_DETAIL_CHARS = 2_000
_FRAMING_BYTES = 4_096
_READ_LIMIT_S = 30.0
_REPLAY_BATCH = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """One record that was put aside. `replayable` is false where only the head of the value was kept."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    reason: str
    detail: str
    attempts: int
    time: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    value_bytes: int
    replayable: bool

    @property
    def id(self) -> str:
        """Names the record by where it was read: topic:partition:offset."""
        return f"{self.topic}:{self.partition}:{self.offset}"


class DeadLetterWriter:
    """Puts records aside, acknowledged before `send` returns. Connects at the first record."""

    def __init__(self, config: KafkaConfig) -> None:
        self.config = config
        self._publisher: Publisher | None = None

    def send(self, record: Record, reason: str, detail: str) -> None:
        """Put one record aside; `reason` is a short code, `detail` a sentence. PublishFailed if that fails."""
        self.send_many([(record, reason, detail)])

    def send_many(self, letters: Iterable[tuple[Record, str, str]], timeout_s: float = 60.0) -> int:
        """Put (record, reason, detail) aside, all acknowledged on return; how many they were."""
        count = 0
        for record, reason, detail in letters:
            publisher = self._require_publisher()
            key, value, headers = _dead_letter(record, reason, detail, self.config.max_record_bytes)
            publisher.publish_raw(
                key, value, partition=record.partition % publisher.num_partitions, headers=headers
            )
            count += 1
        if count:
            self._require_publisher().flush(timeout_s)
        return count

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None

    def __enter__(self) -> DeadLetterWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _require_publisher(self) -> Publisher:
        if self._publisher is None:
            self._publisher = Publisher(self.config, topic=self.config.dead_letter_topic)
        return self._publisher


def read_dead_letters(config: KafkaConfig) -> Iterator[DeadLetter]:
    """Every dead letter of the topic that was not published again since, once each, oldest first.

    A record that was put aside twice (ingest was killed in between) comes once. UsageError if neither the
    topic nor its dead-letter topic exists.
    """
    try:
        topic_partitions(config, config.dead_letter_topic)
    except UsageError:
        topic_partitions(config, config.topic)
        return
    resolved = {_coordinate(dict(r.headers)) for r in _records(config) if _is_mark(r)}
    seen = set()
    for record in _records(config):
        if _is_mark(record):
            continue
        letter = _parse(record)
        coordinate = (letter.topic, letter.partition, letter.offset)
        if coordinate not in resolved and coordinate not in seen:
            seen.add(coordinate)
            yield letter


def replay_dead_letters(config: KafkaConfig, letters: Iterable[DeadLetter]) -> int:
    """Publish dead letters to where they came from, on their partition, marked as done; how many they were.

    Each carries how often it was tried, so that a record that fails again is seen to. BadData for a letter
    that is not replayable.
    """
    count = 0
    publishers: dict[str, Publisher] = {}
    remaining = iter(letters)
    try:
        while batch := list(itertools.islice(remaining, _REPLAY_BATCH)):
            for letter in batch:
                _republish(config, publishers, letter)
            # Acknowledged first, marked second: a kill in between repeats records and never loses one.
            for publisher in publishers.values():
                publisher.flush()
            marks = _publisher(config, publishers, config.dead_letter_topic)
            for letter in batch:
                place = letter.partition % marks.num_partitions
                marks.publish_raw(letter.key, b"", partition=place, headers=_mark(letter))
            marks.flush()
            count += len(batch)
    finally:
        for publisher in publishers.values():
            publisher.close()
    return count


def _republish(config: KafkaConfig, publishers: dict[str, Publisher], letter: DeadLetter) -> None:
    if not letter.replayable:
        raise BadData(
            f"dead letter {letter.id} cannot be published again: its head or nothing of it was kept, or it has "
            "neither key nor value"
        )
    publisher = _publisher(config, publishers, letter.topic)
    headers = [*letter.headers, (ATTEMPTS_HEADER, str(letter.attempts).encode())]
    place = letter.partition % publisher.num_partitions
    publisher.publish_raw(letter.key, letter.value, partition=place, headers=headers)


def _publisher(config: KafkaConfig, publishers: dict[str, Publisher], topic: str) -> Publisher:
    if topic not in publishers:
        publishers[topic] = Publisher(config, topic=topic)
    return publishers[topic]


def _dead_letter(
    record: Record, reason: str, detail: str, max_bytes: int
) -> tuple[bytes | None, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers as they go to the dead-letter topic."""
    key, value = record.key, record.value or b""
    facts: dict[str, str | int] = {
        "reason": reason,
        "detail": detail[:_MAX_DETAIL_CHARS],
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp-ms": record.timestamp_ms,
        "attempts": attempts_of(record) + 1,
        "time": isoformat(datetime.now(UTC)),
        "value-bytes": -1 if record.value is None else len(record.value),
    }
    if record.unreadable:
        facts["kept"] = "nothing"
    original = [(name, body) for name, body in record.headers if not name.startswith(PREFIX)]
    # The topic's limit counts key, value, headers and framing together.
    room = max_bytes + HEADER_ROOM_BYTES - _FRAMING_BYTES - 4 * _MAX_DETAIL_CHARS
    others = len(key or b"") + sum(len(name) + len(body) + 16 for name, body in original)
    if others + len(value) > room:
        facts["value-sha256"] = hashlib.sha256(value).hexdigest()
        facts["kept"] = "head"
        if others > room // 2:
            key, original = (key[:1_024] if key else key), []
            facts["kept"] = "head, without headers"
        value = value[: min(HEAD_BYTES, room // 4)]
    return key, value, [*original, *((PREFIX + name, str(fact).encode()) for name, fact in facts.items())]


def attempts_of(record: Record) -> int:
    """How often this record was tried and put aside before."""
    text = dict(record.headers).get(ATTEMPTS_HEADER, b"0")
    return int(text) if text.isdigit() and len(text) < 10 else 0


def _parse(record: Record) -> DeadLetter:
    facts = {name[len(PREFIX) :]: body for name, body in record.headers if name.startswith(PREFIX)}
    topic, partition, offset = _coordinate(dict(record.headers), record)
    value_bytes = _number(facts, "value-bytes", len(record.value or b""))
    return DeadLetter(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=_number(facts, "timestamp-ms", record.timestamp_ms),
        reason=facts.get("reason", b"unknown").decode(errors="replace"),
        detail=facts.get("detail", b"").decode(errors="replace"),
        attempts=_number(facts, "attempts", 1),
        time=facts.get("time", b"").decode(errors="replace"),
        key=record.key,
        value=None if value_bytes < 0 else record.value,
        headers=tuple((name, body) for name, body in record.headers if not name.startswith(PREFIX)),
        value_bytes=max(0, value_bytes),
        # The client refuses a record with neither key nor value.
        replayable="kept" not in facts and not (record.key is None and value_bytes < 0),
    )


def _coordinate(headers: Mapping[str, bytes], record: Record | None = None) -> tuple[str, int, int]:
    """Where the record was read; a foreign record on the dead-letter topic stands for itself."""
    try:
        topic = headers[PREFIX + "topic"].decode()
        return topic, int(headers[PREFIX + "partition"]), int(headers[PREFIX + "offset"])
    except (KeyError, ValueError):
        return (record.topic, record.partition, record.offset) if record else ("", -1, -1)


def _number(facts: Mapping[str, bytes], name: str, otherwise: int) -> int:
    try:
        return int(facts[name])
    except (KeyError, ValueError):
        return otherwise


def _mark(letter: DeadLetter) -> list[tuple[str, bytes]]:
    facts = {"topic": letter.topic, "partition": letter.partition, "offset": letter.offset}
    facts["replayed"] = isoformat(datetime.now(UTC))
    return [(PREFIX + name, str(fact).encode()) for name, fact in facts.items()]


def _is_mark(record: Record) -> bool:
    return any(name == PREFIX + "replayed" for name, _ in record.headers)


def _records(config: KafkaConfig) -> Iterator[Record]:
    """Every record that the dead-letter topic holds now."""
    topic = config.dead_letter_topic
    partitions = topic_partitions(config, topic)
    with RecordSource(config, dict.fromkeys(partitions), topic=topic) as source:
        ends = source.end_offsets()
        last = time.monotonic()
        while any(source.positions()[partition] < end for partition, end in ends.items()):
            records = source.poll(0.5)
            for record in records:
                if record.offset < ends[record.partition]:
                    yield record
            if records:
                last = time.monotonic()
            elif time.monotonic() - last > _READ_LIMIT_S:
                raise DependencyUnreachable(
                    f"topic {topic} at {config.describe()} gave no record for {_READ_LIMIT_S:.0f} s, "
                    "though it has some"
                )
