"""Compaction, expiry and what maintenance does when: what is stored never changes by them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import maintenance
from pipeline.store import shard as shard_module
from tests.pipeline.store import make
from tests.pipeline.store.damage import everything, flip


def test_compaction_rewrites_segments_with_too_much_dead(tmp_path: Path) -> None:
    """Above the share only; the dead rows leave the disk, the living keep their place in every search."""
    shard = make.open_shard(tmp_path, seal_rows=1_000, merge_segments=0, compact_dead=0.2)
    make.put(shard, *(make.upsert(f"n{n}", n) for n in range(10)))
    shard.seal()
    make.put(shard, make.delete("n0", 10), make.upsert("n1", 11, version=1))
    assert shard.compact() == 0, "exactly a fifth is dead: not above it"
    make.put(shard, make.delete("n2", 12))
    live = everything(shard)
    assert shard.compact() == 1
    stats = shard.stats()
    assert stats["tombstones"] == 0
    assert everything(shard) == live
    article = shard.article("n5")
    assert article is not None
    assert article.article == make.article("n5")
    shard.close()
    again = make.open_shard(tmp_path, seal_rows=1_000, merge_segments=0)
    assert everything(again) == live
    assert again.ledger().total().read == 13
    again.close()


def test_a_segment_that_is_wholly_dead_disappears(tmp_path: Path) -> None:
    """Its folder too."""
    shard = make.open_shard(tmp_path)
    make.put(shard, make.upsert("a", 0), make.upsert("b", 1))
    shard.seal()
    make.put(shard, make.delete("a", 2), make.delete("b", 3), make.upsert("c", 4))
    shard.compact()
    shard.seal()
    make.put(shard, make.upsert("d", 5))
    shard.seal()
    assert "seg-000001" not in make.segment_names(shard)
    assert not (tmp_path / "shard-0000/segments/seg-000001").exists()
    assert everything(shard) == {(name, ordinal) for name in "cd" for ordinal in (0, 1)}
    shard.close()


def test_small_segments_are_joined_up_to_the_largest_size(tmp_path: Path) -> None:
    """The number of segments grows with the logarithm of the store; links and texts come along."""
    shard = make.open_shard(tmp_path, seal_rows=16, merge_segments=3, max_segment_rows=40)
    offset = 0
    for n in range(12):
        make.put(
            shard,
            make.upsert(f"n{n}", offset, hours=n, num_chunks=4),
            make.link(f"l{n}", offset + 1, f"n{n}", hours=n),
        )
        offset += 2
        shard.seal()
        shard.compact()
    sizes = [segment["chunks"] for segment in shard.stats()["segments"]]
    assert sum(sizes) == 48
    assert max(sizes) <= 40
    assert len(sizes) < 8
    for n in range(12):
        stored, linked = shard.article(f"n{n}"), shard.article(f"l{n}")
        assert stored is not None
        assert linked is not None
        assert stored.article == make.article(f"n{n}", hours=n)
        assert linked.canonical_id == f"n{n}"
    assert len(everything(shard)) == 48
    shard.close()


def test_what_happens_during_a_compaction_is_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletions, corrections and new articles while segments are rewritten: nothing comes back, nothing is lost."""

    shard = make.open_shard(tmp_path, seal_rows=1_000, merge_segments=2)
    make.put(shard, *(make.upsert(f"n{n}", n) for n in range(6)))
    shard.seal()
    make.put(shard, *(make.upsert(f"n{n}", n) for n in range(6, 12)))
    shard.seal()
    real = maintenance.write_segment

    def busy(*arguments):
        result = real(*arguments)
        thread = threading.Thread(
            target=make.put,
            args=(
                shard,
                make.delete("n1", 12),
                make.upsert("n7", 13, version=4, num_chunks=1),
                make.upsert("new", 14),
            ),
        )
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive(), "an append had to wait for the compaction"
        return result

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "write_segment", busy)
        assert shard.compact() == 2
    expected = {(f"n{n}", ordinal) for n in range(12) if n not in (1, 7) for ordinal in (0, 1)}
    expected |= {("n7", 0), ("new", 0), ("new", 1)}
    assert everything(shard) == expected
    make.crash(shard)
    again = make.open_shard(tmp_path)
    assert everything(again) == expected
    assert again.ledger().total().read == 15
    again.close()


def test_expiry_drops_whole_segments_past_retention(tmp_path: Path) -> None:
    """And only those; the ledger still knows what was stored, and a late copy is stored anew."""
    shard = make.open_shard(tmp_path, retention_days=10.0, merge_segments=0)
    start = make.article("x").published_ms
    make.put(shard, make.upsert("old", 0), make.upsert("mixed-old", 1))
    make.put(shard, make.delete("mixed-old", 2))
    shard.seal()
    make.put(shard, make.upsert("mid", 3, hours=24 * 5))
    shard.seal()
    make.put(shard, make.upsert("new", 4, hours=24 * 12))
    assert shard.expire(start + 9 * make.DAY_MS) == 0
    assert shard.expire(start + 11 * make.DAY_MS) == 2
    assert everything(shard) == {(name, ordinal) for name in ("mid", "new") for ordinal in (0, 1)}
    assert shard.article("old") is None
    assert shard.article("mixed-old") is None, "tombstones expire too"
    assert shard.ledger().total().stored == 4
    assert [a.id for a in shard.recent("wire", 9)] == ["new", "mid"]
    make.crash(shard)
    again = make.open_shard(tmp_path, retention_days=10.0, merge_segments=0)
    assert everything(again) == {(name, ordinal) for name in ("mid", "new") for ordinal in (0, 1)}
    assert make.put(again, make.upsert("old", 5)) == ("stored",)
    assert again.maintain(start + 30 * make.DAY_MS)["expired_chunks"] == 6
    assert everything(again) == set()
    again.close()


def test_files_of_what_expired_go_where_no_article_comes_any_more(tmp_path: Path) -> None:
    """At the second look after it: until then the checkpoint before needs them. A shard at rest is left alone, and
    either manifest opens what is left."""
    shard = make.open_shard(tmp_path, retention_days=10.0, merge_segments=0)
    late = make.article("x").published_ms + 11 * make.DAY_MS
    make.put(shard, *[make.upsert(f"old{n}", n) for n in range(5)])
    shard.seal()
    make.put(shard, make.upsert("new", 5, hours=24 * 8))

    def looked() -> tuple[set[str], int]:
        shard.maintain(late)
        folders = (shard._core.folder / "segments").iterdir()
        return {path.name for path in folders}, shard.stats()["generation"]

    named, generation = looked()
    assert len(named) == 2 and make.segment_names(shard) == ["seg-000002"]
    assert looked() == ({"seg-000002"}, generation + 1)
    assert looked() == ({"seg-000002"}, generation + 1)
    make.crash(shard)
    flip(shard._core.folder / "manifest.json", 5_003)
    again = make.open_shard(tmp_path, retention_days=10.0, merge_segments=0)
    assert everything(again) == {("new", 0), ("new", 1)}
    assert again.ledger().total().stored == 6
    again.close()


def test_what_has_left_is_not_held_in_the_order_of_its_stream(tmp_path: Path) -> None:
    """Expired, updated and deleted articles alike: the order grows with what lives, not with what ever came."""
    shard = make.open_shard(tmp_path, seal_rows=512, min_seal_rows=512, retention_days=1.0, merge_segments=0)
    start, offset, live = make.article("x").published_ms, 0, 100
    for day in range(12):
        names = [f"a{day}-{n}" for n in range(live)]
        stream = "brief" if day == 0 else "wire"
        for version in (0, 1):
            made = [
                make.upsert(name, offset + n, version, num_chunks=1, stream=stream, hours=24.0 * day)
                for n, name in enumerate(names)
            ]
            make.put(shard, *made)
            offset += len(made)
        shard.seal()
        shard.expire(start + day * make.DAY_MS + 2)
    state = shard._core.state
    assert sum(map(len, state.streams.values())) == len(state.catalog)
    assert set(state.streams) == {"wire"}, "a stream of which nothing lives is forgotten"
    assert [a.id for a in shard.recent("wire", 2)] == [f"a11-{n}" for n in (99, 98)]
    shard.close()


def test_no_table_outgrows_what_lives(tmp_path: Path) -> None:
    """Stored, updated, linked and deleted, day after day: after the tenth day a shard holds what it held after the
    fourth, in every table, on the disk and in the checkpoint."""
    shard = make.open_shard(tmp_path, retention_days=2.0, change_log=50, seal_rows=64)
    core, start, offset, sizes = shard._core, make.article("x").published_ms, 0, []
    for day in range(10):
        hours = 24.0 * day
        made: list[Any] = []
        for n in range(40):
            at = {"stream": f"s{day}-{n % 4}", "hours": hours}
            made.append(make.upsert(f"a{day}-{n}", offset + len(made), num_chunks=1, **at))
            if n % 4 == 0:
                made.append(make.upsert(f"a{day}-{n}", offset + len(made), 1, num_chunks=1, **at))
            if n % 5 == 0:
                made.append(make.link(f"l{day}-{n}", offset + len(made), f"a{day}-{n}", **at))
            if n % 10 == 3:
                made.append(make.delete(f"a{day}-{n}", offset + len(made)))
        make.put(shard, *made)
        offset += len(made)
        shard._join_sealing()
        shard.maintain(start + (day + 1) * make.DAY_MS)
        state, saved = core.state, core.checkpoint
        sizes.append(
            {
                "catalog": len(state.catalog), "streams": len(state.streams), "tombstones": len(state.tombstones),
                "ordered": sum(map(len, state.streams.values())), "changes": len(state.recent_changes),
                "linked": state.num_linked, "offsets": len(state.offsets), "epochs": len(state.epochs),
                "segments": len(core.segments), "rows": sum(s.num_rows for s in core.segments),
                "waiting": len(core._waiting), "words": core.lexical.num_docs, "repairs": len(core.repairs),
                "saved": len(saved.segments) + len(saved.dead) + len(saved.tombstones) + len(saved.changes),
                "folders": sum(1 for _ in (core.folder / "segments").iterdir()),
                "logs": sum(1 for _ in (core.folder / "wal").iterdir()),
            }
        )  # fmt: skip
    assert sizes[3]["catalog"] > 40 and sizes[3]["tombstones"] > 0 and sizes[3]["changes"] == 50
    grown = {name: (sizes[3][name], size) for name, size in sizes[-1].items() if size > sizes[3][name]}
    assert not grown
    shard.close()


def test_maintain_does_nothing_when_nothing_is_due(tmp_path: Path) -> None:
    """No checkpoint is written for its own sake."""
    shard = make.open_shard(tmp_path)
    make.put(shard, make.upsert("a", 0))
    generation = shard.stats()["generation"]
    assert shard.maintain(0) == {"expired_chunks": 0, "compacted_segments": 0}
    assert shard.stats()["generation"] == generation
    shard.close()


def test_maintenance_waits_its_turn_after_a_sealing(tmp_path: Path) -> None:
    """Under load a sealing is nearly always under way; what retention drops must go all the same."""
    shard = make.open_shard(tmp_path, retention_days=1.0)
    make.put(shard, make.upsert("old", 0, num_chunks=1))
    held = shard._core.maintenance
    held.acquire()
    ends = threading.Timer(0.3, held.release)
    ends.start()
    done = shard.maintain(make.article("x").published_ms + 3 * make.DAY_MS)
    ends.join(10.0)
    assert done["expired_chunks"] == 1
    shard.close()


def test_maintenance_does_not_wait_for_a_long_sealing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of minutes keeps it from its look, and no longer than its limit."""
    monkeypatch.setattr(shard_module, "_TURN_S", 0.05)
    shard = make.open_shard(tmp_path, retention_days=1.0)
    make.put(shard, make.upsert("old", 0))
    with shard._core.maintenance:
        done = shard.maintain(make.article("x").published_ms + 3 * make.DAY_MS)
    assert done == {"expired_chunks": 0, "compacted_segments": 0}
    shard.close()
