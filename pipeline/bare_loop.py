"""A bare kafka-python loop over a topic: what the whole ingest is compared with, and nothing else uses."""

from __future__ import annotations

import time

import orjson
from kafka import TopicPartition

from pipeline.errors import DysraError
from pipeline.kafka import KafkaConfig, consumer, topic_partitions


def bare_loop(kafka: KafkaConfig, count: int, *, parse: bool, limit_s: float = 900.0) -> tuple[float, float]:
    """Poll `count` records from the start, decode every value as UTF-8 and, with `parse`, as JSON.

    Returns the seconds from the first records to the last, and the seconds of processor time.
    """
    client = consumer(kafka)
    try:
        places = [TopicPartition(kafka.topic, p) for p in topic_partitions(kafka, kafka.topic)]
        client.assign(places)
        for place in places:
            client.seek(place, 0)
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
        return time.perf_counter() - started, time.process_time() - cpu
    finally:
        client.close(autocommit=False)
