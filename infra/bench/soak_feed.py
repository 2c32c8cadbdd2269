"""What the soak publishes: newswire articles as of now, by several processes that keep a little ahead of reading.

The newswire takes 0.3 ms of processor time to make an article, so one process cannot feed an ingest of many cores.
"""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from infra.bench.wire import Record, news, publish
from pipeline.article import isoformat
from pipeline.kafka import KafkaConfig

AHEAD = 20_000
"""Records that may have been published and not been read, unless a run says another number."""
ROUND = 20_000
_LOOK = 250
"""Records between two looks at how far reading has come."""
_END_S = 60.0


def fresh(articles: int, producer: int = 0, producers: int = 1) -> Iterator[Record]:
    """Newswire articles, each published at the moment it is taken: the rounds of one of several producers.

    A wire of its own for every `ROUND` articles: one remembers all that it has told, which would count as a rise.
    The streams of several producers are told apart, so that partitions fill evenly.
    """
    for round_ in range(producer, -(-articles // ROUND), producers):
        given = (record for record in news(2 * ROUND, seed=5 + round_) if record[1] is not None)
        for _ in range(min(ROUND, articles - round_ * ROUND)):
            _, value, stream = next(given)
            fields = orjson.loads(value or b"{}")
            fields["id"] = f"{round_}-{fields['id']}"
            fields["published"] = isoformat(datetime.now(UTC))
            fields.pop("updated", None)
            if producers > 1:
                stream = fields["stream"] = f"{stream}-{producer}"
            yield fields["id"].encode(), orjson.dumps(fields), stream


class Feed:
    """Publishes in processes of their own, about `ahead` records ahead of what was read, until told to end."""

    def __init__(self, kafka: KafkaConfig, articles: int, producers: int = 1, ahead: int = AHEAD) -> None:
        context = multiprocessing.get_context("spawn")
        self._published: Any = context.Value("q", 0)
        self._read: Any = context.Value("q", 0)
        self._over: Any = context.Event()
        self._failures: Any = context.Queue()
        self._processes = [
            context.Process(
                target=_run,
                args=(
                    kafka,
                    articles,
                    number,
                    producers,
                    ahead,
                    self._published,
                    self._read,
                    self._over,
                    self._failures,
                ),
                daemon=True,
            )
            for number in range(producers)
        ]
        for process in self._processes:
            process.start()

    @property
    def published(self) -> int:
        """Records handed to the broker's client so far."""
        return int(self._published.value)

    @property
    def running(self) -> bool:
        """Whether more will come."""
        return any(process.is_alive() for process in self._processes)

    def check(self) -> None:
        """Raise RuntimeError where a producer failed."""
        try:
            raise RuntimeError(f"a producer of the soak failed: {self._failures.get_nowait()}")
        except queue.Empty:
            pass
        died = [p.exitcode for p in self._processes if p.exitcode not in (None, 0)]
        if died:
            raise RuntimeError(f"a producer of the soak ended with {died[0]}")

    def note(self, read: int) -> None:
        """Tell the producers how many records have been read."""
        self._read.value = read

    def stop(self) -> None:
        """End after the records at hand."""
        self._over.set()
        deadline = time.monotonic() + _END_S
        for process in self._processes:
            process.join(timeout=max(0.1, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join(timeout=1.0)


def _run(
    kafka: KafkaConfig,
    articles: int,
    producer: int,
    producers: int,
    ahead: int,
    published: Any,
    read: Any,
    over: Any,
    failures: Any,
) -> None:
    try:
        publish(kafka, _paced(fresh(articles, producer, producers), published, read, over, ahead))
    except BaseException as error:
        failures.put(f"{type(error).__name__}: {error}")
        raise


def _paced(
    records: Iterable[Record], published: Any, read: Any, over: Any, ahead: int = AHEAD
) -> Iterator[Record]:
    """The records, as long as they are not too far ahead; each is counted when it is given out."""
    given = 0
    try:
        for record in records:
            if given == _LOOK:
                _count(published, given)
                given = 0
                while published.value - read.value > ahead and not over.wait(0.05):
                    pass
                if over.is_set():
                    return
            yield record
            given += 1
    finally:
        _count(published, given)


def _count(published: Any, given: int) -> None:
    with published.get_lock():
        published.value += given
