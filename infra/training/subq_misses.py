"""What wrong answers were made of: misses of the needle rows (infra.evaluation.passkey), counted for a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

KINDS = {
    "unread": "no key chunk read",
    "half": "one of two key chunks read",
    "other": "another needle's key told",
    "weighed": "key read, another chunk weighed more",
    "copied": "key weighed most, digits wrong",
}


def kind_of(miss: dict[str, Any]) -> str:
    """The first of KINDS that is true of a wrong answer."""
    gold = sum(is_gold for _, is_gold, _ in miss["read"])
    if gold == 0:
        return "unread"
    if gold < 1 + miss["straddles"]:
        return "half"
    if any(needle > 0 for needle in miss["told_by"]):
        return "other"
    most = max(miss["read"], key=lambda each: each[2])
    return "copied" if most[0] == 0 else "weighed"


def counted(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its wrong answers counted by kind; the answers themselves stay for known wording alone, where all
    should be right (held-out cells have hundreds)."""
    if "misses" not in row:
        return row
    kinds = Counter(map(kind_of, row["misses"]))
    row = row | {"miss_kinds": {kind: kinds[kind] for kind in KINDS if kinds[kind]}}
    if not row["cell"].startswith(("known", "single")):
        del row["misses"]
    return row


def misses_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of wrong answers by run, cell and length; nothing where no row has kept any."""
    told = [
        row for row in rows if row.get("miss_kinds") and row["what"] == "trials" and not row.get("search")
    ]
    if not told:
        return []
    lines = [
        "", "Wrong answers, where rows have kept them, by what was wrong:", "",
        "| run | cell | tokens | wrong of | " + " | ".join(KINDS.values()) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(KINDS),
    ]  # fmt: skip
    for row in told:
        counts = row["miss_kinds"]
        lines.append(
            f"| {row['run']} | {row['cell']} | {row['length']:,} | {sum(counts.values())} of {row['n']} | "
            f"{' | '.join(str(counts.get(kind, 0)) for kind in KINDS)} |"
        )
    return lines
