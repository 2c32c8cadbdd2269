"""Publishes articles to a topic: idempotent, a stream on one partition, acknowledgements counted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from kafka import errors as kafka_errors
from kafka.partitioner.default import murmur2

from pipeline.article import DELETE_ID_HEADER, Article, default_stream
from pipeline.errors import BadData, DependencyUnreachable
from pipeline.kafka import KafkaConfig, ensure_topic, producer

Headers = Sequence[tuple[str, bytes]]

_IN_FLIGHT_BYTES = 32 * 1_048_576
_IN_FLIGHT_RECORDS = 20_000
_RECORD_OVERHEAD_BYTES = 100


def partition_of(stream: str, num_partitions: int) -> int:
    """The partition that holds all of a stream: murmur2 of its name, as Java clients hash keys."""
    return int((murmur2(stream.encode()) & 0x7FFFFFFF) % num_partitions)


class PublishFailed(DependencyUnreachable):
    """Some records were not acknowledged; the message has the counts and the first cause."""


class RecordTooLarge(BadData):
    """One record that the topic does not take; the publisher goes on with the next."""


class Publisher:
    """Sends records and counts their acknowledgements; creates the topic if there is none.

    Memory is bounded: `publish` waits while 32 MiB or 20,000 records are not yet acknowledged. `on_ack` runs
    in the client's own thread, in offset order within a partition, so it must be quick. Raises PublishFailed
    (from any method) once a record could not be delivered, RecordTooLarge for one that the topic cannot take.
    """

    def __init__(self, config: KafkaConfig, *, topic: str | None = None) -> None:
        self.config = config
        self.topic = topic or config.topic
        self.num_partitions = ensure_topic(config, self.topic)
        self.sent = 0
        self.acked = 0
        self.failed = 0
        self.acked_bytes = 0
        self._in_flight_bytes = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._partitions: dict[str, int] = {}
        self._producer = producer(config)

    def publish(self, article: Article, on_ack: Callable[[], None] | None = None) -> None:
        """Publish one article, keyed by its id, on its stream's partition."""
        stream = article.stream or default_stream(article.source)
        self.publish_raw(article.id.encode(), article.to_json(), stream=stream, on_ack=on_ack)

    def delete(self, article_id: str, stream: str, on_ack: Callable[[], None] | None = None) -> None:
        """Publish the withdrawal of an article, on its stream's partition so that it stays in order."""
        key = article_id.encode()
        self.publish_raw(key, None, stream=stream, headers=[(DELETE_ID_HEADER, key)], on_ack=on_ack)

    def publish_raw(
        self,
        key: bytes | None,
        value: bytes | None,
        *,
        stream: str | None = None,
        partition: int | None = None,
        headers: Headers = (),
        on_ack: Callable[[], None] | None = None,
    ) -> None:
        """Publish any record, on `partition`, else on the stream's one, else on the key's."""
        if partition is None and stream is not None:
            partition = self._partitions.get(stream)
            if partition is None:
                partition = self._partitions[stream] = partition_of(stream, self.num_partitions)
        size = _RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
        self._wait_for_room(size)
        try:
            future = self._producer.send(
                self.topic, value=value, key=key, headers=list(headers), partition=partition
            )
        except kafka_errors.MessageSizeTooLargeError:
            self._settle(size, None)
            raise RecordTooLarge(
                f"a record of {size} bytes is more than topic {self.topic} takes "
                f"({self.config.max_record_bytes}); raise kafka.max_record_bytes or leave the record out"
            ) from None
        except kafka_errors.KafkaError as error:
            self._settle(size, error)
            self._raise_failure()
            return
        self.sent += 1
        future.add_callback(self._acknowledged, size, on_ack)
        future.add_errback(self._refused, size)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Return once every record is acknowledged; PublishFailed with the counts if that does not happen."""
        try:
            self._producer.flush(timeout=timeout_s)
        except kafka_errors.KafkaError as error:
            with self._changed:
                self._error = self._error or error
        # The last callbacks may still be running when flush returns.
        deadline = time.monotonic() + 5.0
        with self._changed:
            while self.acked + self.failed < self.sent and self._error is None:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
        if self._error is not None or self.acked < self.sent:
            self._raise_failure()

    def close(self, timeout_s: float = 10.0) -> None:
        """Let go of the connection, after at most `timeout_s` for what is in flight; reports nothing."""
        try:
            self._producer.close(timeout=timeout_s)
        except kafka_errors.KafkaError:
            # The client flushes first and, where that fails, leaves its thread running: what was reported as not
            # acknowledged could then still be sent, after records that were published in its place.
            self._producer._sender.force_close()
            with contextlib.suppress(kafka_errors.KafkaError):
                self._producer.close(timeout=0)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close(10.0 if kind is None else 1.0)

    def _wait_for_room(self, size: int) -> None:
        deadline = time.monotonic() + 2 * self.config.request_timeout_s
        with self._changed:
            while self._error is None and self._in_flight_bytes > 0:
                pending = self.sent - self.acked - self.failed
                if self._in_flight_bytes + size <= _IN_FLIGHT_BYTES and pending < _IN_FLIGHT_RECORDS:
                    break
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    self._error = kafka_errors.KafkaTimeoutError("no acknowledgement came in time")
            self._in_flight_bytes += size
        if self._error is not None:
            self._raise_failure()

    def _settle(self, size: int, error: BaseException | None) -> None:
        with self._changed:
            self._in_flight_bytes -= size
            self._error = self._error or error
            self._changed.notify_all()

    def _acknowledged(self, size: int, on_ack: Callable[[], None] | None, _metadata: Any) -> None:
        if on_ack is not None:
            on_ack()
        with self._changed:
            self.acked += 1
            self.acked_bytes += size - _RECORD_OVERHEAD_BYTES
            self._in_flight_bytes -= size
            self._changed.notify_all()

    def _refused(self, size: int, error: BaseException) -> None:
        with self._changed:
            self.failed += 1
        self._settle(size, error)

    def _raise_failure(self) -> None:
        cause = self._error or kafka_errors.KafkaTimeoutError("no acknowledgement came in time")
        missing = self.sent - self.acked
        if isinstance(cause, (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)):
            raise BadData(
                f"topic {self.topic} at {self.config.describe()} refused a record as too large: {cause}; "
                "raise the topic's max.message.bytes"
            ) from cause
        raise PublishFailed(
            f"{missing} of {self.sent} records for topic {self.topic} were not acknowledged by "
            f"{self.config.describe()}: {cause}"
        ) from cause
