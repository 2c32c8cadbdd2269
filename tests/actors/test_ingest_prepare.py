"""The first half of ingest: every record becomes one item, in order, in batches cut by chunks."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from actors.ingest_prepare import Preparer
from actors.ingest_spec import Assignment, IngestSpec
from actors.near_duplicates import Verdicts
from models.embed import load_tokenizer
from pipeline.article import Article
from pipeline.chunker import ChunkConfig
from pipeline.kafka import KafkaConfig
from pipeline.near_duplicates import Match
from pipeline.source import Record
from pipeline.store import StoreConfig


class _Letters:
    """Stands in for the dead-letter topic, which needs a broker."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []

    def send_many(self, letters: list[tuple[Record, str, str]]) -> int:
        self.sent += [(record.offset, reason) for record, reason, _ in letters]
        return len(letters)


def _record(offset: int, value: bytes | None, key: bytes = b"k", partition: int = 0) -> Record:
    return Record("news", partition, offset, 1_700_000_000_000, key, value, ())


def _value(article_id: str, text: str = "Rain fell on the harbour.") -> bytes:
    return Article(
        id=article_id, published=datetime(2024, 1, 1, tzinfo=UTC), source="s", title="t", text=text
    ).to_json()


def _preparer(
    tmp_path: Path,
    seen: dict[str, int] | None = None,
    matches: dict[str, Match] | None = None,
    durable: int = 0,
) -> tuple[Preparer, _Letters]:
    spec = IngestSpec(
        kafka=KafkaConfig(),
        store=StoreConfig(path=tmp_path),
        chunks=ChunkConfig(max_tokens=32, max_title_tokens=4),
    )
    assignment = Assignment(ingester=0, epoch=1, offsets={0: 0}, durable=({0: durable},))
    preparer = Preparer(
        spec,
        assignment,
        load_tokenizer("minilm"),
        seen=lambda ids: {name: version for name, version in (seen or {}).items() if name in ids},
        judge=lambda entries: Verdicts(
            1, [(matches or {}).get(e if isinstance(e, str) else e.article_id) for e in entries]
        ),
        persist=lambda attempt, what: attempt(),
    )
    letters = _Letters()
    preparer._dead_letters = letters  # type: ignore[assignment]
    return preparer, letters


def test_every_record_becomes_one_item_in_order(tmp_path: Path) -> None:
    """Articles, deletions and bad records keep their order, and each has one fate."""
    preparer, letters = _preparer(tmp_path, matches={"b": Match("a", 0.9, True)})
    records = [
        _record(0, _value("a")),
        _record(1, b"not json"),
        _record(2, None, key=b"gone"),
        _record(3, _value("b")),
        _record(4, None, key=b""),
    ]
    (batch,) = preparer.batches(records, lambda: 1_000)
    assert [item.record.offset for item in batch.items] == [0, 1, 2, 3, 4]
    assert [item.reason for item in batch.items] == ["", "not_json", "", "", "no_key"]
    assert [item.delete_id for item in batch.items] == [None, None, "gone", None, None]
    assert batch.items[3].canonical_id == "a"
    assert batch.texts() == ["t\nRain fell on the harbour."]
    assert batch.through == {0: 5}
    assert letters.sent == [(1, "not_json"), (4, "no_key")]


def test_batches_are_cut_by_chunks(tmp_path: Path) -> None:
    """A long article fills a batch, short ones share one; the offsets follow."""
    preparer, _ = _preparer(tmp_path)
    records = [_record(n, _value(f"a{n}", "Rain fell. " * (40 if n == 0 else 1))) for n in range(6)]
    batches = list(preparer.batches(records, lambda: 4))
    assert [[item.record.offset for item in batch.items] for batch in batches] == [[0], [1, 2, 3, 4], [5]]
    assert [batch.through[0] for batch in batches] == [1, 5, 6]


def test_version_seen_before_is_not_embedded_again(tmp_path: Path) -> None:
    """The same or an older version goes through without texts; a newer one with them."""
    version = 1_704_067_200_000
    preparer, _ = _preparer(tmp_path, seen={"same": version, "newer": version - 1})
    (batch,) = preparer.batches([_record(0, _value("same")), _record(1, _value("newer"))], lambda: 100)
    assert [bool(item.texts) for item in batch.items] == [False, True]
    assert batch.items[1].fingerprint is not None
    assert batch.items[1].fingerprint.known


def test_record_that_its_shard_has_is_passed_over(tmp_path: Path) -> None:
    """Read again for another shard's sake, a record is neither embedded nor dead-lettered twice."""
    preparer, letters = _preparer(tmp_path, durable=2)
    (batch,) = preparer.batches(
        [_record(0, b"bad"), _record(1, _value("a")), _record(2, b"bad")], lambda: 100
    )
    assert [item.done for item in batch.items] == [True, True, False]
    assert batch.texts() == []
    assert letters.sent == [(2, "not_json")]


def test_article_that_would_need_too_many_chunks_is_a_dead_letter(tmp_path: Path) -> None:
    """The bound on chunks has the clear outcome `too_long`."""
    preparer, letters = _preparer(tmp_path)
    preparer._spec = IngestSpec(
        kafka=KafkaConfig(), store=StoreConfig(path=tmp_path), chunks=ChunkConfig(max_chunks=2)
    )
    list(preparer.batches([_record(0, _value("a", "Rain fell on the harbour. " * 200))], lambda: 100))
    assert letters.sent == [(0, "too_long")]


def test_record_that_could_not_be_unpacked_says_so(tmp_path: Path) -> None:
    """It has neither key nor value, and is no withdrawal and no bad JSON: the letter's reason is why."""
    preparer, letters = _preparer(tmp_path)
    lost = Record("news", 0, 1, 1_700_000_000_000, None, b"", (), "its batch unpacks to more than 1,000")
    (batch,) = preparer.batches([_record(0, _value("a")), lost], lambda: 100)
    assert [item.reason for item in batch.items] == ["", "unreadable"]
    assert batch.items[1].detail == lost.unreadable
    assert letters.sent == [(1, "unreadable")]
