"""Many processes at a topic: producers that fill it in parallel, bare loops that read its partitions at once.

The newswire takes 0.3 ms of processor time to make an article, so one process cannot fill a topic for an ingest of
many cores. Each producer tells rounds of `ROUND` articles, every round a wire of its own with its own streams: what
is published does not depend on how many producers there are, and thousands of streams fill partitions evenly.
"""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson

from infra.bench.wire import Record, news, publish
from pipeline.bare_loop import BareLoop, bare_loop
from pipeline.errors import DysraError
from pipeline.kafka import KafkaConfig

ROUND = 500
_SEED = 1_000
_START_S = 120.0
_END_S = 10.0


def telling(round_: int, articles: int) -> Iterator[Record]:
    """One wire's records, its ids and streams marked with the round."""
    for key, value, stream in news(articles, seed=_SEED + round_):
        body = value
        if value is not None:
            fields = orjson.loads(value)
            fields["id"] = f"{round_}-{fields['id']}"
            fields["stream"] = f"{stream}-{round_}"
            body = orjson.dumps(fields)
        yield f"{round_}-{key.decode()}".encode(), body, f"{stream}-{round_}"


def publish_together(kafka: KafkaConfig, articles: int, producers: int, limit_s: float) -> tuple[int, float]:
    """Publish at least `articles` newswire articles by several processes: records published, and their mean bytes.

    Raises DysraError where that takes longer than `limit_s`, or a producer fails.
    """
    rounds = -(-articles // ROUND)
    tasks = [
        (kafka, range(number, rounds, producers), min(ROUND, articles))
        for number in range(min(producers, rounds))
    ]
    found = _together(_publish, tasks, limit_s, "publishing")
    count = sum(number for number, _ in found)
    return count, sum(size for _, size in found) / max(1, count)


def _publish(done: Callable[[], None], kafka: KafkaConfig, rounds: range, articles: int) -> tuple[int, int]:
    done()
    size = 0

    def counted() -> Iterator[Record]:
        nonlocal size
        for round_ in rounds:
            for record in telling(round_, articles):
                size += len(record[1] or b"")
                yield record

    return publish(kafka, counted()), size


def loops_together(kafka: KafkaConfig, consumers: int, *, parse: bool, limit_s: float) -> list[BareLoop]:
    """`bare_loop` in several processes at once, the partitions dealt to them; all stand before one begins."""
    partitions = range(kafka.partitions)
    tasks = [
        (replace(kafka, group_id=f"{kafka.group_id}-{number}"), list(partitions[number::consumers]), parse)
        for number in range(min(consumers, kafka.partitions))
    ]
    return _together(_read, tasks, limit_s, "reading")


def _read(ready: Callable[[], None], kafka: KafkaConfig, partitions: list[int], parse: bool) -> BareLoop:
    return bare_loop(kafka, None, parse=parse, partitions=partitions, ready=ready)


def _together(work: Callable[..., Any], tasks: list[tuple[Any, ...]], limit_s: float, what: str) -> list[Any]:
    """Run `work(ready, *task)` in a process each; `ready` returns once all are there. The results, in no order."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(tasks))
    results: Any = context.Queue()
    processes = [
        context.Process(target=_worker, args=(work, barrier, results, task), daemon=True) for task in tasks
    ]
    with _ended(processes):
        for process in processes:
            process.start()
        found: list[Any] = []
        deadline = time.monotonic() + limit_s
        while len(found) < len(processes):
            try:
                result, problem = results.get(timeout=max(0.1, min(2.0, deadline - time.monotonic())))
            except queue.Empty:
                died = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
                if died or time.monotonic() > deadline:
                    why = f"a process ended with {died[0]}" if died else f"not within {limit_s:.0f} s"
                    raise DysraError(
                        f"{what} by {len(processes)} processes: {why}, {len(found)} were done"
                    ) from None
                continue
            if problem:
                raise DysraError(f"{what} by {len(processes)} processes: {problem}")
            found.append(result)
    return found


@contextmanager
def _ended(processes: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        deadline = time.monotonic() + _END_S
        for process in processes:
            if process.pid is not None:
                process.join(timeout=max(0.0, deadline - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join(timeout=1.0)


def _worker(work: Callable[..., Any], barrier: Any, results: Any, task: tuple[Any, ...]) -> None:
    try:
        results.put((work(lambda: barrier.wait(timeout=_START_S), *task), ""))
    except BaseException as error:
        barrier.abort()
        results.put((None, f"{type(error).__name__}: {error}"))
