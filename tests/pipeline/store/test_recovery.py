"""What a shard does about damage, crashes and files of another version."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import crc32c
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import OffsetGap, SearchRequest, Shard, StoreCorrupt, StoreFailed, StoreTooNew, wal
from pipeline.store.files import write_json
from pipeline.store.lexical import LexicalIndex
from pipeline.store.snapshots import restore
from tests.forked import forkserver
from tests.pipeline.store import kill_writer, make

NAMES = [f"n{n}" for n in range(12)]


def filled(root: Path) -> tuple[int, set[tuple[str, int]]]:
    """Two sealed segments, tombstones and a growing segment; returns the next offset and what is searchable."""
    shard = make.open_shard(root)
    make.put(shard, *(make.upsert(name, n, hours=n) for n, name in enumerate(NAMES[:5])))
    shard.seal()
    make.put(shard, *(make.upsert(name, n, hours=n) for n, name in enumerate(NAMES[5:10], 5)))
    make.put(shard, make.delete("n0", 10), make.upsert("n1", 11, version=3, hours=1))
    shard.seal()
    make.put(shard, make.upsert("n10", 12), make.delete("n6", 13))
    live = everything(shard)
    shard.close()
    return 14, live


def everything(shard: Shard) -> set[tuple[str, int]]:
    """All chunks that a dense search can find; keyword search must find the same."""
    found = make.found(shard, make.near("x", k=1_000))
    assert set(found) == set(make.found(shard, make.says("says", k=1_000)))
    assert len(found) == len(set(found)) == shard.stats()["live_chunks"]
    return set(found)


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << (bit % 8)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["index.faiss", "chunks.arrow", "articles.arrow", "derived.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_index_is_made_again(tmp_path: Path, name: str, how: str) -> None:
    """From the truth, without a difference in what is found, and only once."""
    _, live = filled(tmp_path)
    for path in (tmp_path / "shard-0000/segments").glob(f"*/{name}"):
        before = path.read_bytes()
        if how == "flip":
            flip(path, 8 * (len(before) // 2))
        elif how == "cut":
            os.truncate(path, len(before) // 2)
        else:
            path.unlink()
    shard = make.open_shard(tmp_path)
    assert everything(shard) == live
    shard.close()
    for path in (tmp_path / "shard-0000/segments").glob("*/index.faiss"):
        changed = path.stat().st_mtime_ns
        make.open_shard(tmp_path).close()
        assert path.stat().st_mtime_ns == changed


@given(bit=st.integers(0, 10**6), name=st.sampled_from(["chunks.parquet", "articles.parquet"]))
@settings(max_examples=6, deadline=None)
def test_a_damaged_truth_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, bit: int, name: str
) -> None:
    """Where nothing may be mended it is never opened as if it were whole; else it is written from its copy."""
    root = tmp_path_factory.mktemp("truth")
    _, live = filled(root)
    path = next(iter((root / "shard-0000/segments").glob(f"*/{name}")))
    flip(path, bit)
    with pytest.raises(StoreCorrupt, match=str(path)):
        make.open_shard(root, repair=False)
    shard = make.open_shard(root)
    assert everything(shard) == live
    assert any(str(path) in repair for repair in shard.stats()["repairs"])
    shard.close()
    again = make.open_shard(root, repair=False)
    assert everything(again) == live
    again.close()


def test_a_segment_lost_for_good_is_taken_from_the_log_or_from_the_topic(tmp_path: Path) -> None:
    """Truth and copy damaged: the checkpoint before and its log; where that has it too, the shard begins anew."""
    _, live = filled(tmp_path)
    segments = sorted((tmp_path / "shard-0000/segments").iterdir())
    for name in ("chunks.parquet", "chunks.arrow"):
        flip(segments[1] / name, 4_000)
    shard = make.open_shard(tmp_path)
    assert everything(shard) == live and shard.offsets() == {(make.TOPIC, 0): 14}
    shard.seal()
    shard.close()
    for name in ("articles.parquet", "articles.arrow"):
        flip(segments[0] / name, 4_000)
    shard = make.open_shard(tmp_path)
    assert everything(shard) == set() and shard.offsets() == {} and shard.ledger().total().read == 0
    assert "begun anew" in shard.stats()["repairs"][0]
    make.put(shard, *(make.upsert(name, n, hours=n) for n, name in enumerate(NAMES)))
    shard.close()
    assert list((tmp_path / "shard-0000/damaged").glob("*-shard/segments/*/chunks.parquet"))


def test_an_append_after_a_gap_is_refused(tmp_path: Path) -> None:
    """A log that lost acknowledged records takes nothing that follows them; from its own offset on it does."""
    shard = make.open_shard(tmp_path)
    make.put(shard, make.upsert("n0", 0))
    make.put(shard, make.upsert("n1", 1))
    shard.close()
    wal = next((tmp_path / "shard-0000/wal").iterdir())
    os.truncate(wal, wal.stat().st_size - 1)
    shard = make.open_shard(tmp_path)
    place = (make.TOPIC, 0)
    with pytest.raises(OffsetGap, match="before offset 1"):
        shard.append([make.upsert("n2", 2)], {place: 3}, 1, {place: 2})
    shard.append([make.upsert("n1", 1), make.upsert("n2", 2)], {place: 3}, 1, {place: 1})
    assert set(shard.known(["n0", "n1", "n2"]).values()) & {None} == set()
    shard.close()


def test_a_store_of_the_first_schema_is_read_and_written_anew(tmp_path: Path) -> None:
    """Manifests, lists of derived files and logs of version 1 open; the next checkpoint is of the present one."""
    _, live = filled(tmp_path)
    folder = tmp_path / "shard-0000"
    for path in [*folder.glob("manifest*.json"), *folder.glob("segments/*/derived.json")]:
        body = orjson.loads(path.read_bytes())["body"]
        if "wal" in body:
            body["wal"][1] = 20
        check = crc32c.crc32c(orjson.dumps(body, option=orjson.OPT_SORT_KEYS))
        path.write_bytes(orjson.dumps({"schema_version": 1, "crc32c": check, "body": body}))
    for path in (folder / "wal").iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:8] + (1).to_bytes(4, "little") + data[12:20] + data[24:])
    shard = make.open_shard(tmp_path, repair=False)
    assert everything(shard) == live and shard.stats()["repairs"] == []
    shard.seal()
    shard.close()
    assert orjson.loads((folder / "manifest.json").read_bytes())["schema_version"] == 2


def test_a_keyword_index_ahead_of_a_cut_log_is_made_again(tmp_path: Path) -> None:
    """As many chunks are not the same chunks: what the log lost must not be found, nor found twice later."""
    shard = make.open_shard(tmp_path)
    make.put(shard, make.upsert("n0", 0))
    cut = next((tmp_path / "shard-0000/wal").iterdir()).stat().st_size
    make.put(shard, make.upsert("n1", 1), make.delete("n0", 2))
    shard.close()
    os.truncate(next((tmp_path / "shard-0000/wal").iterdir()), cut)
    shard = make.open_shard(tmp_path)
    assert everything(shard) == {("n0", 0), ("n0", 1)}
    make.put(shard, make.upsert("n1", 1), make.delete("n0", 2))
    assert everything(shard) == {("n1", 0), ("n1", 1)}
    shard.close()


@given(bit=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_a_damaged_manifest_costs_a_longer_replay_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, bit: int
) -> None:
    """The one before it is used; appends and seals go on from there."""
    root = tmp_path_factory.mktemp("manifest")
    offset, live = filled(root)
    flip(root / "shard-0000/manifest.json", bit)
    shard = make.open_shard(root, seal_rows=1_000)
    assert everything(shard) == live
    assert shard.ledger().total().read == offset
    make.put(shard, make.upsert("n11", offset))
    shard.seal()
    shard.close()
    again = make.open_shard(root)
    assert everything(again) == live | {("n11", 0), ("n11", 1)}
    again.close()
    (root / "shard-0000/manifest.json").write_bytes(b"{}")
    twice = make.open_shard(root)
    assert everything(twice) == live | {("n11", 0), ("n11", 1)}, (
        "the good manifest was lost to the damaged one"
    )
    twice.close()


@pytest.mark.parametrize("damage", ["missing", "state"])
def test_a_missing_manifest_or_state_falls_back_too(tmp_path: Path, damage: str) -> None:
    """As a damaged one does."""
    _, live = filled(tmp_path)
    folder = tmp_path / "shard-0000"
    if damage == "missing":
        (folder / "manifest.json").unlink()
    else:
        flip(max(folder.glob("state-*.bin")), 40)
    shard = make.open_shard(tmp_path)
    assert everything(shard) == live
    shard.close()


def test_without_any_manifest_segments_are_refused(tmp_path: Path) -> None:
    """A new store never grows over what is left of another."""
    filled(tmp_path)
    for path in (tmp_path / "shard-0000").glob("manifest*.json"):
        path.unlink()
    with pytest.raises(StoreCorrupt, match=r"no manifest\.json"):
        make.open_shard(tmp_path, repair=False)


def test_a_newer_manifest_is_refused_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it would be an older state of the store: nothing falls back from a newer version."""
    filled(tmp_path)
    path = tmp_path / "shard-0000/manifest.json"
    envelope = orjson.loads(path.read_bytes())
    with monkeypatch.context() as later:
        later.setattr("pipeline.store.files.SCHEMA_VERSION", 3)
        write_json(path, envelope["body"])
    with pytest.raises(StoreTooNew, match="schema version 3"):
        make.open_shard(tmp_path)


@pytest.mark.parametrize("kind", ["manifest.json", "derived.json", "wal"])
def test_any_file_of_a_newer_schema_is_refused_and_nothing_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """By name, also where repairing is allowed; a snapshot of a newer version is not restored either."""
    filled(tmp_path)
    folder = tmp_path / "shard-0000"
    path = sorted(folder.glob("wal/*") if kind == "wal" else folder.rglob(kind))[-1]
    with monkeypatch.context() as later:
        if kind == "wal":
            later.setattr(wal, "SCHEMA_VERSION", 3)
            data = path.read_bytes()
            path.write_bytes(wal._header(int.from_bytes(data[12:20], "little")) + data[24:])
        else:
            later.setattr("pipeline.store.files.SCHEMA_VERSION", 3)
            write_json(path, orjson.loads(path.read_bytes())["body"])
    held = {
        one: one.read_bytes() for one in folder.rglob("*") if one.is_file() and "lexical" not in one.parts
    }
    for _ in range(2):
        with pytest.raises(
            StoreTooNew, match=f"{path} has schema version 3; this DySRA reads up to 2: upgrade"
        ):
            make.open_shard(tmp_path)
    assert {one: one.read_bytes() for one in held} == held
    if kind == "manifest.json":
        with pytest.raises(StoreTooNew, match="schema version 3"):
            restore(tmp_path, tmp_path / "restored")
        assert not (tmp_path / "restored").exists()


def test_a_lost_log_is_refused(tmp_path: Path) -> None:
    """Appends that were acknowledged cannot be forgotten in silence."""
    filled(tmp_path)
    for path in (tmp_path / "shard-0000/wal").iterdir():
        path.unlink()
    with pytest.raises(StoreCorrupt, match="is missing"):
        make.open_shard(tmp_path, repair=False)
    shard = make.open_shard(tmp_path)
    assert shard.offsets() == {(make.TOPIC, 0): 12} and "is missing" in shard.stats()["repairs"][0]
    shard.close()


@pytest.mark.parametrize("how", ["remove", "garbage", "stale"])
def test_a_damaged_keyword_index_is_made_again(tmp_path: Path, how: str) -> None:
    """When it is gone, unreadable, or of an earlier time."""
    offset, live = filled(tmp_path)
    folder = next((tmp_path / "shard-0000/lexical").iterdir())
    if how == "garbage":
        for path in folder.iterdir():
            path.write_bytes(b"garbage")
    elif how == "remove":
        for path in folder.iterdir():
            path.unlink()
    else:
        old = {path.name: path.read_bytes() for path in folder.iterdir()}
        shard = make.open_shard(tmp_path)
        make.put(shard, make.upsert("n11", offset))
        live = everything(shard)
        shard.seal()
        shard.close()
        for path in folder.iterdir():
            path.unlink()
        for name, content in old.items():
            (folder / name).write_bytes(content)
    shard = make.open_shard(tmp_path)
    assert everything(shard) == live
    shard.close()


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    """Half-written segments and states that no manifest names."""
    _, live = filled(tmp_path)
    folder = tmp_path / "shard-0000"
    (folder / "segments/seg-000099.tmp").mkdir()
    (folder / "segments/seg-000098").mkdir()
    (folder / "state-00000099.bin").write_bytes(b"x")
    shard = make.open_shard(tmp_path)
    assert everything(shard) == live
    shard.close()
    names = {path.name for path in (folder / "segments").iterdir()}
    assert names == {"seg-000001", "seg-000002"}
    assert not (folder / "state-00000099.bin").exists()


def test_a_failed_sealing_loses_nothing_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a full disk rows stay searchable and durable; the next sealing writes them."""
    shard = make.open_shard(tmp_path, seal_rows=64)
    make.put(shard, *(make.upsert(name, n) for n, name in enumerate(NAMES)))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.maintenance.write_segment", full)
        with pytest.raises(OSError, match="No space"):
            shard.seal()
    live = everything(shard)
    assert len(live) == 2 * len(NAMES)
    make.put(shard, make.delete("n3", 12), make.upsert("n4", 13, version=2))
    assert shard.seal() == 2
    assert everything(shard) == live - {("n3", 0), ("n3", 1)}
    make.crash(shard)
    again = make.open_shard(tmp_path)
    assert everything(again) == live - {("n3", 0), ("n3", 1)}
    again.close()


@pytest.mark.parametrize(
    ("seed", "kills"),
    [(0, 6), (1, 6), *(pytest.param(seed, 25, marks=pytest.mark.slow) for seed in (2, 3, 4))],
)
def test_kill_nine_at_any_moment_loses_no_acknowledged_record(tmp_path: Path, seed: int, kills: int) -> None:
    """A process that appends, seals and compacts is killed again and again; whatever it acknowledged is
    there, nothing is there twice, and the state is that of an undisturbed run over the same records."""
    context = forkserver()
    moments = random.Random(seed)
    acknowledged = -1
    for attempt in range(kills):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=kill_writer.main, args=(tmp_path / "killed", seed, sender))
        process.start()
        sender.close()
        assert receiver.poll(120), "the writer did not open the shard"
        assert receiver.recv() == "open"
        time.sleep(moments.choice((0.01, 0.1, 0.4, 1.0)) * moments.random())
        process.kill()
        process.join(timeout=60)
        with contextlib.suppress(EOFError, OSError):
            while True:
                acknowledged = max(acknowledged, receiver.recv())
        shard = make.open_shard(tmp_path / "killed")
        reached = shard.offsets().get((make.TOPIC, 0), 0)
        state = outline(shard)
        shard.close()
        assert reached > acknowledged
        assert state == outline_of_run(tmp_path / f"plain-{attempt}", seed, reached)
    assert acknowledged > 0, "no append was ever acknowledged: the kills came too early to prove anything"


def outline(shard: Shard) -> dict:
    """Everything that must not depend on crashes."""
    return {
        "live": everything(shard),
        "articles": {name: shard.article(name) for name in NAMES},
        "ledger": shard.ledger().total().to_dict(),
        "changes": shard.changes(0),
        "offsets": shard.offsets(),
    }


def outline_of_run(root: Path, seed: int, through: int) -> dict:
    """The outline after the same records without any crash."""
    shard = make.open_shard(root, seal_rows=64)
    for batch in kill_writer.records(seed):
        if batch[0].coordinate.offset >= through:
            break
        make.put(shard, *batch)
    state = outline(shard)
    shard.close()
    return state


@pytest.mark.parametrize("suffix", [".term", ".idx", ".fast", ".store", ".fieldnorm"])
def test_a_bit_flipped_in_the_keyword_index_is_found_before_the_index_is_used(
    tmp_path: Path, suffix: str
) -> None:
    """The log's records are replayed into a new index, never into the damaged one."""
    _, live = filled(tmp_path)
    path = next((tmp_path / "shard-0000/lexical").glob(f"*/*{suffix}"))
    for bit in (0, 8 * (path.stat().st_size // 2)):
        flip(path, bit)
    shard = make.open_shard(tmp_path)
    assert everything(shard) == live
    assert any(path.name in repair and "made again" in repair for repair in shard.stats()["repairs"])
    shard.close()


def test_keyword_search_over_a_damaged_file_costs_neither_the_process_nor_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panic over a bit that flipped under the running shard: hybrid search goes on by vector, words alone are an
    outage, and the next maintenance makes the index again."""
    _, live = filled(tmp_path)
    shard = make.open_shard(tmp_path)
    flip(next((tmp_path / "shard-0000/lexical").glob("*/*.term")), 0)

    class Panic(BaseException):
        """As the Rust side raises it."""

    def panic(*_: object) -> None:
        raise Panic("attempt to add with overflow")

    with monkeypatch.context() as patched:
        patched.setattr(LexicalIndex, "_run", panic)
        vectors = np.ones((1, make.DIM), dtype=np.float32)
        hybrid = SearchRequest(mode="hybrid", k=5, vectors=vectors, texts=["word"])
        assert shard.candidates(hybrid).dense[0] and not shard.candidates(hybrid).bm25[0]
        with pytest.raises(StoreFailed, match="made again within seconds"):
            shard.candidates(SearchRequest(mode="bm25", k=5, texts=["word"]))
    assert "overflow" in shard.stats()["keyword_index_broken"]
    shard.maintain(0)
    assert not shard.stats()["keyword_index_broken"] and everything(shard) == live
    shard.close()


def test_an_error_over_whole_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours is not taken for damage, or every question would make the index again."""
    filled(tmp_path)
    shard = make.open_shard(tmp_path)

    def defect(*_: object) -> None:
        raise TypeError("a defect")

    monkeypatch.setattr(LexicalIndex, "_run", defect)
    with pytest.raises(TypeError, match="a defect"):
        shard.candidates(SearchRequest(mode="bm25", k=5, texts=["word"]))
    assert not shard.stats()["keyword_index_broken"]
    shard.close()
