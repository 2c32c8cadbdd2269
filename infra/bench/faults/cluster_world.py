"""Everything that ingests, for real: a broker, a Ray of two nodes, `dysra ingest` under a supervisor, a store."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from infra.bench.faults.check import Differences, compare
from infra.bench.faults.news import COMMON_WORD
from infra.bench.faults.ray_cluster import RayCluster
from infra.bench.faults.served import Served
from infra.bench.faults.supervised import Supervised
from infra.bench.faults.topic_feed import Feed
from infra.kafka import Broker, start, stop
from pipeline.errors import DependencyUnreachable, DysraError
from pipeline.kafka import KafkaConfig, ensure_topic
from pipeline.store import SearchConfig, SearchRequest, StoreConfig

SILENT_LIMIT_S = 3.0
_LIMIT_S = 300.0  # what it took is told; this tells a slow machine from one that stands still
_ACKNOWLEDGED_S = 120.0
_RATE = 20.0
_STAYS_S = 8.0  # a difference that is seen for so long is told
_PATIENCE = 60
"""Looks at a keyword index that is behind before that counts as a difference."""
_INGEST: dict[str, Any] = {
    "num_ingesters": 2,
    "health_interval_s": 0.25,
    "commit_interval_s": 0.3,
    "retry_max_s": 0.5,
    "silent_limit_s": SILENT_LIMIT_S,
    "maintain_interval_s": 0.5,
    # One fault after another is more than the guard against endless restarts allows for.
    "max_restarts": 100_000,
}
_STORE: dict[str, Any] = {"num_shards": 2, "seal_rows": 256, "min_seal_rows": 64, "merge_segments": 3}


@contextlib.contextmanager
def same_end() -> Iterator[None]:
    """What SIGTERM does here is afterwards what it was: Ray's own handler, which connecting puts there, ends the
    process at once, and leaves a broker, a cluster and mounts behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class ClusterWorld:
    """A running ingest of known news. Slow to start (half a minute), so it lives as long as the run."""

    def __init__(self, folder: Path, seed: int, store: Path | None, say: Callable[[str], None]) -> None:
        self._stack = ExitStack()
        self._patience = 0
        self._due = math.inf
        self._served: Served | None = None
        try:
            self._start(folder, seed, store or folder / "store", say)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path, seed: int, store: Path, say: Callable[[str], None]) -> None:
        import ray

        from actors.coordinator import coordinator_name
        from actors.remote import NAMESPACE, store_name
        from actors.store_client import StoreClient

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        say("starting a broker, a Ray cluster of two nodes and dysra ingest for the faults of a cluster")
        self._kafka_folder = folder / "kafka"
        self.broker: Broker = start(self._kafka_folder, 0)
        self._stack.callback(stop, self._kafka_folder)
        kafka = KafkaConfig(
            bootstrap_servers=self.broker.bootstrap_servers,
            topic=f"faults-{seed}",
            group_id=f"faults-{seed}",
            partitions=3,
        )
        ensure_topic(kafka)
        self.kafka = kafka
        self.ray = RayCluster()
        self._stack.callback(self.ray.close)
        self.store = StoreConfig(path=store / f"store-{seed}", **_STORE)
        config = folder / "dysra.yaml"
        sections = {
            "kafka": {
                "bootstrap_servers": kafka.bootstrap_servers,
                "topic": kafka.topic,
                "group_id": kafka.group_id,
                "partitions": kafka.partitions,
            },
            "store": {**_STORE, "path": str(self.store.path)},
            "embedder": {"model": "static"},
            "ingest": _INGEST,
        }
        config.write_text(yaml.safe_dump(sections), encoding="utf-8")
        arguments = ["ingest", "--config", str(config), "--ray-address", self.ray.address]
        self.driver = Supervised(arguments, self.ray.env, folder / "ingest.log")
        self._stack.callback(self.driver.close)
        os.environ["RAY_AUTH_MODE"] = "disabled"
        with same_end():
            ray.init(
                address=self.ray.address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        self._stack.callback(ray.shutdown)
        name = store_name(self.store.path)
        self.client = StoreClient(name, self.store, SearchConfig(), 1, {"identity": "", "dim": 0})
        self.coordinator = coordinator_name(name, kafka.topic, kafka.group_id)
        self.feed = Feed(kafka, seed, _RATE)
        self._stack.callback(self.feed.close)
        self.feed.start()
        time.sleep(1.0)
        self.settle()
        self.client.dim = self.wait(lambda: self._dim(), "the embedder")

    @property
    def served(self) -> Served:
        """The sessions of this cluster, deployed at first use."""
        if self._served is None:
            self._served = Served(self.folder, self.kafka.bootstrap_servers, self.store)
            self._served.due = self._due
            self._stack.callback(self._served.close)
        return self._served

    def close(self) -> None:
        """End everything that was started."""
        with contextlib.suppress(Exception):
            self._stack.close()

    def due_in(self, seconds: float) -> None:
        """Every wait from now on ends by then: what has not come is a TimeoutError."""
        self._due = time.monotonic() + seconds
        if self._served is not None:
            self._served.due = self._due

    # -- what is where

    def pid_of(self, kind: str, index: int = 0) -> int:
        """The process of an actor: shard, embedder, near-duplicates, coordinator or ingester."""
        from actors.remote import call, find_actor
        from actors.store_actors import embedder_name, shard_name
        from actors.store_watch import near_duplicates_name

        def ask() -> int:
            if kind in ("coordinator", "ingester"):
                figures = call(find_actor(self.coordinator).figures.remote(), 5.0)  # type: ignore[union-attr]
                return int(figures["pid"] if kind == "coordinator" else figures["ingester_pids"][index] or 0)
            name = {
                "shard": shard_name(self.client.name, index),
                "embedder": embedder_name(self.client.name, 0),
                "near-duplicates": near_duplicates_name(self.client.name),
            }[kind]
            return int(call(find_actor(name).ping.remote(), 5.0))  # type: ignore[union-attr]

        return int(self.wait(ask, f"the {kind}"))

    def kill(self, kind: str, index: int = 0) -> int:
        """kill -9 of an actor's process; which it was."""
        pid = self.pid_of(kind, index)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    def restart_broker(self, down_s: float) -> None:
        """kill -9 of the broker, and its start on the same port."""
        os.kill(self.broker.pid, signal.SIGKILL)
        time.sleep(down_s)
        self.broker = start(self._kafka_folder, self.broker.port)

    def wait(self, ask: Callable[[], Any], what: str, limit_s: float = _LIMIT_S) -> Any:
        """The first true value of `ask`, over outages; TimeoutError after the limit."""
        from ray.exceptions import RayError

        began = time.monotonic()
        deadline = min(began + limit_s, self._due)
        while True:
            problem = ""
            try:
                if value := ask():
                    return value
            except (RayError, DysraError, AttributeError, ConnectionError) as error:
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.client.forget_handles()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {time.monotonic() - began:.0f} s {problem}")
            time.sleep(0.05)

    # -- the check

    def settle(self) -> None:
        """Stop publishing; return once every shard is durable up to the topic's ends."""
        self.feed.stop(max(1.0, min(_ACKNOWLEDGED_S, self._due - time.monotonic())))
        ends = self.wait(self.feed.read_back, "the topic's ends")
        wanted = {(self.kafka.topic, partition): end for partition, end in ends.items() if end}

        def all_there() -> bool:
            return all(
                shard.get(place, -1) >= end
                for shard in self.client.offsets()
                for place, end in wanted.items()
            )

        ends_with = self.driver.ends[-5:]
        self.wait(
            all_there, f"ingest did not reach the end of the topic (its process ended with {ends_with})"
        )
        if self._served is not None:
            self._served.settle()

    def check(self) -> Differences:
        """The differences between the store and the topic, and between sessions and twins, now that all is read."""
        self._patience = _PATIENCE
        deadline = time.monotonic() + _STAYS_S
        while True:
            dump: dict[str, Any] = self.wait(self._dump, "the store's content")
            found = compare(self.feed.expected, dump)
            # an addition and a removal that both wait for a commit leave the number of keyword chunks as it is
            if not found.notes or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if self._served is not None:
            sessions = self._served.check()
            found.sessions_differing += sessions.sessions_differing
            found.notes += sessions.notes
        return found

    def _dump(self) -> dict[str, Any]:
        from actors.remote import call

        articles = {}
        for article_id, found in self.client.articles(list(self.feed.expected.articles)).items():
            if found is not None:
                state = "deleted" if found.deleted else "linked" if found.canonical_id else "live"
                row = (state, found.version_ms, found.article, found.canonical_id, found.num_chunks)
                articles[article_id] = row
        handles = [self.client.shard_handle(index) for index in range(self.store.num_shards)]
        stats = [call(handle.stats.remote(), 30.0) for handle in handles]
        if any(row["keyword_chunks"] != row["live_chunks"] for row in stats) and self._patience > 0:
            self._patience -= 1  # a commit is due within the next searches; a difference that stays is told
            self.client.search([COMMON_WORD], k=1, mode="bm25", deadline_s=5.0)
            time.sleep(0.25)
            raise DependencyUnreachable("keyword search has not seen everything yet")
        every = sum(row["live_chunks"] for row in stats) + 500
        vector = np.full((1, self.client.dim), self.client.dim**-0.5, dtype=np.float32)
        dump: dict[str, Any] = {"articles": articles, "ledger": self.client.ledger().total().to_dict()}
        for mode in ("dense", "bm25"):
            request = SearchRequest(
                mode=mode,  # type: ignore[arg-type]
                k=every,
                vectors=vector if mode == "dense" else None,
                texts=[COMMON_WORD] if mode == "bm25" else None,
            )
            lists = [call(handle.candidates.remote(request), 60.0) for handle in handles]
            hits = [passage for one in lists for passage in getattr(one, mode)[0]]
            dump[mode] = [(hit.chunk_id, hit.article_id, hit.version_ms) for hit in hits]
        dump["keyword_chunks"] = sum(row["keyword_chunks"] for row in stats)
        return dump

    def _dim(self) -> int:
        from actors.remote import call

        return int(call(self.client.next_embedder().describe.remote(), 30.0)["dim"])
