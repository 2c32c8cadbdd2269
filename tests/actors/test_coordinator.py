"""The coordinator of an ingest job: how long its workers may be silent, and when it ends itself."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from actors import coordinator, remote
from actors.coordinator import _START_S, _Worker


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
