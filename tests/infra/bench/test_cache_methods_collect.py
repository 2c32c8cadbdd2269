"""Rows of several leases become one table, and what is missing is named with the stage that makes it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from infra.bench import cache_methods_collect as collect

CASES = (("needle4k.jsonl", "needle-0", "needle"), ("qa_set.jsonl", "q-0", "qa"), ("lm_x.jsonl", "0", "lm"))


def _row(
    data: str, case: str, task: str, reader: str, method: str, keep: float, nats: float
) -> dict[str, Any]:
    row = {
        "reader": reader, "task": task, "data": data, "case": case, "method": method, "keep": keep, "tokens": 100,
        "kv_bytes": 10, "full_bytes": 100, "sliding_bytes": 5, "nats": nats, "exact": 1.0, "digits": 1.0,
        "answer_tokens": 2, "attention_error": 0.1,
    }  # fmt: skip
    return row | ({"f1": 1.0, "em": 1.0, "said": "x"} if task == "qa" else {})


def _grid(stages: str, nats: float = 1.0) -> list[dict[str, Any]]:
    """Every row of some stages; a peer's full cache has read as ours has."""
    return [
        _row(*case, *cell, 1.0 if cell[1] == "kvpress_full" else nats)
        for stage, *cell in collect.cells()
        if stage in stages.split()
        for case in CASES
        if stage != "kvpress" or case[2] != "lm"
    ]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_rows_of_all_leases_make_one_whole_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New rows stand before kept ones; a press' kept row without F1 gives way; what came home is kept alone."""
    old = [{k: v for k, v in row.items() if k != "f1"} for row in _grid("kvpress", nats=9.0)]
    known = _write(tmp_path / "kept_rows.jsonl.gz", _grid("base") + old)
    assert collect.main(["--known", str(known)]) == 5
    said = capsys.readouterr().out
    assert "kvpress: 2 of 2 cases, 1 questions without F1: kvpress_expected_attention" in said
    assert (
        "adapted: 0 of 3 cases" in said and "codes: 0 of 3 cases: ours_autoencoder, ours_projection" in said
    )
    home = tmp_path / "home" / "out"
    _write(home / "kvpress" / "kvpress" / "kvpress.jsonl", _grid("kvpress", nats=2.0))
    _write(home / "codes" / "codes" / "rows" / "base_0.jsonl", _grid("codes"))
    _write(home / "adapted" / "adapted" / "rows" / "adapted_3.jsonl", _grid("adapted"))
    out = tmp_path / "table"
    code = collect.main(
        ["--home", str(tmp_path / "home"), "--known", str(known), "--out", str(out), "--commit", "abc"]
    )
    assert code == 0 and "nothing is missing" in capsys.readouterr().out
    result = json.loads((tmp_path / "table.json").read_text())
    press = [line for line in result["rows"] if line["method"] == "kvpress_snapkv" and line["task"] == "qa"]
    assert [line["scores"]["nats"] for line in press] == [1.0] * 4 and press[0]["scores"]["f1"] == 100.0
    assert result["commit"] == "abc" and result["ratios"]["quality_drop_at_95_ours_projection"] == 0.0
    assert "quality_drop_at_95_ranker_adapted" in result["ratios"]
    kept = collect.read_rows(tmp_path / "table_rows.jsonl.gz")
    assert len(kept) == len(_grid("kvpress codes adapted"))
    assert "What the grid lacks: nothing is missing." in (tmp_path / "table.md").read_text()


def test_rows_of_other_cases_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One name, two texts: both lengths are told. A reader of its own may read a longer prompt."""
    longer = [row | {"tokens": 151} for row in _grid("adapted")]
    known = _write(tmp_path / "kept.jsonl", _grid("base") + longer)
    assert collect.main(["--known", str(known)]) == 5
    other = _write(tmp_path / "home" / "rows" / "base_0.jsonl", [_grid("codes")[0] | {"tokens": 101}])
    with pytest.raises(SystemExit):
        collect.main(["--home", str(other.parents[1]), "--known", str(known)])
    assert "needle-0, base reader: tokens 101 in one row, 100 in another" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        collect.main(["--home", str(tmp_path / "nothing"), "--known", str(known)])
    assert "nothing is not there" in capsys.readouterr().err


def test_cases_that_a_peer_misread_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its full cache must say what ours says of the same tokens; our own rows of the case stay."""
    grid = _grid("base kvpress")
    off = [
        row | {"nats": 1.1} if row["task"] == "qa" and row["method"].startswith("kvpress_") else row
        for row in grid
    ]
    known = _write(tmp_path / "kept.jsonl", off)
    assert collect.main(["--known", str(known)]) == 5
    said = capsys.readouterr().out
    assert (
        "kvpress: 1 cases of other nats than ours, left out" in said
        and "kvpress: 1 of 2 cases: kvpress_expect" in said
    )
    rows, misread = collect.sound(grid)
    assert rows == grid and misread == 0
    without = [row for row in grid if row["method"] != "kvpress_full"]
    assert collect.sound(without)[1] == 2


def test_a_line_torn_by_the_end_of_a_run_costs_no_later_one(tmp_path: Path) -> None:
    """The next run appends behind it."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2, "b{"a": 3}\n{"a": 4}\n{"a"')
    assert collect.read_rows(path) == [{"a": 1}, {"a": 4}]
