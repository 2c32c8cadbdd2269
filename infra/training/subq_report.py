"""Join what `subq_gpu` wrote into one result that counts: a JSON file and a page.

    python -m infra.training.subq_report --runs DIR… --out infra/bench/results/2026-11-22_subq_h200

Each folder holds train-<name>.json and needles-<name>.json of one or more runs. They are set side by side; the
named figures are means over them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

UNITS = ((1 << 20, "m"), (1 << 10, "k"))
KEPT = ("step", "seconds", "language", "answers", "contrastive", "exact", "recall", "gold_weight", "scale")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    runs = [run for folder in given.runs for run in read_runs(folder)]
    if not runs:
        parser.error(f"{', '.join(map(str, given.runs))}: no train-*.json with its needles-*.json")
    result = joined(runs)
    given.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    given.out.with_suffix(".md").write_text(page(result), encoding="utf-8")


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run of a folder that was judged: its training and its needles."""
    found = []
    for path in sorted(folder.glob("train-*.json")):
        judged = folder / path.name.replace("train-", "needles-")
        if judged.exists():
            found.append(
                {"name": path.stem.removeprefix("train-"), "train": json.loads(path.read_text())}
                | json.loads(judged.read_text())
            )
    return found


def joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result: a row for each cell and length of each run, the runs' training, and the named figures."""
    rows, about = [], []
    exact: dict[str, list[float]] = defaultdict(list)
    gains: list[float] = []
    for run in runs:
        train = run["train"]
        for row in run["rows"]:
            rows.append({"run": run["name"], **row})
            if row["what"] == "trials" and row["cell"] in ("known-5", "heldout-5"):
                exact[f"needle_exact_{row['cell'][:-2]}_{short(row['length'])}"].append(row["exact"])
        language = run.get("language", {})
        if language:
            gains.append(language["without"] - language["with_retrieval"])
        stream = train["made_from"]["stream"]
        about.append(
            {
                "run": run["name"], "steps": train["steps"], "seconds": round(train["seconds"], 1),
                "tokens": train["tokens"], "parameters": train["parameters"], "peak_bytes": train["peak_bytes"],
                "real": stream["real"], "scale_max": train["made_from"]["model"]["scale_max"],
                "neighbours": train["made_from"]["model"]["neighbours"],
                "loss_with_retrieval": language.get("with_retrieval"),
                "loss_without": language.get("without"),
                "curve": [{key: round(each[key], 4) for key in KEPT} for each in train["curve"][::10]],
            }
        )  # fmt: skip
    ratios = {name: round(sum(values) / len(values), 1) for name, values in sorted(exact.items())}
    if gains:
        ratios["lm_loss_gain_of_retrieval"] = round(sum(gains) / len(gains), 4)
        ratios["lm_loss_gain_of_retrieval_least"] = round(min(gains), 4)
    return {
        "bench": "subq-needles",
        "device": runs[0]["device"],
        "runs": about,
        "rows": rows,
        "ratios": ratios,
    }


def short(length: int) -> str:
    """16384 -> 16k, 1048576 -> 1m."""
    return next((f"{length // size}{unit}" for size, unit in UNITS if length % size == 0), str(length))


def page(result: dict[str, Any]) -> str:
    """What a person reads: the runs, the named figures, exact match and recall by cell and length."""
    lines = [f"# Needles in long text, {result['device']}", ""]
    lines += [
        "Exact match / recall of every chunk that holds key digits, %. Cells with distractors hold four.",
        "",
    ]
    shown = [key for key in result["runs"][0] if key != "curve"]
    lines += ["| " + " | ".join(shown) + " |", "|" + " --- |" * len(shown)]
    lines += ["| " + " | ".join(str(run[key]) for key in shown) + " |" for run in result["runs"]]
    lines += ["", "| figure | mean over runs |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in result["ratios"].items()]
    for run in result["runs"]:
        rows = [row for row in result["rows"] if row["run"] == run["run"]]
        lengths = sorted({row["length"] for row in rows})
        lines += ["", f"## {run['run']}", "", "| cell (n) | " + " | ".join(map(short, lengths)) + " |"]
        lines += ["|" + " --- |" * (1 + len(lengths))]
        for what, cell in dict.fromkeys((row["what"], row["cell"]) for row in rows):
            by = {row["length"]: row for row in rows if (row["what"], row["cell"]) == (what, cell)}
            counts = sorted({row["n"] for row in by.values()})
            name = f"{cell} in one text" if what == "stream" else cell
            cells = [f"{by[at]['exact']} / {by[at]['recall']}" if at in by else "" for at in lengths]
            lines.append(f"| {name} ({', '.join(map(str, counts))}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
