"""The table of cache methods in one look: a line a method and budget over all needles and questions of a reader.

Every figure is a loss against the full cache on the same cases: nats per answer token over all of them, points of
needles exact and of F1 with 95% bootstrap intervals; beside them the mean attention error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pipeline.tasks.scores import bootstrap_interval

_POINTS = {"needle": "exact", "qa": "f1"}


def together(rows: Sequence[dict[str, Any]], full: str = "full") -> list[dict[str, Any]]:
    """Lines {reader, method, keep, nats, attention_error, needle, qa, fetched_share}, least nats first at a budget.

    `needle` and `qa` are {n, nats, points, interval}, the last two where all rows have them; `fetched_share` is of
    the full layers' bytes.
    """
    exact = {(r["reader"], r["data"], r["case"]): r for r in rows if r["method"] == full and "error" not in r}
    pairs: dict[tuple[str, str, float], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    for row in rows:
        whole = exact.get((row["reader"], row["data"], row["case"]))
        if whole is not None and row["task"] in _POINTS and row["method"] != full and "error" not in row:
            pairs[row["reader"], row["method"], row["keep"]].append((row, whole))
    found = []
    for (reader, name, keep), given in pairs.items():
        line: dict[str, Any] = {
            "reader": reader,
            "method": name,
            "keep": keep,
            "nats": _nats(given),
        }
        errors = [r["attention_error"] for r, _ in given if r["attention_error"] is not None]
        if errors:  # outside peers tell none
            line["attention_error"] = round(sum(errors) / len(errors), 4)
        if "fetched_bytes" in given[0][0]:
            share = sum(r["fetched_bytes"] for r, _ in given) / sum(r["full_bytes"] for r, _ in given)
            line["fetched_share"] = round(share, 4)
        for task, score in _POINTS.items():
            of_task = [pair for pair in given if pair[0]["task"] == task]
            if of_task:
                line[task] = {"n": len(of_task), "nats": _nats(of_task)}
                lost = [whole[score] - row[score] for row, whole in of_task if score in row]
                if len(lost) == len(of_task):  # outside peers write no answers, so have no F1
                    line[task]["points"] = round(100 * sum(lost) / len(lost), 2)
                    line[task]["interval"] = bootstrap_interval(lost)
        found.append(line)
    return sorted(found, key=lambda line: (line["reader"], -line["keep"], line["nats"]))


def _nats(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    """Nats lost per answer token."""
    tokens = int(sum(row["answer_tokens"] for row, _ in pairs))
    lost = float(sum(row["nats"] - whole["nats"] for row, whole in pairs))
    return round(lost / max(1, tokens), 4)


def page(lines: Sequence[dict[str, Any]], title: str = "Needles and questions together") -> list[str]:
    """The lines as Markdown, a table a reader and budget."""
    out: list[str] = []
    for reader, keep in dict.fromkeys((line["reader"], line["keep"]) for line in lines):
        group = [line for line in lines if (line["reader"], line["keep"]) == (reader, keep)]
        out += [
            "",
            f"## {title}, {reader} reader, {100 * (1 - keep):.0f}% fewer bytes",
            "",
            "| method | nats lost a token | of needles | of questions | needles lost, points | F1 lost, points | "
            "attention error |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for line in group:
            fetched = f" (+ {100 * line['fetched_share']:.1f}% fetched)" if line.get("fetched_share") else ""
            needle, qa = line.get("needle"), line.get("qa")
            out.append(
                f"| {line['method']}{fetched} | {line['nats']} | {_part(needle, 'nats')} | {_part(qa, 'nats')} | "
                f"{_points(needle)} | {_points(qa)} | {line.get('attention_error', '-')} |"
            )
    return out


def _part(given: dict[str, Any] | None, name: str) -> str:
    return "-" if given is None else str(given[name])


def _points(given: dict[str, Any] | None) -> str:
    if given is None:
        return "-"
    if "points" not in given:
        return f"- (n = {given['n']})"
    return f"{given['points']} ({given['interval'][0]} to {given['interval'][1]}, n = {given['n']})"
