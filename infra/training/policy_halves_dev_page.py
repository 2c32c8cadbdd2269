"""The page of a run whose test points of policies were never read: what `policy_halves_dev` finds, in Markdown.

    python -m infra.training.policy_halves_dev_page --judged home/judged --carried build/carry/whole \\
        --folds home/folds --home home --preface PREFACE --commit HASH --out infra/bench/results/NAME

`--home` has arms.json and ranks.json, `--folds` who_reads.json, equal.json and slopes.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.training import policy_arms
from infra.training.kept_page import keep_lines
from infra.training.policy_halves_dev import DRAWS, Read, places_of, readings_in, result_of
from infra.training.policy_over import fixed_table, over_row
from infra.training.policy_points import load_points
from infra.training.policy_ranks import table_of
from infra.training.policy_report import rewarded_by


def page(result: Mapping[str, Any], preface: str) -> str:
    """The result as a page."""
    told = result["result"]
    sets = list(next(iter(told["halves"].values())))
    lines = [
        f"# Pair readers trained by reward ({result['device']})", "",
        f"Commit {result['commit']}; command: the heads of `infra/gpu_host/jobs/policy.sh` and of "
        "`infra/training/policy_halves_dev.py`.", "", preface.rstrip(), "", "## Figures", "",
        "Dev questions by halves: each policy's budget and STOP's bias chosen on one half, told on the other, "
        f"{DRAWS} splits; at no more tokens than the best simple method. F1 of each seed (tokens):", "",
        f"| policies | {' | '.join(sets)} |", "| --- |" + " --- |" * len(sets),
    ]  # fmt: skip
    for kind, each in told["halves"].items():
        cells = [
            f"{', '.join(str(f1) for f1 in each[s]['f1'])} ({each[s]['tokens']:.0f})" if s in each else ""
            for s in sets
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += [
        "", "The same set against each other, points of F1 on the mean of the sets (95% over the questions):", "",
        f"| | gain | seeds | {' | '.join(sets)} |", "| --- | --- | --- |" + " --- |" * len(sets),
        *(over_row(name, each, sets) for name, each in told["over"].items()),
        "", "The same at one and the same budget, STOP's bias -12, nothing chosen: gain (tokens for the supervised "
        "ones'):", "",
        *fixed_table(told["at_fixed_points"]),
        "", "Orders of pair readers on test questions, trained on by reward (`_rewarded`) or by as many steps of "
        "labels (`_longer`), over those that they began from:", "",
        f"| order | tokens, at most | gain | {' | '.join(sets)} |", "| --- | --- | --- |" + " --- |" * len(sets),
    ]  # fmt: skip
    for name, budgets in told["orders_over"].items():
        for budget, each in budgets.items():
            by_set = " | ".join(str(each["sets"].get(s, "")) for s in sets)
            lines.append(
                f"| {name} | {budget} | {each['gain']} ({each['low']} to {each['high']}) | {by_set} |"
            )
    lines += policy_arms.table(result["arms"])
    if result["ranks"].get("test"):
        lines += ["", "How early each order finds what tells (% of the questions that have it):", ""]
        lines.append(table_of(result["ranks"]))
    lines += ["", "F1 (tokens) by each order on test questions:", ""]
    budgets = list(next(iter(next(iter(told["orders"].values())).values())))
    lines += [f"| set | order | {' | '.join(budgets)} |", "| --- | --- |" + " --- |" * len(budgets)]
    for s in sets:
        for name, of in told["orders"].items():
            shown = [f"{of[s][b][0]:.1f} ({of[s][b][1]:.0f})" if b in of.get(s, {}) else "" for b in budgets]
            lines.append(f"| {s} | {name} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *rewarded_by(result)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("judged", "carried", "home", "folds", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--preface", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--device", default="NVIDIA H200")
    given = parser.parse_args(arguments)
    who = json.loads((given.folds / "who_reads.json").read_text())
    places, known, points = (
        places_of(given.carried, who),
        readings_in(given.judged),
        load_points(given.judged),
    )
    dev, test = (Read(points, places, known, split) for split in ("dev", "test"))
    result: dict[str, Any] = {
        "bench": "policy_arms", "device": given.device, "commit": given.commit, "readings": len(known),
        "result": result_of(dev, test), "rewarded_by": "fold readers", "who_reads": who,
    }  # fmt: skip
    result["ratios"] = result["result"].pop("ratios")
    files = {
        "arms": given.home / "arms.json", "ranks": given.home / "ranks.json",
        "fold_readers": given.folds / "equal.json", "slopes": given.folds / "slopes.json",
    }  # fmt: skip
    for figure, path in files.items():
        result[figure] = json.loads(path.read_text()) if path.is_file() else {}
    preface = given.preface.read_text(encoding="utf-8") if given.preface else ""
    keep_lines(given.out, result, page(result, preface))


if __name__ == "__main__":
    main()
