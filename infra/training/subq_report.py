"""Join what `subq_gpu` wrote into one result that counts: a JSON file and a page.

    python -m infra.training.subq_report --runs DIR… --out infra/bench/results/2026-11-22_subq_h200
    python -m infra.training.subq_report --runs DIR --compare subq-compare.json --out PAGE
    python -m infra.training.subq_report --kept infra/bench/results/2026-11-30_subq_h200.json --runs DIR… --out PAGE

The folders hold train-<name>.json and needles-<name>.json (or needles-<name>-int8.json: the weights that ship) of
one or more runs; needles may lie in another folder than their training, further lengths in a third. They are set
side by side; the named figures are means over them. --compare takes what `infra.training.subq_compare` wrote.
--kept takes earlier results: their runs stand beside the new ones, and rows of a run that is there already (other
lengths of the same weights: needs no train-<name>.json) are added to it.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Container, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from infra.evaluation.passkey import WORDINGS
from infra.training.kept_page import keep_as
from infra.training.subq_compare import ratios_of
from infra.training.subq_misses import counted, misses_lines

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
    parser.add_argument(
        "--kept", type=Path, nargs="+", default=[], help="earlier results, joined with --runs"
    )
    parser.add_argument("--note", type=Path, help="a text that the page begins with, below its title")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if not given.compare and not given.runs:
        parser.error("give --runs, --compare or both")
    kept_results = [json.loads(path.read_text(encoding="utf-8")) for path in given.kept]
    known = {about["run"] for result in kept_results for about in result["runs"]}
    runs = read_runs(given.runs, known)
    if given.runs and not runs:
        parser.error(
            f"{', '.join(map(str, given.runs))}: no needles-*.json with its train-*.json, or of a run of --kept "
            f"({', '.join(sorted(known)) or 'none given'})"
        )
    result: dict[str, Any] = joined(runs, kept_results) if runs else {}
    text = page(result, given.note.read_text(encoding="utf-8") if given.note else "") if runs else ""
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
    keep_as(given.out, result, text)


def read_runs(folders: Sequence[Path], known: Container[str] = ()) -> list[dict[str, Any]]:
    """Every run that was judged: its needles, and its training of any folder unless the run is `known` already."""
    trained = {path.name: path for folder in folders for path in sorted(folder.glob("train-*.json"))}
    found = []
    for path in [path for folder in folders for path in sorted(folder.glob("needles-*.json"))]:
        name = path.stem.removeprefix("needles-")
        own = path.parent / f"train-{name.removesuffix('-int8')}.json"
        source = own if own.exists() else trained.get(own.name)
        if source is not None or name in known:
            train = json.loads(source.read_text(encoding="utf-8")) if source else None
            found.append({"name": name, "train": train} | json.loads(path.read_text(encoding="utf-8")))
    return found


def joined(runs: Sequence[dict[str, Any]], kept_results: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The result: a row for each cell and length of each run, the runs' training, and the named figures.

    Of a row that is there twice (same run, cell, length and search) the later one counts.
    """
    rows = {_row_key(row): row for result in kept_results for row in result["rows"]}
    about = {each["run"]: each for result in kept_results for each in result["runs"]}
    for run in runs:
        for row in run["rows"]:
            searched = f", searched {row['search']}" if row.get("search") else ""
            named = {"run": run["name"] + searched, **counted(row)}
            rows[_row_key(named)] = named
        if run["train"] is not None:
            about[run["name"]] = _about(run)
    exact: dict[str, list[float]] = defaultdict(list)
    for row in rows.values():
        if row["what"] == "trials" and row["cell"] in NAMED:
            name = f"needle_exact_{row['cell'][:-2].replace('-', '_')}_{short(row['length'])}"
            exact[name + (f"_{row['search']}" if row.get("search") else "")].append(row["exact"])
    ratios = {name: round(sum(values) / len(values), 1) for name, values in sorted(exact.items())}
    gains = [
        each["loss_without"] - each["loss_with_retrieval"]
        for each in about.values()
        if each["loss_without"] is not None
    ]
    if gains:
        ratios["lm_loss_gain_of_reading"] = round(sum(gains) / len(gains), 4)
        ratios["lm_loss_gain_of_reading_least"] = round(min(gains), 4)
    return {
        "bench": "subq-needles",
        "device": runs[0]["device"],
        "runs": list(about.values()),
        "rows": list(rows.values()),
        "ratios": ratios,
    }


def _row_key(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["run"], row["what"], row["cell"], row["length"]


def _about(run: dict[str, Any]) -> dict[str, Any]:
    train, language = run["train"], run.get("language", {})
    model, stream = train["made_from"]["model"], train["made_from"]["stream"]
    return {
        "run": run["name"], "steps": train["steps"], "seconds": round(train["seconds"], 1),
        "tokens": train["tokens"], "parameters": train["parameters"], "peak_bytes": train["peak_bytes"],
        "real": stream["real"], "scale_max": model["scale_max"], "neighbours": model["neighbours"],
        "lookahead": model.get("lookahead", 0), "lookbehind": model.get("lookbehind", 0),
        "rerank": model.get("rerank", False), "twins": stream.get("twins", 0.0),
        **({"twins_alike": stream["twins_alike"]} if stream.get("twins_alike") else {}),
        "routing_first": train["made_from"].get("train", {}).get("routing_first", 0.0),
        "loss_with_retrieval": language.get("with_retrieval"), "loss_without": language.get("without"),
        "curve": [{key: round(each[key], 4) for key in KEPT} for each in train["curve"][::10]],
    }  # fmt: skip


def by_wording(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Exact match by wording and length, mean over runs and lengths of keys; in brackets the worst cell."""
    trials = [row for row in rows if row["what"] == "trials" and not row.get("search")]
    lengths = sorted({row["length"] for row in trials})
    lines = []
    for others, title in (("", "among four others worded alike"), ("-alone", "alone")):
        table = []
        for wording in WORDINGS:
            cells = []
            for length in lengths:
                wanted = {f"{wording}-{digits}{others}" for digits in (5, 10, 16)}
                own = [row["exact"] for row in trials if row["cell"] in wanted and row["length"] == length]
                cells.append(f"{mean(own):.1f} ({min(own):.0f}, {len(own)})" if own else "")
            if any(cells):
                table.append(f"| {wording} | " + " | ".join(cells) + " |")
        if table:
            lines += [
                "",
                f"Exact match, %, {title}: mean over runs and keys of 5, 10 and 16 digits (worst cell, cells):",
                "",
            ]
            lines += [
                "| wording | " + " | ".join(map(short, lengths)) + " |",
                "|" + " --- |" * (1 + len(lengths)),
            ]
            lines += table
    return lines


def short(length: int) -> str:
    """16384 -> 16k, 1048576 -> 1m."""
    return next((f"{length // size}{unit}" for size, unit in UNITS if length % size == 0), str(length))


def page(result: dict[str, Any], note: str = "") -> str:
    """What a person reads: the runs, the named figures, exact match and recall by cell and length."""
    lines = [f"# Needles in long text, {result['device']}", ""]
    lines += [note.strip(), ""] if note.strip() else []
    lines += [
        "Exact match / recall of every chunk that holds key digits, %. Cells with distractors hold four.",
        "",
    ]
    shown = [key for key in dict.fromkeys(key for run in result["runs"] for key in run) if key != "curve"]
    lines += ["| " + " | ".join(shown) + " |", "|" + " --- |" * len(shown)]
    lines += ["| " + " | ".join(str(run.get(key, "")) for key in shown) + " |" for run in result["runs"]]
    lines += by_wording(result["rows"])
    lines += misses_lines(result["rows"])
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
