"""The coordinator of an ingest job: how long its workers may be silent, and when it ends itself."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from actors import coordinator, ingest, remote
from actors.coordinator import _START_S, _Worker
from actors.ingest_config import IngestConfig
from pipeline.errors import DependencyUnreachable
from pipeline.source_config import SourceConfig


@pytest.mark.parametrize("answered", [False, True])
def test_an_ingester_that_still_starts_may_be_silent_for_longer(answered: bool) -> None:
    """A short limit is one for ingesters at work: a process that is not up yet is not replaced by another that
    would not be up any sooner."""
    worker = _Worker(0, [0], seen_at=time.monotonic() - 10.0, answered=answered)
    assert worker.silent_too_long(3.0) is answered
    assert not worker.silent_too_long(60.0)
    worker.seen_at -= _START_S
    assert worker.silent_too_long(3.0)
    assert worker.silent_too_long(2 * _START_S) is False


@pytest.mark.parametrize(("own", "ended"), [("a", False), ("b", True), ("c", False)])
def test_a_coordinator_on_a_node_that_ray_has_given_up_takes_no_partitions(
    own: str, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives and reaches all shards, but another runs in its place: it ends before it fences any."""
    fake = SimpleNamespace(
        nodes=lambda: [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}],
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: own),
    )
    monkeypatch.setattr(remote, "ray", fake)
    monkeypatch.setattr(coordinator, "ray", fake)

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(coordinator.os, "_exit", end)
    one = object.__new__(coordinator.Coordinator)
    one._log = SimpleNamespace(error=lambda *args, **fields: None)
    one._spec = SimpleNamespace(kafka=SimpleNamespace(topic="news"))
    one._client = SimpleNamespace(offsets=lambda: pytest.fail("the store was asked"))
    with pytest.raises(SystemExit if ended else pytest.fail.Exception):
        one._start(_Worker(0, [0]))


class _Broker:
    """Away for the first calls."""

    def __init__(self, away: int) -> None:
        self.away, self.asked = away, 0

    def __call__(self, *arguments: object, **settings: object) -> list[int]:
        self.asked += 1
        if self.asked <= self.away:
            raise DependencyUnreachable("Kafka at 127.0.0.1:1 cannot be reached")
        return [0, 1, 2]


_INGEST = IngestConfig(retry_first_s=0.01, retry_max_s=0.01)


def test_a_coordinator_that_is_started_again_waits_for_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its ingesters do: the job does not end for an outage that began before its coordinator was moved."""
    broker = _Broker(away=2)
    monkeypatch.setattr(coordinator, "topic_partitions", broker)
    monkeypatch.setattr(coordinator, "ensure_topic", lambda *args, **settings: 3)
    one = object.__new__(coordinator.Coordinator)
    one._config, one._stopping = _INGEST, threading.Event()
    kafka = SimpleNamespace(topic="news", dead_letter_topic="news.dlq")
    one._spec = SimpleNamespace(kafka=kafka, source=SourceConfig(outage_limit_s=30.0), ingest=_INGEST)
    one._log = SimpleNamespace(warning=lambda *args, **fields: None)
    one._watch = SimpleNamespace(start_near_duplicates=lambda: None)
    one._begin()
    assert broker.asked == 3 and [worker.partitions for worker in one._workers] == [[0, 1, 2]]

    one._stopping.set()
    with pytest.raises(remote.Stopped):
        one._begin()


def test_an_ingester_that_is_started_again_waits_for_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that failed instead would end the whole job."""
    broker = _Broker(away=2)
    monkeypatch.setattr(ingest, "RecordSource", broker)
    one = object.__new__(ingest.Ingester)
    one._stopping = threading.Event()
    one._spec = SimpleNamespace(kafka=None, source=SourceConfig(outage_limit_s=30.0), ingest=_INGEST)
    one._assignment = SimpleNamespace(offsets={})
    one._log = SimpleNamespace(warning=lambda *args, **fields: None)
    assert one._source() == [0, 1, 2] and broker.asked == 3
