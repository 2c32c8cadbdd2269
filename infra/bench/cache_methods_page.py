"""The table of cache methods as a page for a person."""

from __future__ import annotations

from typing import Any

from infra.bench.cache_methods_together import page

_COLUMNS = {
    "needle": ("exact", "digits", "nats", "attention_error"),
    "qa": ("em", "f1", "nats", "attention_error"),
    "lm": ("nats", "attention_error"),
}


def markdown(result: dict[str, Any]) -> str:
    """The page of a kept result: a table a reader, task and file."""
    lines = [
        f"# Ways to compress the cache, {result['device']}",
        "",
        f"Model `{result['model']}`, torch {result['torch']}, commit {result['commit']}.",
        f"Command: `{result['command']}`.",
        "The question is unseen while compressing; keep = share of the full layers' bytes, metadata included.",
        "Exact = greedy decoding would write the whole key; digits = share of its digits right, teacher-forced;",
        "nats per token of the gold answer (lower is better); attention_error = of the full layers' outputs while",
        "question and answer are read, mean over layers; drop = points (lm: nats) lost against the full cache on",
        "the same cases.",
        *([f"What the grid lacks: {'; '.join(result['missing'])}."] if result.get("missing") else []),
        *page(result.get("together", [])),
        *page(result.get("peers", []), "The cases that kvpress' own presses judged too"),
    ]
    groups = sorted({(line["reader"], line["task"], line["data"]) for line in result["rows"]})
    for reader, task, data in groups:
        of_group = [
            line
            for line in result["rows"]
            if (line["reader"], line["task"], line["data"]) == (reader, task, data)
        ]
        columns = _COLUMNS[task]
        lines += [
            "",
            f"## {task}, {data}, {reader} reader",
            "",
            f"| method | keep | n | {' | '.join(columns)} | drop | full layers' bytes |",
            "|" + " --- |" * (5 + len(columns)),
        ]
        lines += [
            _row(line, columns) for line in sorted(of_group, key=lambda line: (-line["keep"], line["method"]))
        ]
        beside = next((line["sliding_bytes"] for line in of_group if "sliding_bytes" in line), 0)
        lines += ["", f"The sliding layers hold a constant {beside:,} bytes beside."]
    return "\n".join(lines) + "\n"


def _row(line: dict[str, Any], columns: tuple[str, ...]) -> str:
    first = f"| {line['method']} | {line['keep']:g} | {line['n']}"
    if "scores" not in line:
        return first + " |" + " - |" * len(columns) + " cannot | - |"
    cells = " | ".join(str(line["scores"].get(column, "-")) for column in columns)
    lost = line.get("drop", {})
    held = f"{line['kv_bytes']:,}"
    if "fetched_bytes" in line:
        held += f" + {line['fetched_bytes']:,} fetched by the question"
    return f"{first} | {cells} | {lost.get('points', lost.get('nats', '-'))} | {held} |"
