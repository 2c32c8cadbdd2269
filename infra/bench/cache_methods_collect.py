"""One table of cache methods from what several leases brought home, and what it still lacks.

    python -m infra.bench.cache_methods_collect --home FOLDER [FOLDER …] \\
        --known build/cache-rows/known.jsonl.gz --out infra/bench/results/NAME

`--home` are folders in which infra/gpu_host/home.sh's archive was unpacked: every kvpress.jsonl and rows/*.jsonl in
them is taken, and stands before the rows that are `--known` (the newest first among them, too: of a cell the first
row counts), so that a press' row with F1 takes the place of one without. Writes NAME.json, NAME.md and
NAME_rows.jsonl.gz (the rows of `--home` alone). Without `--out` it only says what is missing and which stage of
infra/gpu_host/jobs/cache_methods.sh makes it; without `--home`, of what is kept.

Rows are joined by the name of their case, so a case must be the same text everywhere: one reader's rows that tell
two lengths of one context, or two of its answer, are refused. An outside peer's rows of a case count where its full
cache says what ours says (SAME_NATS), for only then has it read the context as it is; the others are left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from infra.bench import cache_methods_table
from infra.bench.cache_methods import plain_methods
from infra.bench.cache_methods_gpu import KEEPS, READERS
from infra.bench.cache_methods_page import markdown
from infra.bench.cache_methods_table import FULL, PEERS, Row, read_rows, unique
from infra.bench.peers.kvpress_peer import FULL as PEER_FULL
from infra.bench.peers.kvpress_peer import METHODS as PRESSES
from infra.console import say
from infra.training.kept_page import keep_as

CODES = ("ours_weighted", "ours_projection", "ours_autoencoder")
SAME_NATS = (
    0.003  # of an answer: the full cache of a sound reading is within 0.0015, of others 0.005 to 7.5 off
)
Key = tuple[str, str]  # a file's name, a case's


def brought(folders: Iterable[Path]) -> list[Row]:
    """The rows that the jobs left in folders, each cell once; of a stage given twice the first row counts."""
    files = {
        path.resolve()
        for folder in folders
        for form in ("kvpress.jsonl", "rows/*.jsonl")
        for path in folder.rglob(form)
    }
    return unique(row for path in sorted(files) for row in read_rows(path))


def check_cases(rows: Iterable[Row]) -> None:
    """ValueError where two rows of one case cannot be of one text."""
    lengths: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        for name in ("tokens", "answer_tokens"):
            if name not in row:
                continue
            at = (row["reader"], row["data"], row["case"], name)
            if lengths.setdefault(at, row[name]) != row[name]:
                raise ValueError(
                    f"{row['data']}, case {row['case']}, {row['reader']} reader: {name} {lengths[at]} in one row, "
                    f"{row[name]} in another ({row['method']}): the files of cases differ; give rows of one pack "
                    "(infra/bench/cache_methods_pack.py)"
                )


def sound(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows without those of peers on cases of which their full cache says other nats; how many cases."""
    asked = {_key(row) for row in rows if row["method"].startswith(PEERS)}
    shown = _full(rows, FULL).keys() & _full(rows, PEER_FULL).keys()
    same = (asked & shown) - differing(rows)
    return [r for r in rows if not r["method"].startswith(PEERS) or _key(r) in same], len(asked - same)


def differing(rows: Sequence[Row]) -> set[Key]:
    """The cases of which ours and the outside peer's full cache say different nats."""
    ours, theirs = _full(rows, FULL), _full(rows, PEER_FULL)
    return {key for key in ours.keys() & theirs.keys() if abs(ours[key] - theirs[key]) > SAME_NATS}


def _full(rows: Sequence[Row], method: str) -> dict[Key, float]:
    of = (r for r in rows if r["method"] == method and r["reader"] == "base" and "error" not in r)
    return {_key(row): row["nats"] for row in of}


def cells() -> list[tuple[str, str, str, float]]:
    """The whole grid as (stage that makes it, reader, method, keep)."""
    found = []
    for reader in READERS:
        stage = "base" if reader == "base" else "adapted"
        found += [(stage, reader, *cell) for cell in _of(plain_methods(), FULL)]
    found += [("codes", "base", *cell) for cell in _of(CODES, FULL)]
    return found + [("kvpress", "base", *cell) for cell in _of(PRESSES, PEER_FULL)]


def _of(methods: Iterable[str], full: str) -> list[tuple[str, float]]:
    return [(name, keep) for name in methods for keep in ((1.0,) if name == full else KEEPS)]


def missing(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The cells that lack cases, as {stage, reader, method, keep, cases, of, f1}.

    The cases are those of the base reader's full cache; `f1` counts questions whose row has no F1 and should.
    """
    cases = {_key(row): row["task"] for row in rows if row["method"] == FULL and row["reader"] == "base"}
    had: dict[tuple[str, str, float], dict[Key, bool]] = defaultdict(dict)
    for row in rows:
        answered = row["task"] != "qa" or "f1" in row or "error" in row
        had[row["reader"], row["method"], row["keep"]][_key(row)] = answered
    found = []
    for stage, reader, method, keep in cells():
        # presses are not asked for texts
        wanted = {key for key, task in cases.items() if task != "lm" or not method.startswith(PEERS)}
        of_cell = had[reader, method, keep]
        without = sum(not of_cell[key] for key in wanted & of_cell.keys())
        if without or wanted - of_cell.keys():
            found.append(
                {
                    "stage": stage, "reader": reader, "method": method, "keep": keep,
                    "cases": len(wanted & of_cell.keys()), "of": len(wanted), "f1": without,
                }
            )  # fmt: skip
    return found


def _key(row: Row) -> Key:
    return row["data"], row["case"]


def told(lacking: Sequence[dict[str, Any]]) -> list[str]:
    """What is missing, a line a stage and number of cases."""
    groups: dict[tuple[str, int, int, int], set[str]] = defaultdict(set)
    for line in lacking:
        groups[line["stage"], line["cases"], line["of"], line["f1"]].add(line["method"])
    return [
        f"{stage}: {cases} of {of} cases{f', {f1} questions without F1' if f1 else ''}: {', '.join(sorted(names))}"
        for (stage, cases, of, f1), names in sorted(groups.items())
    ] or ["nothing is missing"]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text; 5 where cells are missing, 2 where rows do not belong together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, nargs="*", default=[], help="folders that came home")
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="kept rows (.jsonl or .gz)")
    parser.add_argument("--out", type=Path, help="without ending; default: only say what is missing")
    parser.add_argument("--device", default="one NVIDIA H200")
    parser.add_argument("--model", default="gemma-3-270m (vocabulary cut)")
    parser.add_argument("--torch", default="2.11.0+cu130", help="of the machine that ran it")
    parser.add_argument("--commit", default="", help="of what ran; default: of this checkout")
    given = parser.parse_args(arguments)
    for path in (*given.home, *given.known):
        if not path.exists():
            parser.error(f"{path} is not there")
    new = brought(given.home)
    if given.home and not new:
        parser.error(f"no kvpress.jsonl and no rows/*.jsonl under {', '.join(map(str, given.home))}")
    rows = unique([*new, *(row for path in given.known for row in read_rows(path))])
    try:
        check_cases(rows)
    except ValueError as error:
        parser.error(str(error))
    rows, misread = sound(rows)
    lacking = missing(rows)
    lines = [
        *told(lacking),
        *([f"kvpress: {misread} cases of other nats than ours, left out"] if misread else []),
    ]
    say("\n".join((f"{len(new)} new rows, {len(rows)} in all", *lines)))
    if given.out:
        command = "infra/gpu_host/jobs/cache_methods.sh; python -m infra.bench.cache_methods_collect"
        result = cache_methods_table.report(rows, given.device, given.model, command)
        result |= {"torch": given.torch, "commit": given.commit or result["commit"], "missing": lines}
        result["misread"] = misread
        keep_as(given.out, result, markdown(result))
        packed = "".join(json.dumps(row) + "\n" for row in new).encode()
        given.out.with_name(given.out.name + "_rows.jsonl.gz").write_bytes(gzip.compress(packed, mtime=0))
    return 5 if lacking else 0


if __name__ == "__main__":
    raise SystemExit(main())
