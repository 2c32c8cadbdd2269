"""What the table of cache methods is made of and what it says: rows of a question each, and the cells over them.

A ratio `quality_drop_at_<percent less>_<method>` is points of needles exact and QA F1 (their mean, each also alone)
that are lost against the full cache on the same cases.
"""

from __future__ import annotations

import gzip
import json
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from infra.bench.cache_methods_together import together
from infra.evaluation.cache_tasks import Judged, summary

FULL = "full"
PEERS = "kvpress_"  # names of methods that ran by code of others begin so
Row = dict[str, Any]


def cell_of(row: Row) -> tuple[Any, ...]:
    """What makes a row one of its own: reader, task, file, case, method and budget."""
    return tuple(row[name] for name in ("reader", "task", "data", "case", "method", "keep"))


def unique(rows: Iterable[Row]) -> list[Row]:
    """The rows without those whose reader, file, case, method and budget stood before."""
    return list({cell_of(row): row for row in reversed(list(rows))}.values())[::-1]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file (.gz too); a line torn by the end of a run is left out, what a later run wrote is not."""
    found: list[Row] = []
    if path.exists():
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in data.decode("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def report(rows: Sequence[Row], device: str, model: str, command: str) -> dict[str, Any]:
    """The table as it is kept: a row a task, method and budget over the cases that the full cache has too."""
    by_cell: dict[tuple[str, str, str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        by_cell[row["reader"], row["task"], row["data"], row["method"], row["keep"]].append(row)
    table: list[dict[str, Any]] = []
    for (reader, task, data, name, keep), given in sorted(by_cell.items()):
        judged = [row for row in given if "error" not in row]
        line: dict[str, Any] = {
            "reader": reader, "task": task, "data": data, "method": name, "keep": keep, "n": len(judged),
        }  # fmt: skip
        if judged:
            full = {row["case"]: row for row in by_cell[reader, task, data, FULL, 1.0]}
            line["scores"] = _scores(task, judged)
            line["kv_bytes"] = round(sum(row["kv_bytes"] for row in judged) / len(judged))
            line["sliding_bytes"] = judged[0]["sliding_bytes"]
            if "fetched_bytes" in judged[0]:
                line["fetched_bytes"] = round(sum(row["fetched_bytes"] for row in judged) / len(judged))
            same = [row for row in judged if row["case"] in full]
            if same and name != FULL:
                line["drop"] = _drop(task, same, [full[row["case"]] for row in same])
        else:
            line["error"] = given[0]["error"]
        table.append(line)
    return {
        "bench": "cache_methods",
        "device": device,
        "commit": _commit(),
        "torch": torch.__version__,
        "model": model,
        "command": command,
        "together": together(rows),
        "peers": together(beside_peers(rows)),
        "rows": table,
        "ratios": ratios(table),
    }


def beside_peers(rows: Sequence[Row]) -> list[Row]:
    """The rows of the cases that outside peers judged too, so that theirs and ours stand on the same ones."""

    def case(row: Row) -> tuple[str, ...]:
        return row["reader"], row["data"], row["case"]

    theirs = {case(row) for row in rows if row["method"].startswith(PEERS)}
    return [row for row in rows if case(row) in theirs]


def _commit() -> str:
    try:
        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=20
        )
    except OSError:  # a host without git
        return ""
    return git.stdout.strip()


def _judged(row: Row) -> Judged:
    return Judged(**{name: row[name] for name in Judged.__slots__ if name in row})


def _scores(task: str, given: Sequence[Row]) -> dict[str, Any]:
    """The scores of a cell; without those of an answer where none was written (outside peers)."""
    found = summary(task, [_judged(row) for row in given])
    if task == "qa" and any("f1" not in row for row in given):
        return {name: score for name, score in found.items() if not name.startswith(("em", "f1"))}
    return found


def _drop(task: str, given: Sequence[Row], full: Sequence[Row]) -> dict[str, float]:
    """What is lost against the full cache on the same cases: nats per answer token, points where there are any."""
    tokens = sum(row["answer_tokens"] for row in given)
    nats = sum(g["nats"] - f["nats"] for f, g in zip(full, given, strict=True)) / max(1, tokens)
    lost = {"nats": round(nats, 4)}
    score = "exact" if task == "needle" else "f1"
    if task != "lm" and all(score in row for row in given):
        points = sum(f[score] - g[score] for f, g in zip(full, given, strict=True))
        lost["points"] = round(100 * points / len(given), 2)
    return lost


def ratios(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`quality_drop_at_<percent less>_<method>`: points, the mean over tasks; `…_<task>` for each; `…_nats`.

    The base model's; another reader's names end in `_<reader>`.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    nats: dict[str, list[float]] = defaultdict(list)
    for line in table:
        if "drop" not in line:
            continue
        less = round(100 * (1 - line["keep"]))
        name, end = f"quality_drop_at_{less}_{line['method']}", _ending(line["reader"])
        if "points" in line["drop"]:  # lm has none, nor has a peer that wrote no answers
            found[name, end][line["task"]].append(line["drop"]["points"])
        nats[f"{name}_nats{end}"].append(line["drop"]["nats"])
    out: dict[str, float] = {}
    for (name, end), tasks in found.items():
        means = {task: sum(points) / len(points) for task, points in tasks.items()}
        out[name + end] = round(sum(means.values()) / len(means), 2)
        out.update({f"{name}_{task}{end}": round(value, 2) for task, value in means.items()})
    return out | {name: round(sum(given) / len(given), 4) for name, given in nats.items()}


def _ending(reader: str) -> str:
    return "" if reader == "base" else f"_{reader}"
