"""A bare kafka-python loop over a topic: what the whole ingest is compared with, and nothing else uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import orjson
from kafka import TopicPartition

from pipeline.errors import DysraError
from pipeline.kafka import KafkaConfig, consumer, topic_partitions


class BareLoop(NamedTuple):
    """When the first records came and the last had been read (`time.perf_counter`, the same in all processes of a
    machine), and the seconds of processor time between."""

    begun_s: float
    ended_s: float
    cpu_s: float

    @property
    def seconds(self) -> float:
        """From the first records to the last."""
        return self.ended_s - self.begun_s


def bare_loop(
    kafka: KafkaConfig,
    count: int | None,
    *,
    parse: bool,
    partitions: Sequence[int] | None = None,
    ready: Callable[[], object] = lambda: None,
    limit_s: float = 900.0,
) -> BareLoop:
    """Poll `count` records (None: all that there are) from the start, decode every value as UTF-8 and, with
    `parse`, as JSON. `partitions`: these alone; `ready` is called when all stands and nothing has been read.

    Raises DysraError where they did not come within `limit_s`.
    """
    client = consumer(kafka)
    try:
        chosen = topic_partitions(kafka, kafka.topic) if partitions is None else partitions
        places = [TopicPartition(kafka.topic, partition) for partition in chosen]
        client.assign(places)
        for place in places:
            client.seek(place, 0)
        if count is None:
            count = sum(client.end_offsets(places).values())
        ready()
        seen, started = 0, 0.0
        cpu, deadline = time.process_time(), time.monotonic() + limit_s
        while seen < count:
            batches = client.poll(timeout_ms=500, max_records=500)
            started = started or time.perf_counter()
            for records in batches.values():
                for record in records:
                    if record.value is not None:
                        text = record.value.decode("utf-8")
                        if parse:
                            orjson.loads(text)
                seen += len(records)
            if time.monotonic() > deadline:
                raise DysraError(f"{seen} of {count} records of {kafka.topic} came within {limit_s:.0f} s")
        ended = time.perf_counter()
        return BareLoop(started or ended, ended, time.process_time() - cpu)
    finally:
        client.close(autocommit=False)
