"""Reads given partitions of a topic from given offsets, over broker loss and stalls of the client.

The caller owns the offsets: it says where to start, and commits what it has made durable. One thread makes,
polls and closes a source. Every call has a limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from pipeline.bounded_batches import Unreadable, bound
from pipeline.errors import BadData, DependencyUnreachable, UsageError
from pipeline.kafka import HEADER_ROOM_BYTES, KafkaConfig, consumer, topic_partitions, unreachable
from pipeline.log import get_logger
from pipeline.source_config import Record, SourceConfig, SourceStats

__all__ = ["Record", "RecordSource", "SourceConfig", "SourceStats"]


_TOPIC_GRACE_S = 15.0


class RecordSource:
    """A consumer of `offsets` (partition -> next offset, None: where `SourceConfig.start` says) of a topic.

    Raises UsageError for a topic or partition that is not there, DependencyUnreachable if no broker answers.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        offsets: Mapping[int, int | None],
        config: SourceConfig | None = None,
        *,
        topic: str | None = None,
    ) -> None:
        self.kafka = kafka
        self.config = config or SourceConfig()
        self.topic = topic or kafka.topic
        self.stats = SourceStats()
        self._log = get_logger(topic=self.topic)
        self._paused: set[int] = set()
        self._idle_s: dict[int, float] = {}
        self._ends: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._outage_since: float | None = None
        self._check_at = 0.0
        self._barren_stalls = 0
        self._client: KafkaConsumer | None = self._connect()
        try:
            self.assign(offsets)
        except BaseException:
            self.close()
            raise

    def assign(self, offsets: Mapping[int, int | None]) -> None:
        """Replace the partitions that are read, each from its offset; all start unpaused."""
        present = topic_partitions(self.kafka, self.topic)
        for partition, offset in offsets.items():
            if partition not in present:
                raise UsageError(
                    f"topic {self.topic} has partitions 0 to {len(present) - 1}; {partition} was asked for"
                )
            if offset is not None and offset < 0:
                raise UsageError(f"offset {offset} of {self.topic}[{partition}] is negative")
        client = self._require_client()
        unknown = [TopicPartition(self.topic, p) for p, offset in offsets.items() if offset is None]
        try:
            ask = client.beginning_offsets if self.config.start == "earliest" else client.end_offsets
            begin = ask(unknown) if unknown else {}
        except kafka_errors.KafkaError as error:
            raise unreachable(self.kafka, error) from error
        self._next = {
            partition: begin[TopicPartition(self.topic, partition)] if offset is None else offset
            for partition, offset in offsets.items()
        }
        self._paused.clear()
        self._idle_s = dict.fromkeys(self._next, 0.0)
        self._seek_all(client)

    @property
    def partitions(self) -> list[int]:
        """The partitions that are read."""
        return sorted(self._next)

    def positions(self) -> dict[int, int]:
        """The next offset of each partition: all before it were returned by `poll` (or skipped by Kafka)."""
        return dict(self._next)

    def poll(self, timeout_s: float = 0.5) -> list[Record]:
        """Up to `max_records` records, in offset order within a partition; empty if none came in time.

        While no broker answers it returns nothing and may take some seconds longer than `timeout_s`. Raises
        DependencyUnreachable after `outage_limit_s` of that, BadData for a damaged record and for an offset
        beyond the end, UsageError for a topic that went away or may not be read.
        """
        started = time.monotonic()
        try:
            records = self._take(self._require_client(), timeout_s)
        except DependencyUnreachable as error:
            self._outage(error)
            time.sleep(max(0.0, min(timeout_s, 1.0) - (time.monotonic() - started)))
            return []
        if not self._next:
            return records
        moved = {record.partition for record in records}
        spent_s = time.monotonic() - started
        for partition in self._next:
            if partition in moved or partition in self._paused:
                self._idle_s[partition] = 0.0
            else:
                self._idle_s[partition] += spent_s
        if records:
            self._barren_stalls = 0
        if time.monotonic() >= self._check_at:
            self._check()
        return records

    def pause(self, partitions: Iterable[int]) -> None:
        """Stop returning records of these partitions; keep polling, so that the client stays alive."""
        wanted = set(partitions) & set(self._next)
        self._paused |= wanted
        if self._client is not None and wanted:
            self._client.pause(*(TopicPartition(self.topic, p) for p in wanted))

    def resume(self, partitions: Iterable[int]) -> None:
        """Return records of these partitions again, from where they were paused."""
        wanted = set(partitions) & self._paused
        self._paused -= wanted
        for partition in wanted:
            self._idle_s[partition] = 0.0
        if self._client is not None and wanted:
            self._client.resume(*(TopicPartition(self.topic, p) for p in wanted))

    @property
    def paused(self) -> frozenset[int]:
        """Partitions that are paused."""
        return frozenset(self._paused)

    def end_offsets(self, timeout_s: float = 5.0) -> dict[int, int]:
        """The offset that each partition's next record will get; DependencyUnreachable if none answers."""
        try:
            ends = self._require_client().end_offsets(self._places(), timeout_ms=int(1_000 * timeout_s))
        except kafka_errors.KafkaError as error:
            raise unreachable(self.kafka, error) from error
        self._ends = {place.partition: offset for place, offset in ends.items()}
        return dict(self._ends)

    def lag(self) -> dict[int, int]:
        """Records between the position and the end as last looked at by `poll`; no request is made."""
        return {p: max(0, self._ends.get(p, offset) - offset) for p, offset in self._next.items()}

    def commit(self, offsets: Mapping[int, int], timeout_s: float = 5.0) -> bool:
        """Tell the group the next offsets, for Kafka's own lag tools. False (and an event) if that failed.

        A failure loses nothing: the store's own offsets decide where reading starts again.
        """
        entries = {
            TopicPartition(self.topic, partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
        }
        if not entries:
            return True
        try:
            self._require_client().commit(entries, timeout_ms=int(1_000 * timeout_s))
        except (kafka_errors.KafkaError, DependencyUnreachable) as error:
            self.stats.failed_commits += 1
            self._log.warning("group_commit_failed", group_id=self.kafka.group_id, error=str(error))
            return False
        return True

    def committed(self, timeout_s: float = 5.0) -> dict[int, int | None]:
        """The group's offset of each partition, None where it has none."""
        client = self._require_client()
        try:
            return {
                place.partition: client.committed(place, timeout_ms=int(1_000 * timeout_s))
                for place in self._places()
            }
        except kafka_errors.KafkaError as error:
            raise unreachable(self.kafka, error) from error

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        if self._client is not None:
            self._client.close(autocommit=False, timeout_ms=2_000)
            self._client = None

    def __enter__(self) -> RecordSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _take(self, client: KafkaConsumer, timeout_s: float) -> list[Record]:
        self._begin_poll()
        try:
            batches = client.poll(timeout_ms=int(1_000 * timeout_s), max_records=self.config.max_records)
        except kafka_errors.OffsetOutOfRangeError as error:
            self._repair(client, error.args[0])
            return []
        except kafka_errors.LogTruncationError as error:
            self._repair(client, {place: self._next[place.partition] for place in error.divergent_offsets})
            return []
        except kafka_errors.AuthorizationError as error:
            raise UsageError(
                f"topic {self.topic} at {self.kafka.describe()} may not be read: {error}"
            ) from error
        except (kafka_errors.CorruptRecordError, kafka_errors.UnsupportedCodecError) as error:
            raise BadData(
                f"a record of topic {self.topic} at or after offsets {self._next} cannot be read: {error}"
            ) from error
        except kafka_errors.KafkaError as error:
            raise unreachable(self.kafka, error) from error
        records: list[Record] = []
        for place, batch in batches.items():
            self._next[place.partition] = batch[-1].offset + 1
            for one in batch:
                # Records of the first format have no time; Kafka's own word for none is -1.
                place_of = (
                    one.topic,
                    one.partition,
                    one.offset,
                    -1 if one.timestamp is None else one.timestamp,
                )
                if isinstance(one.value, Unreadable):
                    records.append(Record(*place_of, None, b"", (), one.value.why))
                    continue
                headers = tuple((name, value or b"") for name, value in one.headers) if one.headers else ()
                records.append(Record(*place_of, one.key, one.value, headers))
        self.stats.records += len(records)
        return records

    def _repair(self, client: KafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        """Move positions that the broker does not hold to the oldest record it does hold."""
        places = list(offsets)
        try:
            first = client.beginning_offsets(places, timeout_ms=5_000)
            last = client.end_offsets(places, timeout_ms=5_000)
        except kafka_errors.KafkaError as error:
            raise unreachable(self.kafka, error) from error
        for place in places:
            partition, given = place.partition, self._next[place.partition]
            beyond = given > last[place]
            if beyond and not self.config.reset_beyond_end:
                raise BadData(
                    f"offset {given} of {self.topic}[{partition}] lies beyond its end, {last[place]}: "
                    "the topic was deleted and made anew, or lost records. Read another topic, start with an "
                    "empty store, or bring the records back"
                )
            target = first[place] if beyond else max(given, first[place])
            expired = max(0, target - given)
            self.stats.offset_resets += 1
            self.stats.records_expired += expired
            self._log.warning(
                "offset_out_of_range",
                partition=partition,
                offset=given,
                earliest=first[place],
                end=last[place],
                continues_at=target,
                records_expired=expired,
            )
            self._next[partition] = target
            client.seek(place, target)

    def _check(self) -> None:
        """Look at the end offsets: notice an outage, its end, and partitions that stand still."""
        config = self.config
        try:
            client = self._require_client()
            ends = self.end_offsets(timeout_s=min(3.0, config.check_s))
            for place in self._places():
                # Control records and compacted ones move the position without a record being returned.
                position = client.position(place, timeout_ms=1_000)
                if position is not None and position > self._next[place.partition]:
                    self._next[place.partition] = position
                    self._idle_s[place.partition] = 0.0
        except DependencyUnreachable as error:
            self._outage(error)
            return
        except kafka_errors.KafkaError as error:
            self._outage(unreachable(self.kafka, error))
            return
        self._check_at = time.monotonic() + config.check_s
        if self._outage_since is not None:
            self._log.info("broker_back", seconds=round(time.monotonic() - self._outage_since, 1))
            self._outage_since = None
            self._idle_s = dict.fromkeys(self._next, 0.0)
        for partition in set(self._next) - self._paused:
            if ends[partition] <= self._next[partition]:
                self._idle_s[partition] = 0.0
            elif self._idle_s[partition] >= config.stall_s:
                self._renew(partition, ends[partition])
                return

    def _renew(self, partition: int, end: int) -> None:
        """Replace a client that stands still although records wait."""
        self.stats.stalls += 1
        self._barren_stalls += 1
        where = f"{self.topic}[{partition}] at offset {self._next[partition]} of {end}"
        if self._barren_stalls > self.config.max_stalls:
            raise DependencyUnreachable(
                f"{where} does not move, and {self.config.max_stalls} new clients in a row did not help; "
                "look at the broker's log"
            )
        self._log.warning(
            "consumer_stalled",
            partition=partition,
            offset=self._next[partition],
            end=end,
            stalls=self.stats.stalls,
        )
        self._idle_s = dict.fromkeys(self._next, 0.0)
        self.close()

    def _outage(self, error: DependencyUnreachable) -> None:
        now = time.monotonic()
        if self._outage_since is None:
            self._outage_since = now
            self.stats.outages += 1
            self._log.warning("broker_lost", error=str(error))
        lasted_s = now - self._outage_since
        try:
            topic_partitions(replace(self.kafka, connect_timeout_s=1.0), self.topic)
        except UsageError:
            # The brokers answer and the topic is gone; one that just restarts may not know it yet.
            if lasted_s > _TOPIC_GRACE_S:
                raise
        except DependencyUnreachable:
            pass
        self._check_at = time.monotonic() + min(10.0, max(1.0, lasted_s / 2))
        if lasted_s > self.config.outage_limit_s:
            raise DependencyUnreachable(f"{error} (gave up after {lasted_s:.0f} s)")

    def _require_client(self) -> KafkaConsumer:
        if self._client is None:
            self._client = self._connect()
            self._seek_all(self._client)
        return self._client

    def _connect(self) -> KafkaConsumer:
        client = consumer(self.kafka)
        room = self.kafka.max_record_bytes + HEADER_ROOM_BYTES
        self._begin_poll = bound(client, max(self.kafka.max_batch_bytes, room))
        return client

    def _seek_all(self, client: KafkaConsumer) -> None:
        client.assign(self._places())
        for place in self._places():
            client.seek(place, self._next[place.partition])
        if self._paused:
            client.pause(*(TopicPartition(self.topic, p) for p in sorted(self._paused)))

    def _places(self) -> list[TopicPartition]:
        return [TopicPartition(self.topic, partition) for partition in sorted(self._next)]
