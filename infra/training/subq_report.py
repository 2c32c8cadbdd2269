"""Join what `subq_gpu` wrote into one result that counts: a JSON file and a page.

    python -m infra.training.subq_report --runs DIR… --out infra/bench/results/2026-11-22_subq_h200
    python -m infra.training.subq_report --runs DIR --compare subq-compare.json --out PAGE

Each folder holds train-<name>.json and needles-<name>.json (or needles-<name>-int8.json: the weights that ship) of
one or more runs. They are set side by side; the named figures are means over them. --compare takes what
`infra.training.subq_compare` wrote.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from infra.training.subq_compare import ratios_of

NAMED = ("known-5", "heldout-kinds-5", "heldout-forms-5", "heldout-5")
"""Cells whose exact match the result names, each among four needles worded alike."""
READERS = ("subq", "subq-lean", "gca")
UNITS = ((1 << 20, "m"), (1 << 10, "k"))
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""By seeds: how many standard errors a mean of so many paired differences is known to, 95 of 100 times."""
KEPT = ("step", "seconds", "language", "answers", "contrastive", "exact", "recall", "gold_weight", "scale")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", default=[])
    parser.add_argument(
        "--compare", type=Path, nargs="+", default=[],
        help="summaries of infra.training.subq_compare; those over one text are joined",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if not given.compare and not given.runs:
        parser.error("give --runs, --compare or both")
    runs = [run for folder in given.runs for run in read_runs(folder)]
    if given.runs and not runs:
        parser.error(f"{', '.join(map(str, given.runs))}: no train-*.json with its needles-*.json")
    result: dict[str, Any] = joined(runs) if runs else {}
    text = page(result) if runs else ""
    summaries = together([json.loads(path.read_text(encoding="utf-8")) for path in given.compare])
    ratios = result.get("ratios", {})
    for summary in summaries:
        text += ("\n" if text else "") + compare_page(summary)
        named = summary["text"] if len(summaries) > 1 else ""
        ratios = ratios | {
            f"{key}_{named}" if named else key: value for key, value in summary["ratios"].items()
        }
    if summaries and (runs or len(summaries) > 1):
        compared: Any = summaries if len(summaries) > 1 else summaries[0]
        result = {"bench": "subq-compare", "device": summaries[0]["device"]} | result
        result = result | {"compared": compared, "ratios": ratios}
    elif summaries:
        result = summaries[0]
    given.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    given.out.with_suffix(".md").write_text(text, encoding="utf-8")


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run of a folder that was judged: its training and its needles."""
    found = []
    for path in sorted(folder.glob("train-*.json")):
        name = path.stem.removeprefix("train-")
        for made in (name, f"{name}-int8"):
            judged = folder / f"needles-{made}.json"
            if judged.exists():
                found.append(
                    {"name": made, "train": json.loads(path.read_text())} | json.loads(judged.read_text())
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
            searched = f", searched {row['search']}" if row.get("search") else ""
            rows.append({"run": run["name"] + searched, **row})
            if row["what"] == "trials" and row["cell"] in NAMED:
                name = f"needle_exact_{row['cell'][:-2].replace('-', '_')}_{short(row['length'])}"
                searched = f"_{row['search']}" if row.get("search") else ""
                exact[name + searched].append(row["exact"])
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
                "lookahead": train["made_from"]["model"].get("lookahead", 0),
                "lookbehind": train["made_from"]["model"].get("lookbehind", 0),
                "rerank": train["made_from"]["model"].get("rerank", False), "twins": stream.get("twins", 0.0),
                "loss_with_retrieval": language.get("with_retrieval"),
                "loss_without": language.get("without"),
                "curve": [{key: round(each[key], 4) for key in KEPT} for each in train["curve"][::10]],
            }
        )  # fmt: skip
    ratios = {name: round(sum(values) / len(values), 1) for name, values in sorted(exact.items())}
    if gains:
        ratios["lm_loss_gain_of_reading"] = round(sum(gains) / len(gains), 4)
        ratios["lm_loss_gain_of_reading_least"] = round(min(gains), 4)
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
    for run in dict.fromkeys(row["run"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["run"] == run]
        lengths = sorted({row["length"] for row in rows})
        lines += ["", f"## {run}", "", "| cell (n) | " + " | ".join(map(short, lengths)) + " |"]
        lines += ["|" + " --- |" * (1 + len(lengths))]
        for what, cell in dict.fromkeys((row["what"], row["cell"]) for row in rows):
            by = {row["length"]: row for row in rows if (row["what"], row["cell"]) == (what, cell)}
            counts = sorted({row["n"] for row in by.values()})
            name = f"{cell} in one text" if what == "stream" else cell
            cells = [f"{by[at]['exact']} / {by[at]['recall']}" if at in by else "" for at in lengths]
            lines.append(f"| {name} ({', '.join(map(str, counts))}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def kept(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary with every tenth point of the curves, and what the methods lose when reading is switched off."""
    runs = [run | {"curve": run["curve"][::10] + run["curve"][-1:]} for run in summary["runs"]]
    ratios = dict(summary["ratios"])
    for method in READERS:
        judged = [run["judged"] for run in runs if run["method"] == method and "without" in run["judged"]]
        gains = [each["without"]["loss"] - each["with_retrieval"]["loss"] for each in judged]
        if gains:
            name = method.replace("-", "_")
            ratios[f"lm_loss_gain_of_reading_small_{name}"] = round(sum(gains) / len(gains), 4)
            ratios[f"lm_loss_gain_of_reading_small_{name}_least"] = round(min(gains), 4)
    return summary | {"runs": runs, "ratios": ratios}


def compare_page(summary: dict[str, Any]) -> str:
    """What a person reads of the comparison: loss and perplexity by method and seed, and loss by position."""
    runs = summary["runs"]
    positions = list(runs[0]["judged"]["with_retrieval"]["by_position"])
    lines = [
        f"# Language models of equal size, tokens and batches, {summary['text']}, {summary['device']}", "",
        f"{runs[0]['tokens']:,} tokens a run, sequences of {positions[-1]}; {summary['jobs']} runs at a time on "
        "the device, so that seconds compare only roughly.", "",
        "| method | seed | parameters | loss | perplexity | without reading | seconds | GB |",
        "|" + " --- |" * 8,
    ]  # fmt: skip
    for run in sorted(runs, key=lambda run: (run["method"], run["seed"])):
        without = run["judged"].get("without", {}).get("loss", "")
        lines.append(
            f"| {run['method']} | {run['seed']} | {run['parameters'][0]:,} | {run['loss']} | {run['perplexity']} "
            f"| {without} | {run['train_seconds']} | {run['peak_bytes'] / 1e9:.1f} |"
        )
    lines += ["", "Nats a token by position (up to), means over the seeds:", ""]
    lines += ["| method | " + " | ".join(positions) + " |", "|" + " --- |" * (1 + len(positions))]
    for method in dict.fromkeys(run["method"] for run in runs):
        for way in ("with_retrieval", "without"):
            rows = [
                run["judged"][way]["by_position"]
                for run in runs
                if run["method"] == method and way in run["judged"]
            ]
            if rows:
                means = [f"{sum(row[at] for row in rows) / len(rows):.4f}" for at in positions]
                name = method if way == "with_retrieval" else f"{method}, reading switched off"
                lines.append(f"| {name} | " + " | ".join(means) + " |")
    lines += paired_lines(runs, positions)
    lines += ["", "| figure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in summary["ratios"].items() if value is not None]
    return "\n".join(lines) + "\n"


def paired_lines(runs: Sequence[dict[str, Any]], positions: Sequence[str]) -> list[str]:
    """What reading gains against the model trained without it: by seed and position; mean, spread, interval."""
    by_key = {(run["method"], run["seed"]): run["judged"]["with_retrieval"] for run in runs}
    lines: list[str] = []
    for method in READERS:
        pairs = [
            (seed, judged, by_key["no-retrieval", seed])
            for (name, seed), judged in sorted(by_key.items())
            if name == method and ("no-retrieval", seed) in by_key
        ]
        gains = {
            str(seed): [without["loss"] - judged["loss"]]
            + [without["by_position"][at] - judged["by_position"][at] for at in positions]
            for seed, judged, without in pairs
        }
        if len(gains) > 1:
            columns = list(zip(*gains.values(), strict=True))
            means = [mean(each) for each in columns]
            reach = STUDENT.get(len(pairs), 2.0) / len(pairs) ** 0.5
            wide = [reach * stdev(each) for each in columns]
            gains |= {
                "mean": means, "spread": [stdev(each) for each in columns],
                "95% from": [m - w for m, w in zip(means, wide, strict=True)],
                "95% to": [m + w for m, w in zip(means, wide, strict=True)],
            }  # fmt: skip
        if gains:
            lines += [
                "",
                f"Nats that {method} gains against no-retrieval (above 0: it is better), by position:",
                "",
            ]
            lines += ["| seed | all | " + " | ".join(positions) + " |", "|" + " --- |" * (2 + len(positions))]
            lines += [
                f"| {seed} | " + " | ".join(f"{x:.4f}" for x in row) + " |" for seed, row in gains.items()
            ]
    return lines


def together(summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One summary a text: runs of the same method and seed are taken from the last, figures are made anew."""
    found: dict[str, dict[str, Any]] = {}
    for summary in summaries:
        text = summary.get("text", "books")
        before = found.get(text, {}).get("runs", [])
        runs = {(run["method"], run["seed"]): run for run in [*before, *summary["runs"]]}
        same = summary["ratios"] if not before else ratios_of(list(runs.values()))
        found[text] = summary | {"text": text, "runs": list(runs.values()), "ratios": same}
    return [kept(summary) for summary in found.values()]


if __name__ == "__main__":
    main()
