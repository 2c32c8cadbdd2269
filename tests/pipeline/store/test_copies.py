"""A near-duplicate outlives the article that it was linked to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.store import Shard
from pipeline.store.copies import Settlement
from tests.pipeline.store import make


def _filled(folder: Path) -> Shard:
    """An original with two copies, then withdrawn."""
    shard = make.open_shard(folder)
    copies = [make.link(f"copy-{n}", n, "original", hours=n) for n in (1, 2)]
    make.put(shard, make.upsert("original", 0), *copies, make.delete("original", 3))
    return shard


def _settlements(shard: Shard) -> list[Settlement]:
    first, second = shard.copies_of(["original"])
    stored = make.upsert(first.article.id, 0)
    return [
        Settlement(
            article_id="copy-1",
            version_ms=first.article.version_ms,
            canonical_id="original",
            chunks=stored.chunks,
            vectors=stored.vectors,
            signature=b"mark",
        ),
        Settlement(
            article_id="copy-2",
            version_ms=second.article.version_ms,
            canonical_id="original",
            linked_to="copy-1",
            similarity=0.8,
        ),
    ]


def _found(shard: Shard) -> set[str]:
    """What searches by vector and by word return."""
    requests = (make.near("copy-1", k=9), make.says("markercopy", k=9), make.says("copy says", k=9))
    return {name for request in requests for name, _ in make.found(shard, request)}


def test_copy_of_a_withdrawn_article_becomes_searchable_and_survives(tmp_path: Path) -> None:
    """The first copy is stored, the second linked to it; a reopened and a sealed shard say the same."""
    shard = _filled(tmp_path)
    assert shard.originals() == ["original"] and _found(shard) == set()
    ledger = shard.ledger()
    assert shard.settle(_settlements(shard)) == [True, True]
    for again in range(3):
        assert _found(shard) == {"copy-1"} and shard.originals() == ["copy-1"]
        first, second = shard.article("copy-1"), shard.article("copy-2")
        assert first is not None and first.canonical_id is None and first.num_chunks > 0
        assert second is not None and second.canonical_id == "copy-1"
        assert shard.ledger() == ledger, "what becomes of a copy later is counted nowhere"
        assert [row.article_id for row in shard.signatures(0)] == ["copy-1"]
        if again == 1:
            shard.seal()
        shard.close()
        shard = make.open_shard(tmp_path)
    shard.close()


def test_settling_twice_or_too_late_changes_nothing(tmp_path: Path) -> None:
    """A decision that was applied, or that no longer fits, leaves the shard as it is."""
    shard = _filled(tmp_path)
    decided = _settlements(shard)
    shard.settle(decided)
    before = shard.stats()["changes"]
    assert shard.settle(decided) == [False, False]
    newer = replace(decided[0], version_ms=decided[0].version_ms + 1)
    unknown = replace(decided[0], article_id="nobody")
    assert shard.settle([newer, unknown]) == [False, False] and shard.stats()["changes"] == before
    shard.close()


def test_copies_are_found_in_sealed_segments_and_not_when_they_are_gone(tmp_path: Path) -> None:
    """Sealed copies are found; withdrawn ones and those of other articles are not."""
    shard = _filled(tmp_path)
    shard.seal()
    assert [copy.article.id for copy in shard.copies_of(["original", "other"])] == ["copy-1", "copy-2"]
    make.put(shard, make.delete("copy-1", 4))
    assert [copy.article.id for copy in shard.copies_of(["original"])] == ["copy-2"]
    assert shard.copies_of(["other"]) == []
    shard.close()
