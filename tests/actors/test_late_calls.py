"""What an actor that stands still is asked is bounded, and it is asked again once it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from actors.ingest_config import IngestConfig
from actors.late_calls import LateCalls
from actors.remote import call
from actors.store_client import StoreClient, open_store
from models.embed import EmbedderConfig
from pipeline.errors import DependencyUnreachable
from pipeline.store import SearchConfig, StoreConfig

_LIMIT = 8


class Reference:
    """What a call gives: as much of Ray's as is used."""

    def __init__(self) -> None:
        self.result: Future[int] = Future()

    def future(self) -> Future[int]:
        """The result to come."""
        return self.result


def test_an_actor_is_full_until_a_late_call_of_its_own_ends() -> None:
    """Answered or failed; the calls of another actor are nothing to it."""
    late, calls = LateCalls(2), [Reference() for _ in range(3)]
    for reference, actor in zip(calls, ("slow", "slow", "other"), strict=True):
        assert not late.full(actor)
        late.note(actor, reference)
    assert late.full("slow") and not late.full("other")

    calls[0].result.set_exception(RuntimeError("it has died"))
    assert not late.full("slow")
    late.note("slow", calls[0])  # ended before it was noted
    assert not late.full("slow")
    calls[1].result.set_result(1)
    calls[2].result.set_result(1)
    assert late._counts == {}


@pytest.fixture
def client(local_ray: None, tmp_path: Path) -> Iterator[StoreClient]:
    """A store of two shards without embedding, whose client leaves few calls behind."""
    opened = open_store(
        StoreConfig(path=tmp_path / "store", num_shards=2),
        EmbedderConfig(model="none"),
        SearchConfig(mode="bm25", deadline_s=0.05),
        IngestConfig(),
    )
    opened.late = LateCalls(_LIMIT)
    yield opened
    opened.close_store()


@pytest.mark.ray
def test_a_shard_that_stands_still_holds_no_more_than_its_share(client: StoreClient) -> None:
    """Searches stay partial, at once and no longer at their deadline; once it goes on they are whole again."""
    assert not client.search(["marker"], deadline_s=30.0).partial
    actor = client.shard_handle(0)
    pid = call(actor.ping.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        found = [client.search(["marker"]) for _ in range(_LIMIT // 2)]
        found += [asyncio.run(client.search_async(["marker"])) for _ in range(_LIMIT // 2)]
        began = time.monotonic()
        found += [client.search(["marker"], deadline_s=10.0) for _ in range(5)]
        took_s = time.monotonic() - began
        assert {one.missing_shards for one in found} == {(0,)} and all(one.partial for one in found)
        assert client.late._counts == {actor: _LIMIT}
        assert took_s < 10.0  # the first of them would have waited so long
        with pytest.raises(DependencyUnreachable, match="shard:0 stands still"):
            client.offsets()
    finally:
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 30.0
    while client.search(["marker"], deadline_s=5.0).partial:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.ray
def test_questions_go_to_the_embedder_that_does_not_stand_still(local_ray: None, tmp_path: Path) -> None:
    """And where all do, keywords alone are searched at once."""
    client = open_store(
        StoreConfig(path=tmp_path / "store", num_shards=1),
        EmbedderConfig(model="none"),
        SearchConfig(mode="hybrid", deadline_s=30.0),
        IngestConfig(num_embedders=2),
    )
    try:
        client.late = LateCalls(1)
        first, second = client.next_embedder(), client.next_embedder()
        assert first != second
        client.late.note(first, Reference())
        assert [client.next_embedder() for _ in range(4)] == [second] * 4
        client.late.note(second, Reference())
        assert client.search(["marker"]).partial
        with pytest.raises(DependencyUnreachable, match=r"embedder:\d stands still"):
            client.embed_questions(["marker"])
    finally:
        client.close_store()
