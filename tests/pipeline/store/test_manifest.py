"""Manifests and schemas: a damaged one costs a longer replay, a newer one is refused, the first is written anew."""

from __future__ import annotations

from pathlib import Path

import crc32c
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import StoreCorrupt, StoreTooNew, wal
from pipeline.store.files import write_json
from pipeline.store.snapshots import restore
from tests.pipeline.store import make
from tests.pipeline.store.damage import everything, filled, flip


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
