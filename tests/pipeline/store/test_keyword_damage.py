"""A damaged keyword index is found before it is used, made again, and costs no answer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import SearchRequest, StoreFailed
from pipeline.store.lexical import LexicalIndex
from tests.pipeline.store import make
from tests.pipeline.store.damage import everything, filled, flip


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
