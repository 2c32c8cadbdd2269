"""A reader carried in parts, or as the rows that another pack lacks, is the one that was packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.training import reader_parts
from infra.training.reader_parts import adopt, split, supplement, unpack


def folder(path: Path, ids: list[int]) -> Path:
    """A pack's folder: an embedding whose rows tell their token, one other weight."""
    path.mkdir(parents=True)
    rows = np.array([[i, i, i, 7] for i in ids], np.uint8)
    np.savez(path / "weights.npz", **{"model.embed_tokens.weight": rows, "other": np.arange(3000)})
    np.save(path / "vocabulary.npy", np.array(ids))
    (path / "cut.json").write_text(json.dumps({"identity": "x"}))
    (path / "config.json").write_text(json.dumps({"vocab_size": len(ids), "hidden_size": 4}))
    (path / "kinds.json").write_text("{}")
    (path / "tokenizer.json.xz").write_bytes(b"t")
    return path


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to dequantise here."""

    def ready(to: Path) -> None:
        (to / reader_parts.READY).write_text("{}")

    monkeypatch.setattr(reader_parts, "make_ready", ready)


def weights(path: Path) -> dict[str, Any]:
    """The arrays of a folder."""
    with np.load(path / "weights.npz") as found:
        return {name: found[name].tolist() for name in found.files}


def test_parts_in_any_order_make_the_whole(tmp_path: Path) -> None:
    """Not ready before the last; then as packed."""
    whole = folder(tmp_path / "whole", [2, 5, 9])
    (tmp_path / "out").mkdir()
    parts = split(whole, tmp_path / "out", 0.01)
    assert len(parts) > 2
    ready = [unpack(part, tmp_path / "there") for part in reversed(parts)]
    assert ready == [False] * (len(parts) - 1) + [True]
    assert weights(tmp_path / "there") == weights(whole)


def test_a_damaged_or_foreign_part_is_refused(tmp_path: Path) -> None:
    """By its checksum; by the pack's list."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mine = split(folder(tmp_path / "w1", [2, 5]), tmp_path / "a", 0.01)
    other = split(folder(tmp_path / "w2", [2, 6]), tmp_path / "b", 0.01)
    unpack(mine[0], tmp_path / "there")
    with pytest.raises(ValueError, match="another pack"):
        unpack(other[1], tmp_path / "there")
    piece = next(mine[1].glob("reader.tar.*"))
    piece.write_bytes(b"x" + piece.read_bytes()[1:])
    with pytest.raises(ValueError, match="is damaged"):
        unpack(mine[1], tmp_path / "there")


def test_the_rows_that_another_pack_lacks_complete_it(tmp_path: Path) -> None:
    """Every token's row is its own, tokens of the other pack that are not wanted are gone."""
    whole, other = folder(tmp_path / "whole", [2, 5, 8, 9, 12]), folder(tmp_path / "other", [2, 3, 9])
    assert supplement(whole, other, tmp_path / "rows.npz") == 3
    adopt(other, tmp_path / "rows.npz", tmp_path / "there")
    assert weights(tmp_path / "there") == weights(whole)
    assert json.loads((tmp_path / "there" / "config.json").read_text())["vocab_size"] == 5
    changed = folder(tmp_path / "changed", [2, 9, 12])
    with pytest.raises(ValueError, match="make the supplement for this pack again"):
        adopt(changed, tmp_path / "rows.npz", tmp_path / "elsewhere")
