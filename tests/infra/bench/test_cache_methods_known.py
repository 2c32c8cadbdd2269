"""What a lease leaves out because it is known, and what it reads again although it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.bench import cache_methods_known as known
from infra.bench.cache_methods_table import read_rows


def _row(method: str, keep: float, nats: float, case: str = "q-0", reader: str = "base") -> dict[str, Any]:
    return {
        "reader": reader, "task": "qa", "data": "qa_set.jsonl", "case": case, "method": method, "keep": keep,
        "nats": nats,
    }  # fmt: skip


def _refused(keep: float, reader: str = "base") -> dict[str, Any]:
    row = _row("razor", keep, 0.0, reader=reader)
    del row["nats"]
    return row | {"error": "too small"}


def test_cases_of_another_vocabulary_and_named_refusals_are_read_anew(tmp_path: Path) -> None:
    """A case that the peer reads otherwise loses our base rows alone; of a cell the newest file's row counts."""
    newest, oldest = tmp_path / "new.jsonl", tmp_path / "old.jsonl"
    fine = [_row("full", 1.0, 2.0), _row("kvpress_full", 1.0, 2.001), _row("snapkv", 0.5, 3.0)]
    other = [_row(name, keep, nats, "q-1") for name, keep, nats in (("full", 1.0, 2.0), ("snapkv", 0.5, 3.0))]
    theirs = _row("kvpress_full", 1.0, 2.01, "q-1")
    adapted = _row("full", 1.0, 1.0, "q-1", "adapted")
    refused = [_refused(0.5), _refused(0.3), _refused(0.5, "adapted")]
    newest.write_text("".join(json.dumps(row) + "\n" for row in [*fine, theirs]))
    old = [*other, adapted, *refused, _row("snapkv", 0.5, 9.0)]
    oldest.write_text("".join(json.dumps(row) + "\n" for row in old))
    out = tmp_path / "known.jsonl.gz"
    given = ["--rows", str(newest), str(oldest), "--again", "razor:0.5", "--out", str(out)]
    assert known.main(given) == 0
    left = [*fine, theirs, adapted, _refused(0.3)]
    assert sorted(map(json.dumps, read_rows(out))) == sorted(map(json.dumps, left))


def test_a_cell_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--again razor` names no budget."""
    with pytest.raises(SystemExit):
        known.main(["--rows", str(tmp_path), "--again", "razor", "--out", str(tmp_path / "x")])
    assert "allowed: METHOD:KEEP" in capsys.readouterr().err
