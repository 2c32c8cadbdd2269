"""Copies of a withdrawn article through broker, ingest job and shards: one becomes searchable, none is counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from actors.ingest_job import IngestJob
from actors.remote import call
from pipeline.article import Article
from pipeline.placement import shard_of
from pipeline.publisher import Publisher
from pipeline.store import Coordinate, Delete
from tests.broker import TopicFactory
from tests.integration.ingest_case import article, make_spec, running, settle, until_read, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.ray]


def _copies(original: Article) -> list[Article]:
    return [
        replace(original, id=f"copy-{n}", published=original.published + timedelta(hours=n)) for n in (1, 2)
    ]


def _found(job: IngestJob) -> set[str]:
    return {passage.article_id for passage in job.client.search(["unique3"], mode="bm25", k=9).passages[0]}


def test_withdrawal_of_the_original_makes_its_copy_searchable(
    local_ray: None, topic: TopicFactory, tmp_path: Path
) -> None:
    """The oldest copy is found once its original is withdrawn, the other hangs on it, and the sum holds."""
    kafka = topic()
    spec = make_spec(kafka, tmp_path)
    original = article(3)
    with running(spec) as job:
        with Publisher(kafka) as publisher:
            for one in (original, *_copies(original)):
                publisher.publish(one)
            publisher.flush()
            until_read(job, 3)
            assert _found(job) == {"article-3"}
            publisher.delete("article-3", original.stream)
            publisher.flush()
        wait_for(lambda: _found(job) == {"copy-1"}, "the copy is searchable")
        figures = settle(job)
        counted = {name: figures[name] for name in ("read", "stored", "deleted", "duplicates")}
        assert counted == {"read": 4, "stored": 1, "deleted": 1, "duplicates": 2}
        found = job.client.articles(["copy-1", "copy-2"])
        assert found["copy-1"].canonical_id is None and found["copy-2"].canonical_id == "copy-1"  # type: ignore[union-attr]


def test_copy_left_behind_by_a_kill_is_mended_at_the_next_start(
    local_ray: None, topic: TopicFactory, tmp_path: Path
) -> None:
    """A withdrawal that is durable while its copies were never looked at is made good by the next job."""
    kafka = topic()
    spec = make_spec(kafka, tmp_path)
    original = article(3)
    with Publisher(kafka) as publisher:
        for one in (original, *_copies(original)):
            publisher.publish(one)
    with running(spec) as job:
        settle(job)
        shard = job.client.shard_handle(shard_of("article-3", 2))
        lost = Delete(coordinate=Coordinate("by-hand", 0, 0), article_id="article-3")
        call(shard.append.remote([lost], {("by-hand", 0): 1}, 1))
        assert _found(job) == set()
    with running(spec) as job:
        wait_for(lambda: _found(job) == {"copy-1"}, "the copy is searchable")
        settle(job)
