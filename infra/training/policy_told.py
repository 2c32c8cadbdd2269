"""What a run's methods chose, without a reader: the share of test questions with the oracle's choice among it.

python -m infra.training.policy_told --found JUDGED --bench infra/bench/results/NAME --names router pair_both

JUDGED holds the `*.points.json` of `policy_gpu`'s stage choose. The oracle chooses what tells, of several the one
that hybrid ranking has first, all where all are needed; where nothing tells it chooses hybrid's first: so policies
compare with each other here, and not with hybrid ranking. A name stands for all its seeds. Where STOP may be
biased, the largest bias against it is shown, so that all fill their budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from infra.training.kept_page import keep, page_parser
from infra.training.policy_points import Point, kind_of, load_points

ORACLE = "oracle"


def told_shares(points: Sequence[Point], names: Sequence[str]) -> dict[str, Any]:
    """{set: {method with seed: {budget: {"told": %, "first": %, "tokens": mean}}}} on test questions.

    `first`: how often the first choice is one of the oracle's. ValueError where a set has no points of the oracle.
    """
    test = [point for point in points if point.split == "test"]
    gold = {
        point.dataset: [set(each.picks) for each in point.chosen] for point in test if point.name == ORACLE
    }
    found: dict[str, Any] = {}
    biases: dict[tuple[str, str, int], float] = {}
    for point in sorted(test, key=lambda point: (point.dataset, point.name, point.budget, point.stop_bias)):
        if kind_of(point.name) not in names:
            continue
        if point.dataset not in gold:
            raise ValueError(
                f"{point.dataset}: no points of {ORACLE}; give a folder whose stage choose has ended"
            )
        key = (point.dataset, point.name, point.budget)
        if key in biases:
            continue  # a smaller bias has been shown
        biases[key] = point.stop_bias
        pairs = [
            (own.picks, right) for own, right in zip(point.chosen, gold[point.dataset], strict=True) if right
        ]
        found.setdefault(point.dataset, {}).setdefault(point.name, {})[str(point.budget)] = {
            "n": len(pairs),
            "told": round(100 * mean(bool(right.intersection(picks)) for picks, right in pairs), 2),
            "first": round(100 * mean(bool(right.intersection(picks[:1])) for picks, right in pairs), 2),
            "tokens": round(mean(each.tokens for each in point.chosen), 1),
        }
    return found


def page(found: dict[str, Any], device: str) -> str:
    """A table a set: methods by budget."""
    lines = [
        f"# The oracle's choice among what was chosen, by budget ({device})", "",
        "Share of test questions with one of the oracle's sentences among what was chosen, % (tokens); first: how "
        "often the first choice is one, %. Where no candidate tells the oracle has hybrid's first, so nothing here "
        "compares with hybrid ranking. Command: the head of `infra/training/policy_told.py`.", "",
    ]  # fmt: skip
    for dataset, methods in found.items():
        budgets = sorted({int(budget) for each in methods.values() for budget in each})
        n = next(iter(next(iter(methods.values())).values()))["n"]
        lines += [
            f"## {dataset} (n = {n})", "", "| method | first | " + " | ".join(map(str, budgets)) + " |",
            "|" + " --- |" * (2 + len(budgets)),
        ]  # fmt: skip
        for name, each in methods.items():
            cells = [
                f"{each[str(b)]['told']:.1f} ({each[str(b)]['tokens']:.0f})" if str(b) in each else ""
                for b in budgets
            ]
            first = each[max(each, key=int)]["first"]
            lines.append(f"| {name} | {first:.1f} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def ratios(found: dict[str, Any], budget: int = 128) -> dict[str, Any]:
    """`told_<method>_<set>`: the mean of a method's seeds at the budget, and `…_seeds` where there are several."""
    named: dict[str, Any] = {}
    for dataset, methods in found.items():
        kinds: dict[str, list[float]] = {}
        for name, each in methods.items():
            if str(budget) in each:
                kinds.setdefault(kind_of(name), []).append(each[str(budget)]["told"])
        for kind, told in kinds.items():
            named[f"told_{kind}_{dataset}"] = round(mean(told), 2)
            if len(told) > 1:
                named[f"told_{kind}_seeds_{dataset}"] = told
    return named


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = page_parser(__doc__, "folder of points of the stage choose", device=True, commit=True)
    parser.add_argument("--names", nargs="+", required=True, help="methods, without their seeds")
    given = parser.parse_args(arguments)
    found = told_shares(load_points(Path(given.found)), given.names)
    result = {
        "bench": "policy_told", "device": given.device, "commit": given.commit, "ratios": ratios(found),
        "sets": found,
    }  # fmt: skip
    keep(given, result, page(found, given.device))


if __name__ == "__main__":
    main()
