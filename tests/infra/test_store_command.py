"""`dysra store`, on a real store."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from infra.cli import build
from pipeline.store import Shard, StoreConfig
from tests.pipeline.store import make


def dysra(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(build(), ["store", *arguments, "--json"])


def figures(result: Result) -> dict:
    """The JSON object of the last line."""
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A stopped store of two shards, one third of it dead."""
    root = tmp_path / "store"
    for index in range(2):
        shard = Shard.open(root, StoreConfig(num_shards=2), index, 2, make.EMBEDDER, make.DIM)
        make.put(shard, *(make.upsert(f"{index}-{n}", n) for n in range(6)))
        shard.seal()
        make.put(shard, make.delete(f"{index}-0", 6), make.delete(f"{index}-1", 7))
        shard.seal()
        shard.close()
    return root


def test_status_tells_what_each_shard_holds_beside_a_running_store(store: Path) -> None:
    """Without taking the lock."""
    running = Shard.open(store, StoreConfig(num_shards=2), 0, 2, make.EMBEDDER, make.DIM)
    told = figures(dysra("status", "--store", str(store)))
    running.close()
    assert (told["chunks"], told["dead_chunks"]) == (24, 8)
    assert told["ledger"] == {"read": 16, "stored": 12, "deleted": 4, "dead_lettered": 0, "duplicates": 0}
    assert told["shards"][1]["offsets"] == {"news[0]": 8}
    assert told["shards"][0]["embedder"] == make.EMBEDDER


def test_compact_drops_what_is_dead(store: Path) -> None:
    """And says how much disk that freed."""
    told = figures(dysra("compact", "--store", str(store)))
    assert told["compacted_segments"] == 2
    assert told["freed_bytes"] > 0
    assert figures(dysra("status", "--store", str(store)))["dead_chunks"] == 0


def test_a_snapshot_comes_back_as_a_store(store: Path, tmp_path: Path) -> None:
    """With the same ledger and offsets."""
    copy, second = str(tmp_path / "copy"), str(tmp_path / "second")
    assert figures(dysra("snapshot", copy, "--store", str(store)))["shards"] == 2
    assert figures(dysra("restore", copy, "--store", second))["shards"] == 2
    before, after = (figures(dysra("status", "--store", at)) for at in (str(store), second))
    assert before["ledger"] == after["ledger"]
    assert [shard["offsets"] for shard in before["shards"]] == [shard["offsets"] for shard in after["shards"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("status", "--store", "nowhere"), "holds no store"),
        (("compact", "--store", "nowhere"), "holds no store"),
        (("snapshot", ".", "--store", "nowhere"), "exists"),
        (("restore", "nowhere", "--store", "elsewhere"), "holds no store"),
    ],
)
def test_wrong_use_is_told_with_exit_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    """A folder without a store, a target that exists."""
    monkeypatch.chdir(tmp_path)
    result = dysra(*arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_compacting_a_running_store_names_its_process(store: Path) -> None:
    """It compacts itself; the error says so."""
    running = Shard.open(store, StoreConfig(num_shards=2), 0, 2, make.EMBEDDER, make.DIM)
    result = dysra("compact", "--store", str(store))
    running.close()
    assert result.exit_code == 2
    assert "is open in process" in result.output


def test_a_damaged_store_ends_with_exit_code_four(store: Path) -> None:
    """The file is named."""
    path = next(store.glob("shard-0000/segments/*/articles.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    result = dysra("compact", "--store", str(store))
    assert result.exit_code == 4
    assert str(path) in result.output
