"""Every record has one outcome: a topic with all kinds of records into two shards, counted and searched."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from actors.ingest_job import IngestJob
from pipeline.dead_letters import read_dead_letters
from pipeline.errors import UsageError
from pipeline.kafka import KafkaConfig, producer
from pipeline.publisher import Publisher
from pipeline.store import StoreMismatch
from pipeline.topics import group_lag
from tests.broker import TopicFactory
from tests.integration.ingest_case import article, make_spec, running, settle
from tests.models.embed.tiny import make_tiny_embedder

pytestmark = [pytest.mark.broker, pytest.mark.ray]


def _publish_every_kind(kafka: KafkaConfig) -> None:
    """40 articles, and 10 records of other kinds that follow from them."""
    originals = [article(number) for number in range(40)]
    with Publisher(kafka) as publisher:
        for one in originals:
            publisher.publish(one)
        publisher.flush()
        publisher.publish(article(1, version=2))  # replaces
        publisher.publish(article(1, version=1))  # older: never overwrites
        publisher.publish(originals[2])  # the same version again
        publisher.publish(
            replace(originals[3], id="copy", published=originals[3].published + timedelta(hours=1))
        )
        publisher.publish(
            replace(originals[4], updated=originals[4].published + timedelta(hours=1))
        )  # same words
        publisher.delete("article-5", originals[5].stream)
        publisher.delete("never-seen", "stream-0")
        publisher.publish_raw(b"bad", b"not json", partition=0)
        publisher.publish_raw(b"bad", b'{"id": "x"}', partition=1)
        publisher.publish_raw(
            b"bad", b'{"id": "x", "source": "s", "title": "t", "text": "t", "published": "soon"}', partition=2
        )
        publisher.flush()


def _publish_bomb(kafka: KafkaConfig) -> tuple[int, int]:
    """A batch that unpacks to far more than may be, and an article behind it; the bomb's partition and offset."""
    client = producer(kafka, max_request_size=1 << 30, buffer_memory=1 << 30)
    sent = client.send(kafka.topic, key=b"bomb", value=bytes(50_000_000), partition=0).get(60)
    client.send(kafka.topic, key=b"bad", value=b"not json either", partition=0).get(60)
    client.close()
    return sent.partition, sent.offset


def test_every_record_has_one_outcome(local_ray: None, topic: TopicFactory, tmp_path: Path) -> None:
    """read = stored + deleted + dead-lettered + duplicates, the group has no lag, and search shows the result.

    A bomb among them is a dead letter with its place, and what follows it is read.
    """
    kafka = replace(topic(), max_record_bytes=200_000, max_batch_bytes=1_000_000)
    _publish_every_kind(kafka)
    bomb = _publish_bomb(kafka)
    with running(make_spec(kafka, tmp_path)) as job:
        figures = settle(job)
        outcomes = {
            name: figures[name] for name in ("read", "stored", "deleted", "dead_lettered", "duplicates")
        }
        assert outcomes == {"read": 52, "stored": 42, "deleted": 2, "dead_lettered": 5, "duplicates": 3}
        assert figures["duplicates_linked"] == 1
        assert figures["lag"] == 0
        assert set(group_lag(kafka).values()) == {0}
        assert sum(figures["committed"].values()) == 52
        letters = list(read_dead_letters(kafka))
        assert sorted(letter.reason for letter in letters) == [
            "bad_time",
            "missing_field",
            "not_json",
            "not_json",
            "unreadable",
        ]
        assert [(x.partition, x.offset) for x in letters if x.reason == "unreadable"] == [bomb]

        client = job.client
        stored = client.articles([f"article-{n}" for n in range(40)] + ["copy", "never-seen"])
        assert stored["article-1"].article == article(1, version=2)
        assert stored["article-5"].deleted
        assert stored["copy"].canonical_id == "article-3"
        assert stored["never-seen"] is None or stored["never-seen"].deleted
        assert client.article("article-7").article == article(7)
        found = client.search(["unique7", "unique5", "version2"], k=3, deadline_s=20)
        assert not found.partial
        assert "article-7" in {passage.article_id for passage in found.passages[0]}
        assert all(passage.article_id != "article-5" for passages in found.passages for passage in passages)
        assert (
            client.search(["unique7"], mode="bm25", streams=["stream-1"]).passages[0][0].article_id
            == "article-7"
        )
        assert client.search(["unique7"], mode="bm25", streams=["stream-2"]).passages[0] == []
        assert [one.id for one in client.recent("stream-0", 2)] == ["article-39", "article-36"]
        changes = client.changes()
        assert {(entry.article_id, entry.kind) for entry in changes.entries} >= {
            ("article-1", "updated"),
            ("article-4", "updated"),
            ("article-5", "deleted"),
        }
        assert client.changes(changes.cursor).entries == ()


def test_second_run_reads_nothing_twice(local_ray: None, topic: TopicFactory, tmp_path: Path) -> None:
    """A new job goes on where the store ends, with other shards' ledgers untouched, and counts only its own.

    While a job runs its twin is refused; a store names its embedder and the other one that came, then and later.
    """
    kafka = topic(partitions=2)
    spec = make_spec(kafka, tmp_path)
    other = replace(spec.embedder, model=str(make_tiny_embedder(tmp_path / "other", seed=1)))
    with Publisher(kafka) as publisher:
        for number in range(20):
            publisher.publish(article(number))
    with running(spec) as job:
        identity = job.client.embedder_identity
        with pytest.raises(UsageError, match="already"):
            IngestJob.start(spec)
        with pytest.raises(StoreMismatch, match=identity):
            IngestJob.start(replace(spec, embedder=other))
        assert settle(job)["read"] == 20
    with pytest.raises(StoreMismatch, match=identity) as caught:
        IngestJob.start(replace(spec, embedder=other))
    assert "other-32" in str(caught.value)
    with Publisher(kafka) as publisher:
        publisher.publish(article(20))
        publisher.publish(article(0))
    with running(spec) as job:
        figures = settle(job)
        assert (figures["read"], figures["stored"], figures["duplicates"]) == (2, 1, 1)
        assert figures["ledger_total"]["read"] == 22


def test_pipeline_pauses_when_full_and_resumes(local_ray: None, topic: TopicFactory, tmp_path: Path) -> None:
    """Far more records than may be under way: partitions are paused and resumed, and every record is stored."""
    kafka = topic(partitions=2)
    with Publisher(kafka) as publisher:
        for number in range(600):
            publisher.publish(article(number, words=30))
    spec = make_spec(kafka, tmp_path, num_shards=1, max_inflight_records=40)
    spec = replace(spec, source=replace(spec.source, max_records=20))
    with running(spec) as job:
        figures = settle(job)
        assert figures["stored"] == 600
        assert figures["pauses"] >= 2
        assert figures["resumes"] >= 2


def test_missing_topic_is_named(local_ray: None, topic: TopicFactory, tmp_path: Path) -> None:
    """A topic that does not exist is a usage error that lists those that do, the most similar first."""
    kafka = topic()
    with pytest.raises(UsageError, match=kafka.topic):
        IngestJob.start(make_spec(replace(kafka, topic=kafka.topic.replace("news", "nwes")), tmp_path))
