"""Searches of many callers through a shard's actor: joined there, and dropped when nobody awaits them any more."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.late_calls import LateCalls
from actors.shard import CONCURRENCY, ShardActor
from actors.store_search import StoreSearch
from pipeline.errors import DependencyUnreachable
from pipeline.store import Candidates, SearchConfig, SearchRequest
from pipeline.store.joined import SearchQueue
from tests.pipeline.store import make

pytestmark = pytest.mark.ray


class SlowShard(ShardActor):
    """A shard whose every search takes a third of a second, one at a time."""

    def slow_down(self) -> None:
        """From now on."""
        shard = self._open()
        search = shard._search

        def answer(request: SearchRequest) -> Candidates:
            time.sleep(0.3)
            return search(request)

        shard._searches = SearchQueue(answer, workers=1, max_questions=64)

    def batches(self) -> tuple[int, int]:
        """Requests answered, and the searches that were made for them."""
        queue = self._open()._searches
        return queue.num_requests, queue.num_batches


class OneShard(StoreSearch):
    """The searching half of a client, of one shard without an embedder."""

    def __init__(self, shard: Any) -> None:
        self.name, self.num_shards, self.dim = "test", 1, make.DIM
        self.search_config = SearchConfig(mode="bm25")
        self.shard, self.forgotten, self.late = shard, 0, LateCalls()

    def _shard(self, shard: int) -> Any:
        return self.shard

    def _embedder(self) -> Any:
        raise AssertionError("keyword searches embed nothing")

    def _forget(self, shard: int) -> None:
        self.forgotten += 1


@pytest.fixture
def shard(local_ray: None, tmp_path: Path) -> Any:
    """An actor with some articles, slow to search."""
    actor = (
        ray.remote(concurrency_groups=CONCURRENCY)(SlowShard)
        .options(num_cpus=0.01)
        .remote(make.config(path=tmp_path), 0, make.EMBEDDER, make.DIM)
    )
    records = [make.upsert(f"a{number}", number) for number in range(8)]
    ray.get(actor.append.remote(records, {(make.TOPIC, 0): 8}, 1), timeout=120)
    ray.get(actor.slow_down.remote(), timeout=60)
    yield actor
    ray.kill(actor)


def test_thirty_callers_are_answered_in_a_few_searches(shard: Any) -> None:
    """Each gets the article whose word it asked for; thirty searches of 0.3 s would take nine seconds."""
    refs = [
        shard.candidates.remote(SearchRequest(mode="bm25", k=3, texts=[f"markera{number % 8}"]), 60.0)
        for number in range(30)
    ]
    found = ray.get(refs, timeout=120)

    assert [one.bm25[0][0].article_id for one in found] == [f"a{number % 8}" for number in range(30)]
    requests, batches = ray.get(shard.batches.remote(), timeout=60)
    assert requests == 30
    assert batches <= 10


def test_a_search_whose_caller_has_given_up_is_not_made(shard: Any) -> None:
    """Behind a slow search it is over before its turn: the client says who was late, and the shard stays known."""
    client = OneShard(shard)
    first = shard.candidates.remote(SearchRequest(mode="bm25", k=3, texts=["markera1"]), 60.0)
    time.sleep(0.1)
    with pytest.raises(DependencyUnreachable, match="no shard of test answers"):
        client.search(["markera2"], deadline_s=0.05)
    ray.get(first, timeout=60)

    assert ray.get(shard.batches.remote(), timeout=60) == (1, 1)
    assert client.forgotten == 0
    assert client.search(["markera2"], deadline_s=60.0).passages[0][0].article_id == "a2"
