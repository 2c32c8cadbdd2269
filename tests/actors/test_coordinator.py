"""The coordinator of an ingest job: how long its workers may be silent."""

from __future__ import annotations

import time

import pytest

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
