"""Kill -9 of any process of ingest: nothing is lost, nothing is doubled, and the command line goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.ingest_job import IngestJob
from actors.remote import call, find_actor
from actors.store_actors import shard_name
from pipeline.kafka import KafkaConfig
from pipeline.publisher import Publisher
from tests.broker import TopicFactory
from tests.integration.ingest_case import LIMIT_S, article, make_spec, running, settle, until_read, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.ray]
NUM_ARTICLES = 500


class SlowPublisher(threading.Thread):
    """Publishes articles over some seconds, with an update of every tenth and a withdrawal of every fiftieth."""

    def __init__(self, kafka: KafkaConfig) -> None:
        super().__init__(daemon=True)
        self.kafka = kafka
        self.published = 0

    def run(self) -> None:
        with Publisher(self.kafka) as publisher:
            for number in range(NUM_ARTICLES):
                publisher.publish(article(number, words=30))
                self.published += 1
                if number % 10 == 9:
                    publisher.publish(article(number - 5, version=1, words=30))
                    self.published += 1
                if number % 50 == 49:
                    publisher.delete(f"article-{number - 1}", article(number - 1).stream)
                    self.published += 1
                if number % 20 == 0:
                    publisher.flush()
                    time.sleep(0.2)


def _expected(number: int) -> Any:
    if number % 50 == 48:
        return None
    return article(number, version=1 if number % 10 == 4 else 0, words=30)


def _assert_all_there(job: IngestJob) -> None:
    stored = job.client.articles([f"article-{number}" for number in range(NUM_ARTICLES)])
    for number in range(NUM_ARTICLES):
        assert stored[f"article-{number}"].article == _expected(number)


def _ingester_pid(job: IngestJob) -> int:
    wait_for(lambda: job.progress()["ingester_pids"][0], "an ingester that has shown itself")
    pid: int = job.progress()["ingester_pids"][0]
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_kills_lose_and_double_nothing(local_ray: None, topic: TopicFactory, tmp_path: Path) -> None:
    """Ingester, shard, embedder, both keepers and coordinator die in turn; id by id the store is right."""
    kafka = topic()
    publisher = SlowPublisher(kafka)
    spec = make_spec(
        kafka, tmp_path, num_ingesters=2, near_duplicate_shards=2, max_inflight_records=200, retry_max_s=0.5
    )
    with running(spec) as job:
        client = job.client
        publisher.start()
        until_read(job, 50)
        _kill(_ingester_pid(job))
        until_read(job, 120)
        _kill(call(find_actor(shard_name(client.name, 0)).ping.remote()))
        until_read(job, 200)
        _kill(call(find_actor(f"{client.name}:embedder:0").ping.remote()))
        until_read(job, 280)
        for name in ("near-duplicates", "near-duplicates:1"):
            _kill(call(find_actor(f"{client.name}:{name}").ping.remote()))
        until_read(job, 360)
        _kill(job.progress()["pid"])
        publisher.join(timeout=LIMIT_S)
        wait_for(lambda: job.ledger().read >= publisher.published, "all records read")
        figures = settle(job)
        assert figures["read"] == publisher.published == NUM_ARTICLES + 50 + 10
        assert (
            figures["stored"] + figures["deleted"] + figures["dead_lettered"] + figures["duplicates"]
            == figures["read"]
        )
        assert (figures["deleted"], figures["dead_lettered"]) == (10, 0)
        _assert_all_there(job)


def test_dead_shard_makes_answers_partial(local_ray: None, topic: TopicFactory, tmp_path: Path) -> None:
    """While a shard is gone the others answer, marked partial; ingest starts it again from its disk."""
    kafka = topic(partitions=1)
    with Publisher(kafka) as publisher:
        for number in range(30):
            publisher.publish(article(number))
    spec = make_spec(kafka, tmp_path)
    with running(spec) as job:
        until_read(job, 30)
        job.stop()
        client = job.client
        whole = client.search(["unique3 unique4 unique5"], k=30, mode="bm25", deadline_s=20)
        assert not whole.partial
        ray.kill(find_actor(shard_name(client.name, 1)), no_restart=True)
        wait_for(lambda: client.search(["unique3"], deadline_s=20).partial, "a partial answer")
        answer = client.search(["unique3 unique4 unique5"], k=30, mode="bm25", deadline_s=20)
        assert answer.missing_shards == (1,)
        ids = {passage.article_id for passage in answer.passages[0]}
        assert ids < {passage.article_id for passage in whole.passages[0]}
    with running(spec) as job:
        settle(job)
        again = job.client.search(["unique3 unique4 unique5"], k=30, mode="bm25", deadline_s=20)
        assert [p.article_id for p in again.passages[0]] == [p.article_id for p in whole.passages[0]]
        assert job.ledger().read == 0


def _start_verb(spec: Any, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "infra.cli", "ingest", "--json",
        "--topic", spec.kafka.topic, "--bootstrap-servers", spec.kafka.bootstrap_servers,
        "--group", spec.kafka.group_id, "--store", str(spec.store.path), "--shards", "2",
        "--embedder", spec.embedder.model, *more,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["DYSRA_INGEST_MAX_INFLIGHT_RECORDS"] = "40"
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_sigterm_saves_and_the_next_run_goes_on(topic: TopicFactory, tmp_path: Path) -> None:
    """`dysra ingest` stopped in the middle ends with 5 and its figures; the same command then finishes the rest."""
    kafka = topic(partitions=2)
    with Publisher(kafka) as publisher:
        for number in range(200):
            publisher.publish(article(number, words=30))
    spec = make_spec(kafka, tmp_path)
    first = _start_verb(spec)
    try:
        assert first.stderr is not None
        said: list[str] = []
        for line in first.stderr:
            said.append(line)
            if "ingesting" in line:
                break
        with Publisher(kafka) as publisher:
            for number in range(200, 260):
                publisher.publish(article(number, words=30))
        time.sleep(3)
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 5, "".join(said) + err
    stopped = json.loads(out.splitlines()[-1])
    second = _start_verb(spec, "--until-idle", "0.5")
    try:
        out, err = second.communicate(timeout=LIMIT_S)
    finally:
        second.kill()
    assert second.returncode == 0, err
    rest = json.loads(out.splitlines()[-1])
    assert stopped["read"] + rest["read"] == 260
    assert rest["ledger_total"]["read"] == rest["ledger_total"]["stored"] == 260
    assert sum(rest["committed"].values()) == 260
