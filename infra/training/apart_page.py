"""What reading apart brings, as a page: the best simple method and the policy in both readings, and every way.

    python -m infra.training.apart_page --rows build/home/rows.jsonl.gz.* --fit dev --out build/apart/found
    python -m infra.training.apart_page --rows build/apart/rows-*.jsonl --out build/apart/found   # .json and .md

`--fit halves` (default) or `dev`: see `apart_fit`. The best simple method is chosen on the test questions
themselves, in the better of both readings, which favours it; a policy's point and way are chosen on one half of the
test questions and told of on the other, at no more tokens than that method's. Tokens: text with heads each time
that it is read, and every prompt but the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from infra.evaluation.policy_judge import gap_closed, paired
from infra.training.apart_fit import FIT_METHODS, FIT_SETS, Asked, Weights, f1_of, judged
from infra.training.apart_gpu import read_rows
from infra.training.apart_join import CROSSED, PLAIN, Floats, cost
from infra.training.kept_page import keep_as

SIMPLE = ("bm25", "dense", "hybrid")
LEARNED = ("pair", "policy")
"""Orders and choices that a pair reader is paid for."""
TOGETHER = ("together",)
APART = ("margin", "joined", "both", "two", CROSSED)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, nargs="+", required=True)
    parser.add_argument("--fit", choices=("halves", "dev"), default="halves")
    parser.add_argument("--fit-sets", nargs="+", default=list(FIT_SETS), help="with --fit dev")
    parser.add_argument(
        "--fit-methods", nargs="+", default=list(FIT_METHODS), help="whose choices are fitted on"
    )
    parser.add_argument("--out", type=Path, required=True, help="OUT.json and OUT.md are written")
    given = parser.parse_args()
    asked = [Asked.of(row) for row in read_rows(given.rows)]
    found = judged(asked, given.fit, given.fit_sets, given.fit_methods)
    found["summary"] = summary(asked, found["weights"])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    keep_as(given.out, found, summary_table(found["summary"]) + tables(found))
    print(summary_table(found["summary"]))  # noqa: T201


class Points:
    """F1 and tokens of a set's test questions at every choice in every way, made once each."""

    def __init__(self, own: Sequence[Asked], weights: Weights) -> None:
        self.own, self._weights = own, weights
        self.half = np.array([one.half for one in own])
        self._known: dict[tuple[str, str], tuple[Floats, Floats]] = {}

    def of(self, name: str, way: str) -> tuple[Floats, Floats]:
        """(F1, tokens) question by question; F1 is NaN where the way wants what rows lack."""
        key = name, way
        if key not in self._known:
            if way not in PLAIN and way not in self._weights:
                each = np.full(len(self.own), np.nan)
            else:
                each = f1_of(self.own, name, way, self._weights.get(way))
            costs = [sum(cost(one.row, one.row["chosen"][name], way)) for one in self.own]
            self._known[key] = each, np.array(costs, float)
        return self._known[key]

    def named(self, methods: Sequence[str], ways: Sequence[str]) -> list[tuple[str, str]]:
        """The (choice, way) of some methods that are known on all questions."""
        names = [name for name in self.own[0].row["chosen"] if name.split(":")[0] in methods]
        return [key for key in product(names, ways) if not np.isnan(self.of(*key)[0]).any()]

    def best(self, methods: Sequence[str], ways: Sequence[str]) -> tuple[str, str]:
        """The point of the highest F1 on these very questions, of equals the one of fewest tokens."""
        return max(self.named(methods, ways), key=lambda key: _rank(self.of(*key)))

    def crossed(
        self, methods: Sequence[str], ways: Sequence[str], most: float = np.inf
    ) -> tuple[Floats, Floats, list[str]] | None:
        """F1 and tokens where each half's point is the best of the other half at `most` tokens on it; its names."""
        each, tokens, told = np.zeros(len(self.own)), np.zeros(len(self.own)), []
        for half in (0, 1):
            other, mine = self.half != half, self.half == half
            if not mine.any() or not other.any():
                return None
            fits = [key for key in self.named(methods, ways) if self.of(*key)[1][other].mean() <= most]
            if not fits:
                return None
            key = max(fits, key=lambda key: _rank((self.of(*key)[0][other], self.of(*key)[1][other])))
            each[mine], tokens[mine] = self.of(*key)[0][mine], self.of(*key)[1][mine]
            told.append(" ".join(key))
        return each, tokens, told


def _rank(point: tuple[Floats, Floats]) -> tuple[float, float]:
    return float(point[0].mean()), -float(point[1].mean())


def summary(asked: Sequence[Asked], weights: Weights) -> dict[str, Any]:
    """By set: the best simple method read together and in either way, then what a pair reader is paid for."""
    test = [each for each in asked if each.row["split"] == "test"]
    found: dict[str, Any] = {}
    for dataset in sorted({each.row["dataset"] for each in test}):
        points = Points([each for each in test if each.row["dataset"] == dataset], weights)
        oracle = points.named(("oracle",), TOGETHER)
        most = 100 * float(points.of(*oracle[0])[0].mean()) if oracle else None
        lines: dict[str, Any] = {}
        base, simple = points.best(SIMPLE, TOGETHER), points.best(SIMPLE, (*TOGETHER, *APART))
        lines["simple, together"] = _line(points.of(*base), [" ".join(base)], None, None)
        lines["simple, either"] = _line(points.of(*simple), [" ".join(simple)], points.of(*base)[0], None)
        reference, room = points.of(*simple)
        for method in LEARNED:
            for label, ways in (("together", TOGETHER), ("apart", APART), ("either", (*TOGETHER, *APART))):
                got = points.crossed((method,), ways, float(room.mean()))
                if got is not None:
                    lines[f"{method}, {label}"] = _line(got[:2], got[2], reference, most)
        found[dataset] = {"n": len(points.own), "oracle": most and round(most, 2), "lines": lines}
    return found


def _line(
    point: tuple[Floats, Floats], told: Sequence[str], reference: Floats | None, most: float | None
) -> dict[str, Any]:
    f1 = 100 * float(point[0].mean())
    made: dict[str, Any] = {
        "f1": round(f1, 2), "tokens": round(float(point[1].mean()), 1), "points": list(dict.fromkeys(told)),
    }  # fmt: skip
    if reference is not None:
        made["over"] = paired(point[0], reference)
    if reference is not None and most is not None:
        made["gap_closed"] = gap_closed(f1, 100 * float(reference.mean()), most)
    return made


def summary_table(found: dict[str, Any]) -> str:
    """The summary as Markdown."""
    lines = [
        "| set | what | F1 | tokens | over | gap closed | points |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dataset, body in found.items():
        if body["oracle"]:
            lines.append(f"| {dataset} ({body['n']}) | oracle | {body['oracle']} | | | | |")
        for name, told in body["lines"].items():
            closed = told.get("gap_closed")
            lines.append(
                f"| {dataset} | {name} | {told['f1']} | {told['tokens']} | {_gain(told.get('over'))} | "
                f"{'' if closed is None else closed} | {'; '.join(told['points'])} |"
            )
    return "\n".join(lines) + "\n\n"


def _gain(over: dict[str, float] | None) -> str:
    return f"{over['gain']:+.1f} ({over['low']:.1f} to {over['high']:.1f})" if over else ""


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown: a table a set, a line a choice."""
    lines = [f"Weights from {found['fit']} ({found['fit_questions']} questions).", ""]
    for way, weights in found["weights"].items():
        for each in weights:
            named = (
                zip(found["inputs"], each, strict=True) if way != CROSSED else zip("pson", each, strict=True)
            )
            lines.append(f"* {way}: " + ", ".join(f"{name} {value:g}" for name, value in named if value))
    for dataset, body in found["sets"].items():
        lines += ["", f"**{dataset}** ({body['n']} questions)", ""]
        lines += [
            "| choice | way | F1 | over together | text | prompts again |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, ways in body["choices"].items():
            for way, told in ways.items():
                gain = _gain(told.get("over_together"))
                lines.append(
                    f"| {name} | {way} | {told['f1']} | {gain} | {told['text']} | {told['prompts']} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
