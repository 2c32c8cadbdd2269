"""A shard's promises to ingest, sessions and operators."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import (
    ChunkIdCollision,
    DeadLetter,
    Link,
    SearchConfig,
    Shard,
    StaleEpoch,
    StoreConfig,
    StoreFailed,
    StoreLocked,
    StoreMismatch,
    Upsert,
    ids,
)
from tests.pipeline.store import make


def test_an_appended_article_is_found_at_once(shard: Shard) -> None:
    """By vector and by word, with its text and where it comes from."""
    result = shard.append([make.upsert("a", 0)], {(make.TOPIC, 0): 1}, 1)
    assert result.outcomes == ("stored",)
    assert result.num_chunks == 2
    candidates = shard.candidates(make.near("a"))
    assert candidates.dense[0][0].article_id == "a"
    passage = shard.candidates(make.says("markera")).bm25[0][0]
    article = make.article("a")
    assert (passage.title, passage.source, passage.stream, passage.url) == (
        article.title,
        article.source,
        article.stream,
        article.url,
    )
    assert passage.text == f"{article.text} part{passage.ordinal}"
    assert passage.published_ms == article.published_ms == passage.version_ms


def test_a_correction_replaces_the_old_chunks_at_once(shard: Shard) -> None:
    """Neither search returns a word or vector of the version before."""
    make.put(shard, make.upsert("a", 0, num_chunks=3))
    assert make.put(shard, make.upsert("a", 1, version=5, num_chunks=1)) == ("stored",)
    assert make.found(shard, make.near("a", k=10)) == [("a", 0)]
    assert make.found(shard, make.says("word0")) == []
    assert make.found(shard, make.says("word5")) == [("a", 0)]
    assert [(c.article_id, c.kind) for c in shard.changes(0)] == [("a", "updated")]


def test_an_older_version_never_overwrites(shard: Shard) -> None:
    """It is counted as older, the same version as the same, and neither is logged as text."""
    make.put(shard, make.upsert("a", 0, version=5))
    assert make.put(shard, make.upsert("a", 1, version=4), make.upsert("a", 2, version=5)) == (
        "older",
        "same_version",
    )
    assert make.found(shard, make.says("word5"))
    ledger = shard.ledger()[make.TOPIC]
    assert (ledger.read, ledger.stored, ledger.duplicates, ledger.older, ledger.same_version) == (
        3,
        1,
        2,
        1,
        1,
    )


def test_a_late_copy_does_not_bring_withdrawn_news_back(shard: Shard) -> None:
    """After a deletion only a version later than the deleted one returns."""
    make.put(shard, make.upsert("a", 0, version=2), make.delete("a", 1))
    assert make.put(shard, make.upsert("a", 2, version=2), make.upsert("a", 3, version=1)) == (
        "same_version",
        "older",
    )
    stored = shard.article("a")
    assert stored is not None
    assert stored.deleted
    assert make.found(shard, make.near("a")) == []
    assert make.put(shard, make.upsert("a", 4, version=3)) == ("stored",)
    assert make.found(shard, make.says("word3"))


def test_deleting_an_unknown_article_blocks_nothing(shard: Shard) -> None:
    """It is counted and told to sessions, and the article may come later."""
    assert make.put(shard, make.delete("a", 0)) == ("deleted",)
    assert shard.article("a") is None
    assert [(c.article_id, c.kind, c.version_ms) for c in shard.changes(0)] == [("a", "deleted", None)]
    assert make.put(shard, make.upsert("a", 1)) == ("stored",)


def test_a_linked_duplicate_is_known_and_not_searched(shard: Shard) -> None:
    """It names its original, and an update with new text is stored."""
    make.put(shard, make.upsert("a", 0), make.link("b", 1, "a", stream="post"))
    stored = shard.article("b")
    assert stored is not None
    assert (stored.canonical_id, stored.similarity, stored.num_chunks) == ("a", 0.9, 0)
    assert stored.article == make.article("b", stream="post")
    assert make.found(shard, make.says("markerb")) == []
    assert shard.known(["a", "b", "c"]) == {"a": make.article("a").version_ms, "b": None, "c": None}
    assert make.put(shard, make.upsert("b", 2, version=1)) == ("stored",)
    assert make.found(shard, make.says("markerb", k=1))


def test_recent_leaves_out_a_duplicate_within_its_stream(shard: Shard) -> None:
    """A stream's own repetition is not news; another stream's copy is that stream's news."""
    make.put(
        shard,
        make.upsert("a", 0),
        make.link("b", 1, "a", hours=1),
        make.link("c", 2, "a", hours=2, stream="post"),
        make.upsert("d", 3, hours=3),
    )
    assert [article.id for article in shard.recent("wire", 10)] == ["d", "a"]
    assert [article.id for article in shard.recent("post", 10)] == ["c"]
    assert [article.id for article in shard.recent("wire", 1)] == ["d"]
    assert [a.id for a in shard.recent("wire", 10, before_ms=make.article("d", hours=3).published_ms)] == [
        "a"
    ]
    assert shard.recent("nowhere", 10) == []


def test_records_given_before_are_skipped(shard: Shard) -> None:
    """A replay with other content under old coordinates changes neither store nor ledger."""
    make.put(shard, make.upsert("a", 0), make.upsert("b", 1))
    before = shard.ledger().total().to_dict()
    assert make.put(shard, make.upsert("c", 0), make.upsert("d", 1), make.upsert("e", 2)) == (
        "replayed",
        "replayed",
        "stored",
    )
    assert shard.article("c") is None
    assert shard.ledger().total().to_dict() == {**before, "read": 3, "stored": 3}


def test_a_coordinate_twice_in_a_batch_counts_once(shard: Shard) -> None:
    """The second is a replay."""
    assert make.put(shard, make.upsert("a", 0), make.upsert("a", 0)) == ("stored", "replayed")


def test_offsets_advance_without_records_and_never_go_back(shard: Shard, tmp_path: Path) -> None:
    """A shard that got nothing of a batch still knows that the batch is done, after a restart too."""
    shard.append([], {(make.TOPIC, 0): 50, (make.TOPIC, 3): 7}, 1)
    shard.append([], {(make.TOPIC, 0): 20}, 1)
    assert shard.offsets() == {(make.TOPIC, 0): 50, (make.TOPIC, 3): 7}
    make.crash(shard)
    with_offsets = make.open_shard(tmp_path)
    assert with_offsets.offsets() == {(make.TOPIC, 0): 50, (make.TOPIC, 3): 7}
    with_offsets.close()


def test_a_replaced_ingester_is_fenced(shard: Shard, tmp_path: Path) -> None:
    """Its epoch is refused for that partition, also after a restart; other partitions are not touched."""
    make.put(shard, make.upsert("a", 0), epoch=5)
    with pytest.raises(StaleEpoch, match=r"news\[0\]: epoch 4 is older than 5"):
        make.put(shard, make.upsert("b", 1), epoch=4)
    shard.append([make.upsert("c", 0, partition=1)], {(make.TOPIC, 1): 1}, 4)
    make.crash(shard)
    again = make.open_shard(tmp_path)
    with pytest.raises(StaleEpoch):
        make.put(again, make.upsert("b", 1), epoch=4)
    assert again.article("b") is None
    again.close()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (make.upsert("a", 9), "not below the batch's next offset"),
        (make.upsert("a", 0, partition=4), "not below the batch's next offset None"),
        (
            Upsert(
                coordinate=make.at(0),
                article=make.article("a"),
                chunks=make.upsert("a", 0).chunks,
                vectors=np.zeros((2, make.DIM + 1), dtype=np.float16),
            ),
            "width 9; this shard holds 8",
        ),
        (
            Upsert(
                coordinate=make.at(0),
                article=make.article("a"),
                chunks=make.upsert("a", 0).chunks,
                vectors=np.full((2, make.DIM), np.nan, dtype=np.float16),
            ),
            "not finite",
        ),
    ],
)
def test_a_record_that_cannot_be_right_is_refused_whole(shard: Shard, record: Upsert, words: str) -> None:
    """The batch's good records are not stored either, so that the caller may correct and repeat it."""
    with pytest.raises(ValueError, match=words):
        shard.append([make.upsert("good", 1), record], {(make.TOPIC, 0): 5}, 1)
    assert shard.article("good") is None
    assert shard.offsets() == {}


def test_records_that_contradict_themselves_cannot_be_made() -> None:
    """A link to itself; vectors and chunks that do not fit."""
    with pytest.raises(ValueError, match="linked to itself"):
        Link(coordinate=make.at(0), article=make.article("a"), canonical_id="a", similarity=1.0)
    good = make.upsert("a", 0)
    with pytest.raises(ValueError, match="one row a chunk"):
        Upsert(coordinate=make.at(0), article=good.article, chunks=good.chunks, vectors=good.vectors[:1])
    with pytest.raises(ValueError, match="count up from 0"):
        Upsert(coordinate=make.at(0), article=good.article, chunks=good.chunks[::-1], vectors=good.vectors)


@pytest.fixture
def colliding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """From the call on all chunks have one id; nothing of it is remembered afterwards."""

    def collide() -> None:
        monkeypatch.setattr(ids, "_MASK", 0)
        ids.chunk_ids.cache_clear()

    yield collide
    ids.chunk_ids.cache_clear()


def test_an_id_collision_is_detected_before_anything_is_stored(
    shard: Shard, colliding: Callable[[], None]
) -> None:
    """Two articles' chunks with one id: the error names both articles."""
    make.put(shard, make.upsert("a", 0))
    colliding()
    with pytest.raises(ChunkIdCollision, match=r"'c'.*'b'|'b'.*'c'"):
        make.put(shard, make.upsert("b", 1, num_chunks=1), make.upsert("c", 2, num_chunks=1))
    make.put(shard, make.upsert("b", 1, num_chunks=1))
    shard.seal()
    with pytest.raises(ChunkIdCollision) as caught:
        make.put(shard, make.upsert("c", 2, num_chunks=1))
    assert caught.value.article_id == "c"
    assert shard.article("c") is None


def test_changes_are_bounded_and_say_so(tmp_path: Path) -> None:
    """A session that is too far behind learns that it must check everything."""
    shard = make.open_shard(tmp_path, change_log=3)
    make.put(shard, *(make.delete(f"n{n}", n) for n in range(5)))
    everything = shard.changes(0)
    assert everything.truncated
    assert [change.sequence for change in everything] == [3, 4, 5]
    assert not shard.changes(2).truncated
    assert [change.sequence for change in shard.changes(4)] == [5]
    assert shard.changes(5).entries == ()
    assert shard.changes(5).latest == 5
    assert shard.changes(99).truncated, "a sequence of another life of the shard"
    make.crash(shard)
    again = make.open_shard(tmp_path, change_log=3)
    assert again.changes(0) == everything
    again.close()


def test_signatures_come_oldest_first_from_both_kinds_of_segments(shard: Shard) -> None:
    """What near-duplicate detection rebuilds itself from."""
    make.put(shard, make.upsert("b", 0, hours=2), make.upsert("a", 1, hours=1))
    shard.seal()
    make.put(shard, make.upsert("c", 2, hours=3), make.link("d", 3, "a"), make.delete("b", 4))
    rows = shard.signatures(0)
    assert [(row.article_id, row.signature) for row in rows] == [("a", b"sig-a-0"), ("c", b"sig-c-0")]
    assert [row.article_id for row in shard.signatures(rows[1].published_ms)] == ["c"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 1, "other", make.DIM), "embedder 'test-embedder'; given 'other'"),
        ((0, 1, make.EMBEDDER, 9), "dim 8; given 9"),
        ((0, 2, make.EMBEDDER, make.DIM), "num_shards 1; given 2"),
    ],
)
def test_a_store_refuses_what_it_was_not_made_for(
    shard: Shard, tmp_path: Path, arguments: tuple[int, int, str, int], words: str
) -> None:
    """The error says what it was made with, what was given, and what to do."""
    shard.close()
    with pytest.raises(StoreMismatch, match=words):
        Shard.open(tmp_path, make.config(), *arguments)


def test_one_process_at_a_time_holds_a_shard(shard: Shard, tmp_path: Path) -> None:
    """The second is told the first one's process id, and closing lets it in."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_try_open, args=(tmp_path, queue))
    child.start()
    message = queue.get(timeout=60)
    child.join(timeout=60)
    assert f"is open in process {multiprocessing.current_process().pid}" in message
    with pytest.raises(StoreLocked):
        make.open_shard(tmp_path)
    shard.close()
    make.open_shard(tmp_path).close()


def _try_open(root: Path, queue: object) -> None:
    try:
        make.open_shard(root).close()
        queue.put("opened")  # type: ignore[attr-defined]
    except StoreLocked as error:
        queue.put(str(error))  # type: ignore[attr-defined]


def test_a_closed_shard_says_so(shard: Shard) -> None:
    """Using it again is an error, closing it again is not."""
    shard.close()
    shard.close()
    with pytest.raises(ValueError, match="closed"):
        make.put(shard, make.upsert("a", 0))
    with pytest.raises(ValueError, match="closed"):
        shard.candidates(make.near("a"))


def test_a_refused_append_leaves_the_shard_as_it_was(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk did not take is neither searchable nor counted."""

    def full(payload: bytes) -> None:
        raise StoreFailed("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(shard._core.wal, "append", full)
        with pytest.raises(StoreFailed):
            make.put(shard, make.upsert("a", 0))
    assert shard.article("a") is None
    assert shard.offsets() == {}
    assert make.put(shard, make.upsert("a", 0)) == ("stored",)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (StoreConfig, {"seal_rows": 0}),
        (StoreConfig, {"compact_dead": 0.0}),
        (StoreConfig, {"retention_days": -1.0}),
        (StoreConfig, {"merge_segments": 1}),
        (StoreConfig, {"max_segment_rows": 5}),
        (SearchConfig, {"k": 0}),
        (SearchConfig, {"fusion": "sum"}),
        (SearchConfig, {"dense_weight": 1.5}),
    ],
)
def test_a_configuration_that_cannot_work_names_the_field(cls: type, fields: dict) -> None:
    """The field, the value given, and what is allowed."""
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is .*{next(iter(fields.values()))}"):
        cls(**fields)


def test_dead_letters_are_counted_in_their_topic(shard: Shard) -> None:
    """And only counted."""
    shard.append(
        [DeadLetter(coordinate=make.at(3)._replace(topic="other"), reason="not_json")], {("other", 0): 4}, 1
    )
    assert shard.ledger()["other"].to_dict()["dead_lettered"] == 1
    assert make.TOPIC not in shard.ledger()


def test_every_id_that_an_article_is_told_for_was_seen(shard: Shard) -> None:
    """Stored, linked and deleted ones, each with its newest version; not an id that never came."""
    make.put(
        shard, make.upsert("a", 0), make.link("copy", 1, "a"), make.upsert("gone", 2), make.delete("gone", 3)
    )
    names = ["a", "copy", "gone", "never"]
    assert shard.seen(names) == {name: make.article(name).version_ms for name in ("a", "copy", "gone")}
    assert list(shard.seen(names)) == [n for n in names if shard.article(n) is not None]
