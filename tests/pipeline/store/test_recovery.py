"""What a shard does about damaged segments, lost logs, full disks and kills."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import OffsetGap, Shard, StoreCorrupt
from tests.forked import forkserver
from tests.pipeline.store import kill_writer, make
from tests.pipeline.store.damage import NAMES, everything, filled, flip


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
