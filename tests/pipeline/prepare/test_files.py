"""pipeline/prepare/files.py: triples on disk, whole or not there."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from pipeline.errors import BadData, UsageError
from pipeline.prepare.files import MANIFEST, read_triples, write_triples
from pipeline.prepare.triples import Triple


def triple(number: int) -> Triple:
    """A triple that differs by number."""
    return Triple(
        question_id=f"q{number}",
        dataset="nq",
        split="train",
        kind="gold",
        question="Who?",
        sentences=(("Title", "2024-01-02", f"Text {number}."), ("Other", "", "More.")),
        answers=("Ann", "Anne") if number % 2 else (),
        tells=bool(number % 2),
        target=" Ann",
    )


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    """Shards hold all triples in order, and the manifest counts them."""
    triples = [triple(number) for number in range(25)]
    manifest = write_triples(triples, tmp_path / "t", {"seed": 1}, rows_per_shard=10)
    assert [shard["rows"] for shard in manifest["shards"]] == [10, 10, 5]
    assert manifest["rows"] == 25
    assert list(read_triples(tmp_path / "t")) == triples


def test_the_same_triples_give_the_same_bytes(tmp_path: Path) -> None:
    """Two writings of the same triples have the same checksums."""
    shards = [
        write_triples([triple(n) for n in range(9)], tmp_path / name, {"seed": 1}, rows_per_shard=4)["shards"]
        for name in ("a", "b")
    ]
    assert shards[0] == shards[1]


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """Writing again what was made the same does nothing; made otherwise, it is refused."""
    first = write_triples([triple(1)], tmp_path / "t", {"seed": 1})
    assert write_triples(iter(()), tmp_path / "t", {"seed": 1}) == first
    with pytest.raises(UsageError, match="made otherwise"):
        write_triples([triple(1)], tmp_path / "t", {"seed": 2})


def test_an_unfinished_folder_is_written_anew_and_not_read(tmp_path: Path) -> None:
    """Without a manifest a folder is nothing: reading refuses it, writing starts again."""
    write_triples([triple(n) for n in range(9)], tmp_path / "t", {"seed": 1}, rows_per_shard=4)
    (tmp_path / "t" / MANIFEST).unlink()
    with pytest.raises(UsageError, match=MANIFEST):
        list(read_triples(tmp_path / "t"))
    assert write_triples([triple(1)], tmp_path / "t", {"seed": 1})["rows"] == 1
    assert list(read_triples(tmp_path / "t")) == [triple(1)]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    """A shard that differs from its checksum is refused by name."""
    write_triples([triple(1)], tmp_path / "t", {"seed": 1})
    (tmp_path / "t" / "triples-00000.parquet").write_bytes(b"x")
    with pytest.raises(BadData, match=r"triples-00000\.parquet"):
        list(read_triples(tmp_path / "t"))


def test_triples_of_a_later_version_are_refused_by_name(tmp_path: Path) -> None:
    """Neither read nor taken for made already; a manifest from before formats were kept is read."""
    folder = tmp_path / "t"
    write_triples([triple(0)], folder, {"seed": 1})
    manifest = orjson.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(orjson.dumps({**manifest, "dysra_format": 2}))
    with pytest.raises(ValueError, match=r"manifest\.json has format 2; this DySRA reads up to 1"):
        list(read_triples(folder))
    with pytest.raises(ValueError, match="format 2"):
        write_triples([triple(0)], folder, {"seed": 1})
    del manifest["dysra_format"]
    (folder / MANIFEST).write_bytes(orjson.dumps(manifest))
    assert list(read_triples(folder)) == [triple(0)]


@pytest.mark.parametrize("said", [b"", b"[]", b"{}", b'{"shards":[{"name":"x"}],"made_from":{}}', b"\xff"])
def test_a_damaged_manifest_is_bad_data(tmp_path: Path, said: bytes) -> None:
    """Named, with what to do; by who reads and by who would write."""
    folder = tmp_path / "t"
    write_triples([triple(0)], folder, {"seed": 1})
    (folder / MANIFEST).write_bytes(said)
    for use in (lambda: list(read_triples(folder)), lambda: write_triples([triple(0)], folder, {"seed": 1})):
        with pytest.raises(BadData, match=r"manifest\.json cannot be read .*make the triples again"):
            use()
