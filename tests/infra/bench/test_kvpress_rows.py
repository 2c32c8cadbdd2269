"""Rows of outside peers: what their worker writes stands beside ours on the same cases; a second call goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.bench import cache_methods_table
from infra.bench.cache_methods_page import markdown
from infra.bench.peers import kvpress_rows
from tests.models import tiny

TEXT = "the old mill turns in spring and 42 sacks of grain go down the river "
WORKER = """
import json, sys, time
given = json.loads(open(sys.argv[1]).read())
with open(sys.argv[2], "a") as out:
    for context in given["contexts"][:{most}]:
        for method in given["methods"]:
            for keep in [1.0] if method == "kvpress_full" else given["keeps"]:
                for case in context["cases"]:
                    n = len(context["ids"])
                    kept = max(1, int(n * keep))
                    out.write(json.dumps(dict(context=context["name"], tokens=n, case=case["id"], method=method,
                        keep=keep, kept=kept, kept_bytes=8 * kept, sliding_bytes=5, exact=1.0, nats=0.5 / keep,
                        right=[True] * len(case["gold"]))) + "\\n")
"""


def _cases(folder: Path) -> Path:
    folder.mkdir()
    rows = [{"context": TEXT + str(n), "question": "what turns", "answers": ["mill"]} for n in range(3)]
    for name in ("needle4k.jsonl", "qa_set.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, *more: str) -> int:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER.replace("{most}", str(most)))
    monkeypatch.setattr(kvpress_rows, "WORKER", worker)
    return kvpress_rows.main(
        ["--model", str(tmp_path / "tiny"), "--cases", str(tmp_path / "cases"), "--site", str(tmp_path), "--out",
         str(tmp_path / "out"), "--methods", "kvpress_full,kvpress_snapkv", "--keep", "0.5,0.1", "--workers", "2",
         "--seconds", "90", *more]
    )  # fmt: skip


def test_a_second_call_makes_what_is_missing_and_rows_stand_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call is cut after one context a worker; no case is judged twice; the page has no F1 of a peer."""
    tiny.save(tmp_path / "tiny")
    _cases(tmp_path / "cases")
    assert _call(tmp_path, monkeypatch, most=1) == 5
    first = cache_methods_table.read_rows(tmp_path / "out" / "kvpress.jsonl")
    assert {row["data"] for row in first} == {"needle4k.jsonl", "qa_set.jsonl"} and len(first) == 2 * 3
    assert _call(tmp_path, monkeypatch, most=9) == 0
    rows = cache_methods_table.read_rows(tmp_path / "out" / "kvpress.jsonl")
    assert len(rows) == 6 * 3 == len(cache_methods_table.unique(rows))
    made = sum(len(path.read_text().splitlines()) for path in (tmp_path / "out").glob("worker_*.jsonl"))
    assert made == len(rows)
    half = next(row for row in rows if row["keep"] == 0.5)
    assert half["kv_bytes"] <= 0.5 * half["full_bytes"] and half["answer_tokens"] > 0

    ours = [
        {**row, "method": "full", "keep": 1.0, "nats": 0.5, "attention_error": 0.0, "f1": 1.0, "em": 1.0}
        for row in rows
        if row["method"] == "kvpress_full"
    ]
    other = {**ours[0], "case": "another"}
    table = cache_methods_table.report([*ours, other, *rows], "cpu", "tiny", "here")
    named = {(line["method"], line["keep"]): line for line in table["peers"]}
    assert named["kvpress_full", 1.0]["nats"] == 0.0 and named["kvpress_snapkv", 0.1]["nats"] > 0
    assert (
        "points" not in named["kvpress_snapkv", 0.1]["qa"]
        and "attention_error" not in named["kvpress_full", 1.0]
    )
    assert table["ratios"]["quality_drop_at_90_kvpress_snapkv_needle"] == 0.0
    assert "quality_drop_at_90_kvpress_snapkv_qa" not in table["ratios"]
    assert cache_methods_table.beside_peers([*ours, other, *rows]) == [*ours, *rows]
    page = markdown(table)
    assert "presses judged too" in page and "- (n = 3)" in page


def test_rows_are_there_while_workers_run_and_after_they_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run leaves rows; its workers' lines alone make them again, and known contexts are not asked for."""
    tiny.save(tmp_path / "tiny")
    _cases(tmp_path / "cases")
    rows = tmp_path / "out" / "kvpress.jsonl"
    worker = WORKER
    hanging = WORKER + "out.close()\ntime.sleep(60)\n"
    monkeypatch.setattr(f"{__name__}.WORKER", hanging)
    seen = []
    follow = kvpress_rows.Joined.follow

    def followed(joined: kvpress_rows.Joined) -> None:
        follow(joined)
        seen.append(len(joined.cells))

    monkeypatch.setattr(kvpress_rows.Joined, "follow", followed)
    assert _call(tmp_path, monkeypatch, 1, "--seconds", "4") == 5
    assert 6 in seen[:-1] and len(cache_methods_table.read_rows(rows)) == 6
    whole = rows.read_text()
    rows.write_text(whole[:-9])
    assert _call(tmp_path, monkeypatch, 1, "--seconds", "0") == 5 and rows.read_text() == whole

    kept = [row for row in cache_methods_table.read_rows(rows) if row["task"] == "needle"]
    other = tmp_path / "kept.jsonl"
    full = [row | {"method": "full"} for row in kept if row["method"] == "kvpress_full"]
    other.write_text("".join(json.dumps(row) + "\n" for row in (*kept, *full)))
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    monkeypatch.setattr(f"{__name__}.WORKER", worker)
    assert _call(tmp_path, monkeypatch, 9, "--known", str(other)) == 0
    made = {(row["data"], row["case"]) for row in cache_methods_table.read_rows(rows)}
    assert len(made) == 6 - len({row["case"] for row in kept})


def test_every_part_of_the_order_has_some_of_all_files() -> None:
    """A run that is cut short is a fair sample, however unequal the files."""
    order = kvpress_rows.in_turn([30, 60, 10])
    assert sorted(order) == [
        (file, place) for file, count in enumerate((30, 60, 10)) for place in range(count)
    ]
    for end in (20, 50, 80):
        found = [sum(file == each for each, _ in order[:end]) for file in range(3)]
        assert all(
            abs(part - end * count / 100) <= 1 for part, count in zip(found, (30, 60, 10), strict=True)
        )


def test_unknown_presses_are_refused_by_name(tmp_path: Path) -> None:
    """Before anything is started."""
    told = [
        "--model",
        "a",
        "--cases",
        "b",
        "--site",
        "c",
        "--out",
        str(tmp_path),
        "--methods",
        "kvpress_none",
    ]
    with pytest.raises(SystemExit):
        kvpress_rows.main(told)


def test_a_case_that_was_read_anew_is_judged_by_its_new_row() -> None:
    """Not by the kept one, which had been misread; a case that was not read anew stays counted."""

    def row(method: str, case: str, nats: float) -> dict[str, Any]:
        return {
            "reader": "base",
            "task": "needle",
            "data": "n.jsonl",
            "case": case,
            "method": method,
            "keep": 1.0,
            "nats": nats,
        }

    kept = [
        row(method, case, nats) for case in "ab" for method, nats in (("full", 1.0), ("kvpress_full", 3.0))
    ]
    assert kvpress_rows.misread([], kept) == 2
    assert kvpress_rows.misread([row("kvpress_full", "a", 1.0)], kept) == 1
