"""The page of `policy_prices`: F1 over tokens by the price of a token, and warm starts side by side.

python -m infra.training.policy_prices_page --found prices.json --bench infra/bench/results/NAME
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from infra.training.kept_page import keep

WARM = {
    "supervised": "labels",
    "minimal": "minimal sets, ours",
    "picker": "minimal sets, as Context-Picker mines them",
}
Row = dict[str, Any]


def ratios(rows: Sequence[Row], budget: str) -> dict[str, float]:
    """`price_<kind>_f1_<set>` and `price_<kind>_tokens_<set>`: means over seeds, by own STOP at a budget."""
    found: dict[str, float] = {}
    for kind in _kinds(rows):
        for dataset in _sets(rows):
            cells = _cells(rows, kind, dataset, budget)
            if cells:
                found[f"price_{kind}_f1_{dataset}"] = round(mean(f1 for f1, _ in cells), 2)
                found[f"price_{kind}_tokens_{dataset}"] = round(mean(tokens for _, tokens in cells), 1)
    return found


def page(rows: Sequence[Row], device: str) -> str:
    """All tables, a pair of them for each budget."""
    learned = [row for row in rows if row["algorithm"] == "reinforce"]
    lines = [
        f"# What a token's price buys ({device})", "",
        "Command: the head of `infra/training/policy_prices.py`. Test questions, F1 (tokens read), made to answer, "
        "by own STOP: nothing is chosen on any question. Means over seeds, F1 of each in brackets beside them.",
    ]  # fmt: skip
    stopped = [row for row in learned if row.get("alarm")]
    if done := sorted({int(row["iterations"]) for row in learned if not row.get("alarm")}):
        shown = str(done[0]) if len(done) == 1 else f"{done[0]} to {done[-1]} (not all ended in time)"
        lines.append(f"REINFORCE from the supervised policy of its seed, iterations: {shown}.")
    for row in stopped:
        reasons = "; ".join(row["alarm"])
        lines.append(
            f"{row['kind']}, seed {row['seed']}, was ended after {row['iterations']} by its alarm: {reasons}."
        )
    budgets = sorted({b for row in rows for cells in row["sets"].values() for b in cells}, key=int)
    for budget in budgets:
        for form, word, says in (
            ("terminal", "gamma", "Terminal: quality - gamma * tokens"),
            ("stepwise", "beta", "Stepwise: alpha / loss - beta * tokens"),
        ):
            prices = sorted({row["price"] for row in learned if row["form"] == form})
            kinds = {f"{word}{price:g}": f"{price:g}" for price in prices}
            lines += ["", f"## {says}, budget {budget}", "", *_table(rows, word, kinds, budget)]
        lines += ["", f"## Warm starts alone, budget {budget}", "", *_table(rows, "from", WARM, budget)]
    lines += _mined(rows)
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row], head: str, kinds: dict[str, str], budget: str) -> list[str]:
    sets = _sets(rows)
    lines = [f"| {head} | {' | '.join(sets)} | mean |", "| --- |" + " --- |" * (len(sets) + 1)]
    for kind, shown in kinds.items():
        by_set = [_cells(rows, kind, dataset, budget) for dataset in sets]
        if all(by_set):
            every = [cell for cells in by_set for cell in cells]
            told = [*map(_cell, by_set), _cell([(mean(f for f, _ in every), mean(t for _, t in every))])]
            lines.append(f"| {shown} | {' | '.join(told)} |")
    return lines


def _mined(rows: Sequence[Row]) -> list[str]:
    lines = [
        "",
        "## Minimal sets",
        "",
        "| mined | found, % | candidates | tokens | hold a labelled one, % | rounds |",
    ]
    lines.append("| --- |" + " --- |" * 5)
    for row in rows:
        sets = row.get("sets_mined")
        if sets and "candidates" in sets:
            lines.append(
                f"| {WARM[row['kind']]}, seed {row['seed']} | {100 * sets['found']:.1f} "
                f"| {sets['candidates']:.2f} | "
                f"{sets['tokens']:.0f} | {100 * sets['labelled']:.1f} | {sets['rounds']:.0f} |"
            )
    return lines


def _cells(rows: Sequence[Row], kind: str, dataset: str, budget: str) -> list[tuple[float, float]]:
    """(F1, tokens) of every seed of a kind."""
    return [
        (cell["forced_f1"], cell["tokens"])
        for row in rows if row["kind"] == kind and (cell := row["sets"].get(dataset, {}).get(budget))
    ]  # fmt: skip


def _cell(cells: Sequence[tuple[float, float]]) -> str:
    seeds = f"; {', '.join(f'{f1:.1f}' for f1, _ in cells)}" if len(cells) > 1 else ""
    return f"{mean(f1 for f1, _ in cells):.1f} ({mean(tokens for _, tokens in cells):.0f}{seeds})"


def _kinds(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["kind"] for row in rows))


def _sets(rows: Sequence[Row]) -> list[str]:
    return sorted({dataset for row in rows for dataset in row["sets"]})


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--found", type=Path, required=True, help="prices.json")
    parser.add_argument("--bench", type=Path, required=True, help="where results go, without ending")
    parser.add_argument("--device", default="NVIDIA H200")
    parser.add_argument("--commit", default="", help="that was run")
    parser.add_argument("--note", default="", help="added at the page's end")
    given = parser.parse_args(arguments)
    rows = json.loads(given.found.read_text())["rows"]
    if not rows:
        raise SystemExit(f"{given.found} has no policy that was judged")
    largest = str(max(int(b) for row in rows for cells in row["sets"].values() for b in cells))
    results = {
        "bench": "policy_prices", "device": given.device, "commit": given.commit, "rows": rows,
        "ratios": ratios(rows, largest),
    }  # fmt: skip
    keep(given, results, page(rows, given.device))


if __name__ == "__main__":
    main()
