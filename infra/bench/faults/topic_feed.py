"""Publishes known records at a steady rate, and reads back what the topic really holds."""

from __future__ import annotations

import threading
import time

from infra.bench.faults.news import Expected, Published, Timeline
from pipeline.errors import DysraError
from pipeline.kafka import KafkaConfig
from pipeline.publisher import Publisher
from pipeline.source import RecordSource

_NUMBER = "faults-number"
_BATCH_S = 0.2
_FLUSH_S = 10.0


class Feed:
    """A thread that publishes while it is `on`. What was not acknowledged is published again: the topic may hold a
    record twice, as topics do, and the expectation is made from the topic itself."""

    def __init__(self, kafka: KafkaConfig, seed: int, rate: float) -> None:
        self._kafka, self._rate = kafka, rate
        self.timeline = Timeline(seed)
        self._records: list[Published] = []
        self._acked = 0
        self._lock = threading.Lock()
        self._on, self._closing = threading.Event(), threading.Event()
        self.expected = Expected()
        self._next: dict[int, int] = dict.fromkeys(range(kafka.partitions), 0)
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Publish from now on."""
        self._on.set()

    def stop(self, limit_s: float) -> None:
        """Publish no more; returns once everything drawn is acknowledged."""
        self._on.clear()
        deadline = time.monotonic() + limit_s
        while True:
            with self._lock:
                if self._acked == len(self._records):
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the broker has not taken all records within {limit_s:.0f} s")
            time.sleep(0.02)

    def standing(self) -> dict[str, int]:
        """Records drawn, acknowledged and read back, and how often publishing failed."""
        with self._lock:
            drawn, acked = len(self._records), self._acked
        return {
            "drawn": drawn,
            "acknowledged": acked,
            "read_back": self.expected.num_records,
            "failures": self.failures,
        }

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join(timeout=_FLUSH_S + 5.0)

    def ends(self) -> dict[int, int]:
        """The end of each partition now."""
        with RecordSource(self._kafka, dict(self._next)) as source:
            return source.end_offsets()

    def read_back(self) -> dict[int, int]:
        """Fold what the topic has gained into `expected`; the end of each partition."""
        with RecordSource(self._kafka, dict(self._next)) as source:
            ends = source.end_offsets()
            deadline = time.monotonic() + 60.0
            while any(source.positions()[partition] < end for partition, end in ends.items()):
                if time.monotonic() > deadline:
                    raise TimeoutError("the topic cannot be read back within 60 s")
                for record in source.poll(0.2):
                    number = int(dict(record.headers)[_NUMBER])
                    self.expected.take(self._records[number])
            self._next = source.positions()
        return ends

    def _run(self) -> None:
        publisher: Publisher | None = None
        while not self._closing.is_set():
            with self._lock:
                if self._on.is_set():
                    self._records += self.timeline.draw(max(1, round(self._rate * _BATCH_S)))
                waiting = self._records[self._acked :]
            try:
                if waiting:
                    publisher = publisher or Publisher(self._kafka)
                    for record in waiting:
                        _send(publisher, record)
                    publisher.flush(_FLUSH_S)
                    with self._lock:
                        self._acked += len(waiting)
            except DysraError:
                self.failures += 1
                if publisher is not None:
                    publisher.close(0.5)
                publisher = None
            self._closing.wait(_BATCH_S)
        if publisher is not None:
            publisher.close(1.0)


def _send(publisher: Publisher, record: Published) -> None:
    key = record.article_id.encode()
    headers = [(_NUMBER, str(record.number).encode())]
    if record.kind == "bad":
        value: bytes | None = b'{"id": "broken'
    else:
        value = None if record.article is None else record.article.to_json()
    publisher.publish_raw(key, value, stream=record.stream, headers=headers)
