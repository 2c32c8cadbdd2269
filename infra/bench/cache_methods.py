"""The table of cache methods: every method on the same contexts, each read once, at several budgets.

    python -m infra.bench.cache_methods run --task needle|qa --data FILE --rows ROWS.jsonl [--keep 0.5,0.1]
    python -m infra.bench.cache_methods report --rows ROWS.jsonl --out infra/bench/results/NAME

A run appends a row a question, method and budget, so that it can be ended and called again. `report` writes JSON
and Markdown; ratios are named `quality_drop_at_<percent less>_<method>`: points of needles exact and QA F1 (their
mean, each also alone) that are lost against the full cache on the same cases.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from infra.console import say
from infra.evaluation.cache_tasks import (
    CacheCell,
    Judged,
    compress,
    encode_context,
    full_layer_bytes,
    grouped,
    judge_case,
    read_cases,
    sliding_layer_bytes,
    summary,
)
from models.compared import METHODS, method
from models.compared.trace import read_exactly
from models.hf import HfBackbone, HfConfig

FULL = "full"
Row = dict[str, Any]


def run(
    backbone: HfBackbone,
    cell: CacheCell,
    methods: Sequence[str],
    keeps: Sequence[float],
    rows: Path,
    *,
    settings: dict[str, dict[str, Any]] | None = None,
    until: float = float("inf"),
    shard: tuple[int, int] = (0, 1),
) -> bool:
    """Append the missing rows of `cell`'s cases; False where the clock passed `until` before the end.

    A method that cannot work at a budget gets a row with its error instead of scores. `shard` (at, of) takes every
    of-th context.
    """
    done = {(row["task"], row["data"], row["case"], row["method"], row["keep"]) for row in read_rows(rows)}
    ready = {name: method(name, **(settings or {}).get(name, {})).prepare(backbone) for name in methods}
    cells = [(name, 1.0 if name == FULL else keep) for name in methods for keep in keeps]
    cells = list(dict.fromkeys(cells))
    for at, (text, cases) in enumerate(grouped(read_cases(cell)).items()):
        missing = {
            pair: [case for case in cases if (cell.task, cell.data.name, case.case_id, *pair) not in done]
            for pair in cells
        }
        if at % shard[1] != shard[0] or not any(missing.values()):
            continue
        if time.monotonic() > until:
            return False
        ids = encode_context(backbone, text)
        trace = read_exactly(backbone, ids)
        for (name, keep), left in missing.items():
            if not left:
                continue
            about = {
                "task": cell.task,
                "data": cell.data.name,
                "method": name,
                "keep": keep,
                "tokens": len(ids),
            }
            try:
                memory, spent = compress(ready[name], backbone, ids, keep, trace)
            except ValueError as error:
                _append(rows, [{**about, "case": case.case_id, "error": str(error)} for case in left])
                continue
            for case in left:
                began = time.perf_counter()
                judged = judge_case(backbone, memory, case, generate=cell.task == "qa")
                cost = {
                    "kv_bytes": full_layer_bytes(memory),
                    "sliding_bytes": sliding_layer_bytes(memory),
                    "full_bytes": trace.full_bytes,
                    "compress_s": round(spent, 4),
                    "asked_s": round(time.perf_counter() - began, 4),
                }
                _append(rows, [{**about, "case": case.case_id, **asdict(judged), **cost}])
        say(f"  context {at}: {len(ids)} tokens, {len(cases)} cases")
    return True


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; a torn last line is left out."""
    found: list[Row] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return found


def _append(path: Path, rows: Iterable[Row]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def report(rows: Sequence[Row], device: str, model: str, command: str) -> dict[str, Any]:
    """The table as it is kept: a row a task, method and budget over the cases that the full cache has too."""
    by_cell: dict[tuple[str, str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        by_cell[row["task"], row["data"], row["method"], row["keep"]].append(row)
    table: list[dict[str, Any]] = []
    for (task, data, name, keep), given in sorted(by_cell.items()):
        judged = [row for row in given if "error" not in row]
        line: dict[str, Any] = {"task": task, "data": data, "method": name, "keep": keep, "n": len(judged)}
        if judged:
            full = {row["case"]: row for row in by_cell[task, data, FULL, 1.0]}
            line["scores"] = summary(task, [_judged(row) for row in judged])
            line["kv_bytes"] = round(sum(row["kv_bytes"] for row in judged) / len(judged))
            line["sliding_bytes"] = judged[0]["sliding_bytes"]
            same = [row for row in judged if row["case"] in full]
            if same and name != FULL:
                line["drop"] = _drop(task, same, [full[row["case"]] for row in same])
        else:
            line["error"] = given[0]["error"]
        table.append(line)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=20)
    return {
        "bench": "cache_methods",
        "device": device,
        "commit": git.stdout.strip(),
        "torch": torch.__version__,
        "model": model,
        "command": command,
        "rows": table,
        "ratios": ratios(table),
    }


def _judged(row: Row) -> Judged:
    return Judged(**{name: row[name] for name in Judged.__slots__})


def _drop(task: str, given: Sequence[Row], full: Sequence[Row]) -> dict[str, float]:
    """What is lost against the full cache on the same cases: points, and nats per answer token."""
    score = "exact" if task == "needle" else "f1"
    tokens = sum(row["answer_tokens"] for row in given)
    return {
        "points": round(
            100 * sum(f[score] - g[score] for f, g in zip(full, given, strict=True)) / len(given), 2
        ),
        "nats": round(
            sum(g["nats"] - f["nats"] for f, g in zip(full, given, strict=True)) / max(1, tokens), 4
        ),
    }


def ratios(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`quality_drop_at_<percent less>_<method>`, the mean over tasks, and `…_<task>` for each."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in table:
        if "drop" in line:
            less = round(100 * (1 - line["keep"]))
            found[f"quality_drop_at_{less}_{line['method']}"][line["task"]].append(line["drop"]["points"])
    out: dict[str, float] = {}
    for name, tasks in found.items():
        means = {task: sum(points) / len(points) for task, points in tasks.items()}
        out[name] = round(sum(means.values()) / len(means), 2)
        out.update({f"{name}_{task}": round(value, 2) for task, value in means.items()})
    return out


def markdown(result: dict[str, Any]) -> str:
    """The table for a person."""
    lines = [
        f"# Ways to compress the cache, {result['device']}",
        "",
        f"Model `{result['model']}`, torch {result['torch']}, commit {result['commit']}.",
        f"Command: `{result['command']}`.",
        "The question is unseen while compressing; keep = share of the full layers' bytes, metadata included.",
        "Exact = greedy decoding would write the whole key; digits = share of its digits right, teacher-forced;",
        "nats per token of the gold answer (lower is better); drop = points lost against the full cache on",
        "the same cases.",
    ]
    for task, columns in (("needle", ("exact", "digits", "nats")), ("qa", ("em", "f1", "nats"))):
        for data in sorted({line["data"] for line in result["rows"] if line["task"] == task}):
            of_task = [line for line in result["rows"] if line["task"] == task and line["data"] == data]
            lines += [
                "",
                f"## {task}, {data}",
                "",
                f"| method | keep | n | {' | '.join(columns)} | drop | full layers' bytes |",
            ]
            lines.append("|" + " --- |" * (5 + len(columns)))
            for line in sorted(of_task, key=lambda line: (-line["keep"], line["method"])):
                if "scores" not in line:
                    lines.append(
                        f"| {line['method']} | {line['keep']:g} | 0 |"
                        + " - |" * len(columns)
                        + " cannot | - |"
                    )
                    continue
                cells = " | ".join(str(line["scores"][column]) for column in columns)
                drop = line.get("drop", {}).get("points", "-")
                first = f"| {line['method']} | {line['keep']:g} | {line['n']}"
                lines.append(f"{first} | {cells} | {drop} | {line['kv_bytes']:,} |")
            beside = next((line["sliding_bytes"] for line in of_task if "sliding_bytes" in line), 0)
            lines += ["", f"The sliding layers hold a constant {beside:,} bytes beside."]
    return "\n".join(lines) + "\n"


def _main_run(given: argparse.Namespace) -> int:
    backbone = HfBackbone.load(
        HfConfig(
            model=given.model, adapter="none", device=given.device, threads=given.threads, dtype=given.dtype
        )
    )
    cell = CacheCell(
        task=given.task, method=FULL, data=given.data, corpus=given.corpus, passages=given.passages,
        model=given.model, device=given.device, limit=given.limit, seed=given.seed, keep=1.0, split=given.split,
    )  # fmt: skip
    settings = (
        {name: {"ranker": given.ranker} for name in METHODS if "ranker" in name} if given.ranker else {}
    )
    settings["squeeze"] = {"share": given.squeeze_share}
    at, of = (int(part) for part in given.shard.split("/"))
    keeps = [float(part) for part in given.keep.split(",")]
    until = time.monotonic() + given.seconds
    finished = run(
        backbone, cell, given.methods.split(","), keeps, given.rows, settings=settings, until=until, shard=(at, of)
    )  # fmt: skip
    say("finished" if finished else "not finished: call again")
    return 0 if finished else 5


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs, reports = verbs.add_parser("run"), verbs.add_parser("report")
    add: Callable[..., Any] = runs.add_argument
    add("--task", choices=["needle", "qa"], required=True)
    add("--data", type=Path, required=True)
    add("--corpus", type=Path)
    add("--passages", type=int, default=10)
    add("--split", default="test")
    default = [name for name in METHODS if not name.endswith(("_streaming", "full_cache"))]
    add("--methods", default=",".join(default))
    add("--keep", default="0.5,0.3,0.1,0.05")
    add("--ranker", default="", help="folder of a ranker; default: the shipped one")
    add("--squeeze-share", type=float, default=0.4)
    add("--model", default="gemma-3-270m")
    add("--device", default="auto")
    add("--dtype", default="float32")
    add("--threads", type=int, default=0)
    add("--limit", type=int, default=0)
    add("--seed", type=int, default=0)
    add("--seconds", type=float, default=1e9)
    add("--shard", default="0/1", help="AT/OF: this process takes every OF-th context")
    for each in (runs, reports):
        each.add_argument("--rows", type=Path, nargs="+" if each is reports else None, required=True)
    reports.add_argument("--out", type=Path, required=True, help="without ending")
    reports.add_argument("--device", default=platform.machine())
    reports.add_argument("--model", default="gemma-3-270m")
    reports.add_argument("--command", default="python -m infra.bench.cache_methods run …")
    given = parser.parse_args(arguments)
    if given.verb == "run":
        return _main_run(given)
    result = report(
        [row for path in given.rows for row in read_rows(path)], given.device, given.model, given.command
    )
    given.out.with_name(given.out.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    given.out.with_name(given.out.name + ".md").write_text(markdown(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
