"""The near-duplicate actor without Ray: what it remembers of the shards when it starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from actors.near_duplicates import Asker, NearDuplicateActor
from pipeline.article import Article
from pipeline.near_duplicates import Fingerprinter, NearDuplicateConfig
from pipeline.store import SignatureRow, StoredArticle

CONFIG = NearDuplicateConfig()
ASKER = Asker("news", (0,), 1)
WORDS = " ".join(f"word{number}" for number in range(60))


def _article(article_id: str, text: str = WORDS) -> Article:
    return Article(
        id=article_id,
        published=datetime(2024, 5, 1, tzinfo=UTC),
        source="s",
        title="t",
        text=text,
        stream="w",
    )


class _Actor(NearDuplicateActor):
    """Asks a shard that is a dictionary."""

    def __init__(self, rows: list[SignatureRow], articles: dict[str, Article]) -> None:
        self.rows, self.articles = rows, articles
        self.asked: list[str] = []
        self.calls: list[str] = []
        super().__init__(CONFIG, ["shard"])

    def _ask(self, shard: int, method: str, *args: Any) -> Any:
        self.calls.append(method)
        if method == "stats":
            return {"newest_ms": 0, "live_articles": len(self.rows)}
        if method == "signatures":
            return self.rows
        self.asked += args[0]
        return [
            StoredArticle(id=name, version_ms=1, article=self.articles[name])
            if name in self.articles
            else None
            for name in args[0]
        ]


def test_signatures_of_an_earlier_version_are_made_anew_from_the_articles() -> None:
    """A copy of what an earlier program stored is still linked; nothing that fits is asked for again."""
    stored, fresh = _article("stored"), _article("fresh", WORDS.upper().replace("WORD", "other"))
    mark = Fingerprinter(CONFIG).fingerprint(fresh).signature
    rows = [
        SignatureRow("stored", "w", stored.published_ms, bytes(4 * CONFIG.num_permutations)),
        SignatureRow("fresh", "w", fresh.published_ms, mark),
        SignatureRow("short", "w", fresh.published_ms, b""),
        SignatureRow("gone", "w", fresh.published_ms, bytes(4 * CONFIG.num_permutations)),
    ]
    actor = _Actor(rows, {"stored": stored, "fresh": fresh})
    assert actor.asked == ["stored", "gone"]
    assert actor.stats()["articles"] == 2
    generation = actor.remember([], ASKER)
    copies = [
        Fingerprinter(CONFIG).fingerprint(_article(f"copy-{one.id}", one.text)) for one in (stored, fresh)
    ]
    matches = actor.judge([*copies], generation, ASKER).matches
    assert matches is not None
    assert [match.canonical_id if match else None for match in matches] == ["stored", "fresh"]


def test_a_keeper_judges_without_asking_the_shards() -> None:
    """Copies are linked, one that the ingester found to be known is not: others would wait while a keeper asks."""
    original = _article("a-first")
    actor = _Actor([], {})
    fingerprinter, generation = Fingerprinter(CONFIG), actor.remember([], ASKER)
    actor.judge([fingerprinter.fingerprint(original)], generation, ASKER)
    copies = [fingerprinter.fingerprint(_article(f"copy-{number}")) for number in range(3)]
    copies[1] = copies[1]._replace(known=True)
    actor.calls.clear()
    matches = actor.judge(["withdrawn", *copies], generation, ASKER).matches
    assert matches is not None
    assert [match.canonical_id if match else None for match in matches] == [
        None,
        "a-first",
        None,
        "a-first",
    ]
    assert actor.calls == []


def test_a_keeper_tells_how_long_it_has_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time within its calls, none of that between them: what tells a keeper that all wait for."""
    actor = _Actor([], {})
    generation = actor.remember([], ASKER)
    seconds = iter((10.0, 10.25, 90.0, 90.5))
    clock = SimpleNamespace(monotonic=lambda: next(seconds), time=lambda: 1.0)
    monkeypatch.setattr("actors.near_duplicates.time", clock)
    assert actor.stats()["busy_ms"] == 0
    for _ in range(2):
        actor.judge([], generation, ASKER)
    assert actor.stats()["busy_ms"] == 750


@pytest.fixture
def own_thresholds() -> Iterator[None]:
    """What an actor sets for its process is set back."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_a_process_that_carries_articles_looks_for_garbage_rarely(own_thresholds: None) -> None:
    """Not every 700 objects: an article makes hundreds, and none is in a cycle."""
    gc.set_threshold(700, 10, 10)
    _Actor([], {})
    assert gc.isenabled() and gc.get_threshold() == (20_000, 20, 20)
