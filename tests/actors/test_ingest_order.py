"""Near-duplicate verdicts do not depend on how much is under way: the store may be far behind what is judged."""

from __future__ import annotations

import threading
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actors.ingest import Ingester
from actors.ingest_prepare import Batch, Item, Preparer
from actors.ingest_spec import Assignment, IngestSpec
from actors.near_duplicates import Asker, NearDuplicateActor
from infra.bench.faults.news import Published, Timeline
from models.embed import load_tokenizer
from pipeline.article import Article
from pipeline.kafka import KafkaConfig
from pipeline.source import Record
from pipeline.store import StoreConfig

ASKER = Asker("news", (0,), 1)
START = datetime(2024, 5, 1, tzinfo=UTC)
WORDS = " ".join(f"word{number}" for number in range(60))


class _Store:
    """Knows the newest version of what was appended, and has only that."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}

    def seen(self, ids: list[str]) -> dict[str, int]:
        return {name: self.versions[name] for name in ids if name in self.versions}

    def append(self, batch: Batch) -> None:
        for item in batch.items:
            if item.article is not None:
                known = self.versions.get(item.article.id, item.article.version_ms)
                self.versions[item.article.id] = max(known, item.article.version_ms)


class _Keeper(NearDuplicateActor):
    """Of an empty store."""

    def _ask(self, shard: int, method: str, *args: Any) -> Any:
        return {"newest_ms": 0, "live_articles": 0} if method == "stats" else []


class _Letters:
    def send_many(self, letters: list[Any]) -> None:
        pass


def _ingest(tmp_path: Path, values: list[tuple[str, bytes | None]], poll: int, under_way: int) -> list[Item]:
    """The records' items, of polls of `poll` records, while `under_way` batches are not yet in the store."""
    spec = IngestSpec(kafka=KafkaConfig(), store=StoreConfig(path=tmp_path))
    keeper, store = _Keeper(spec.duplicates, ["shard"]), _Store()
    generation = keeper.remember([], ASKER)
    preparer = Preparer(
        spec,
        Assignment(ingester=0, epoch=1, offsets={0: 0}, durable=({},)),
        load_tokenizer("static"),
        seen=store.seen,
        judge=lambda entries: keeper.judge(entries, generation, ASKER),
        persist=lambda attempt, what: attempt(),
    )
    preparer._dead_letters = _Letters()  # type: ignore[assignment]
    records = [
        Record("news", 0, at, 1_700_000_000_000, key.encode(), value, ())
        for at, (key, value) in enumerate(values)
    ]
    items: list[Item] = []
    waiting: deque[Batch] = deque()
    for begin in range(0, len(records), poll):
        for batch in preparer.batches(records[begin : begin + poll], lambda: 64):
            items += batch.items
            waiting.append(batch)
            while len(waiting) > under_way:
                store.append(waiting.popleft())
    return items


def _value(record: Published) -> bytes | None:
    if record.kind == "bad":
        return b'{"id": "broken'
    return None if record.article is None else record.article.to_json()


@pytest.mark.parametrize(("seed", "under_way"), [(2, 1_000), (3, 3), (4, 0), (4, 1_000)])
def test_copies_are_linked_however_much_is_under_way(tmp_path: Path, seed: int, under_way: int) -> None:
    """News with late older versions, withdrawals, returns: each copy hangs on its original, and nothing else.

    A paused ingester's successor has hundreds of records under way at once.
    """
    records = Timeline(seed).draw(400)
    items = _ingest(tmp_path, [(one.article_id, _value(one)) for one in records], 100, under_way)
    assert [item.canonical_id for item in items] == [one.canonical for one in records]
    assert sum(one.canonical is not None for one in records) > 5


def _article(article_id: str, minute: int, text: str = WORDS) -> tuple[str, bytes]:
    at = START + timedelta(minutes=minute)
    made = Article(id=article_id, published=START, updated=at, source="s", title="t", text=text, stream="w")
    return article_id, made.to_json()


@pytest.mark.parametrize("under_way", [0, 1_000])
def test_an_older_version_of_a_withdrawn_article_is_nobodys_original(tmp_path: Path, under_way: int) -> None:
    """The store refuses it, so that what is like it must stand by itself."""
    news = [
        _article("a", 5, "other " * 60),
        ("a", None),
        _article("a", 1),
        _article("b", 2),
        _article("c", 3),
    ]
    items = _ingest(tmp_path, news, 1, under_way)
    assert [item.canonical_id for item in items] == [None, None, None, None, "b"]


@pytest.mark.parametrize("under_way", [0, 1_000])
def test_an_update_of_a_copy_stands_by_itself(tmp_path: Path, under_way: int) -> None:
    """It is a correction of itself, be the copy in the store or under way; a repeat of the copy is only counted."""
    items = _ingest(
        tmp_path, [_article("a", 1), _article("b", 2), _article("b", 2), _article("b", 3)], 1, under_way
    )
    assert [item.canonical_id for item in items] == [None, "a", None, None]
    assert [item.settled for item in items] == [False, False, True, False]


def test_what_is_settled_under_way_keeps_its_texts(tmp_path: Path) -> None:
    """Where the newer one turns out not to be storable, the older one is stored, and whole."""
    for under_way, kept in ((1_000, True), (0, False)):
        items = _ingest(tmp_path, [_article("a", 2), _article("a", 1)], 1, under_way)
        assert items[1].settled and bool(items[1].texts) == bool(items[1].chunks) == kept


def test_a_keeper_made_anew_is_told_only_what_changes_the_store(tmp_path: Path) -> None:
    """An older version under way would take the place of the newer one that the keeper has from the shards."""
    news = [
        _article("a", 5),
        _article("a", 1, "other " * 60),
        ("gone", None),
        _article("b", 6),
        _article("c", 7, "third " * 60),
    ]
    ingester = object.__new__(Ingester)
    ingester._lock = threading.Lock()
    ingester._underway = deque([Batch(_ingest(tmp_path, news, 9, 0), {0: 5})])
    told = [one if isinstance(one, str) else one.article_id for one in ingester._accepted()]
    assert told == ["a", "gone", "c"]
