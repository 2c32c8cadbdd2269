"""The page of a co-training run: each way of training at equal updates, its gain on the start question by question.

python -m infra.training.cotrain_report --found OUT/cotrain.json --bench infra/bench/results/NAME

OUT/cotrain.jsonl does as well: it has what was found up to the moment in which a host went away. It has F1 by
question too, so that the page sets each way of training against the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from infra.training.cotrain_between import between, table
from infra.training.cotrain_rows import assemble, read_rows
from infra.training.kept_page import keep

SHOWN = (
    ("reader", "reader alone"), ("policy", "policy alone"), ("alternating", "in turn"), ("joint", "jointly"),
)  # fmt: skip
METHODS = {
    "policy": "the policy, its own STOP",
    "last": "the same after all updates",
    "filled": "the policy, budget filled",
    "hybrid": "hybrid search",
    "oracle": "the telling sentence",
}


def by_run(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs' figures by what they train, a list over the seeds."""
    sorted_out: dict[str, list[dict[str, Any]]] = {}
    for figures in found.values():
        sorted_out.setdefault(figures["run"], []).append(figures)
    return {name: sorted(some, key=lambda each: each["seed"]) for name, some in sorted_out.items()}


def gains(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """F1 gained on the start by run, set and choice: mean over seeds, and the seeds' extremes and mean interval."""
    out: dict[str, dict[str, float]] = {}
    for name, some in by_run(found).items():
        for point in sorted({key for each in some for key in each.get("gain_on_start", {})}):
            told = [each["gain_on_start"][point] for each in some if point in each.get("gain_on_start", {})]
            values = [each["gain"] for each in told]
            out[f"{name}.{point}"] = {
                "mean": round(mean(values), 2), "least": min(values), "most": max(values), "seeds": len(values),
                "low": round(mean(each["low"] for each in told), 2),
                "high": round(mean(each["high"] for each in told), 2),
            }  # fmt: skip
    return out


def updates_done(figures: dict[str, Any]) -> tuple[int, int]:
    """Updates of reader and policy that a run really did."""
    run, training = figures["run"], figures["training"]
    if run == "start":
        return 0, 0
    if run == "reader":
        return int(training["steps"]), 0
    if run == "policy":
        return 0, int(training["learning"]["iterations"])
    if run == "joint":
        steps = int(training["rounds"][0]["steps"])
        return steps, steps
    rounds = training["rounds"]
    return (
        sum(int(each["reader"]["steps"]) for each in rounds),
        sum(int(each["retriever"]["learning"]["iterations"]) for each in rounds),
    )


def work_done(figures: dict[str, Any]) -> tuple[int | None, int | None]:
    """Readings that the policy's updates asked for, tokens that the reader's updates learned from (in the joint run
    an even share of all arms': one of them is learned from); None: not written down."""
    run, training, terms = figures["run"], figures["training"], figures.get("terms")
    if run == "start":
        return 0, 0
    if run == "reader":
        return 0, training.get("tokens")
    if run == "policy":
        return training["learning"].get("asked"), 0
    rounds = training["rounds"]
    if run == "joint":
        if terms is None or "tokens" not in rounds[0]:
            return None, None
        arms = int(terms["arms"])
        return int(rounds[0]["steps"]) * int(terms["questions"]) * arms, int(rounds[0]["tokens"]) // arms
    asked_by_round = [each["retriever"]["learning"].get("asked") for each in rounds]
    tokens = [each["reader"].get("tokens") for each in rounds]
    return (
        None if None in asked_by_round else sum(asked_by_round),
        None if None in tokens else sum(tokens),
    )


def page(found: dict[str, Any], device: str) -> str:
    """The figures as tables."""
    runs, gained = by_run(found), gains(found)
    start = runs["start"][0]
    sets = sorted(start["judged"])
    points = list(dict.fromkeys(point for dataset in sets for point in start["judged"][dataset]))
    lines = [
        f"# Reader and policy, each alone, in turn and jointly ({device})", "",
        f"Begun with the adapter `{start['adapter']}` and a policy from labels ({start['features']} features a "
        "candidate). "
        "F1 made to answer, percent; gain on the start question by question, mean over the seeds (least to most of "
        "the seeds; the mean of their 95% intervals). Command: the head of `infra/training/cotrain_gpu.py`.", "",
        *_terms(start),
        "| run | seeds | updates of the reader | updates of the policy | readings for the policy | "
        "tokens of the reader's updates | training, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, shown in SHOWN:
        if name in runs:
            done = [updates_done(each) for each in runs[name]]
            seconds = ", ".join(f"{each['training_seconds']:.0f}" for each in runs[name])
            ours, theirs = (_span([pair[at] for pair in done]) for at in (0, 1))
            asked, tokens = (
                ", ".join(dict.fromkeys(_count(work_done(each)[at]) for each in runs[name])) for at in (0, 1)
            )
            lines.append(f"| {shown} | {len(done)} | {ours} | {theirs} | {asked} | {tokens} | {seconds} |")
    lines += _marks_table(runs)
    cut = sorted(name for name, each in found.items() if not each.get("ended", True))
    if cut:
        lines += [
            "",
            f"Cut off while they were judged: {', '.join(cut)}; a point has the seeds that reached it.",
        ]
    for dataset in sets:
        lines += ["", f"## {dataset}", "", "| read | start: F1 at tokens | " + " | ".join(
            shown for name, shown in SHOWN if name in runs) + " |"]  # fmt: skip
        lines.append("| --- | --- |" + " --- |" * sum(name in runs for name, _ in SHOWN))
        for point in points:
            if point in start["judged"][dataset]:
                cells = [_named(point), *_cells(point, dataset, runs, gained)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _terms(start: dict[str, Any]) -> list[str]:
    """On what terms the runs stand, where it was written down."""
    terms = start.get("terms")
    if terms is None:
        return []
    return [
        f"Terms: a labelled choice is paid {terms['gold']:g}; of the reader's contexts, alone and in turn, "
        f"{terms['oracle']:g} are labelled sentences; labels weigh {terms['labels']:g} in the joint loss. An "
        f"update by reward: {terms['questions']} questions of {terms['group']} episodes, passes: "
        f"{terms['epochs']}; a joint one: {terms['questions']} questions of {terms['arms']} readings, one pass. "
        "A joint choice is one candidate or none, an episode chooses up to eight.", "",
    ]  # fmt: skip


def _count(number: int | None) -> str:
    return "not known" if number is None else f"{number:,}"


def _marks_table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the marks were worth on dev questions, and after how many updates each run is judged."""
    lines = []
    for name, shown in SHOWN:
        for each in runs.get(name, ()):
            if "chosen" in each:
                worth = ", ".join(f"{mark['step']}: {100 * mark['paid']:.1f}" for mark in each["marks"])
                lines.append(f"| {shown} | {each['seed']} | {worth} | {each['chosen']} |")
    if not lines:
        return []
    return [
        "",
        "Dev questions choose after how many updates a run is judged (F1 made to answer less the price of the "
        "tokens read, in points, mean of the sets). The shipped reader knows most of them from before, which "
        "favours few updates of it.",
        "",
        "| run | seed | paid on dev after updates | judged after |",
        "| --- | --- | --- | --- |",
        *lines,
    ]


def _named(point: str) -> str:
    method, _, budget = point.rpartition("_")
    return f"{METHODS.get(method, method)}, {budget}"


def _cells(
    point: str, dataset: str, runs: dict[str, list[dict[str, Any]]], gained: dict[str, dict[str, float]]
) -> list[str]:
    """What a row of a set's table says of a choice: the start's F1, and what each way of training gains."""
    begun = runs["start"][0]["judged"][dataset][point]
    cells = [f"{begun['forced_f1']:.1f} at {begun['tokens']:.0f}"]
    for name in (name for name, _ in SHOWN if name in runs):
        judged = [each["judged"].get(dataset, {}) for each in runs[name]]
        reached = [points[point] for points in judged if point in points]
        if not reached:
            cells.append("not judged")
            continue
        tokens = mean(each["tokens"] for each in reached)
        gain = gained.get(f"{name}.{dataset}.{point}")
        if gain is None:  # its scores by question are lost: only means can be set apart
            cells.append(_unpaired([each["forced_f1"] for each in reached], begun["forced_f1"], tokens))
        else:
            cells.append(_gain(gain, tokens))
    return cells


def _gain(gain: dict[str, float], tokens: float) -> str:
    return (
        f"{gain['mean']:+.1f} ({gain['least']:+.1f} to {gain['most']:+.1f}; {gain['low']:+.1f} to "
        f"{gain['high']:+.1f}) at {tokens:.0f}"
    )


def _unpaired(means: Sequence[float], start: float, tokens: float) -> str:
    apart = [each - start for each in means]
    return f"{mean(apart):+.1f} ({min(apart):+.1f} to {max(apart):+.1f}; unpaired) at {tokens:.0f}"


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


def without_paths(value: Any) -> Any:
    """The same with the last parts of paths alone: where things lay on a host matters to nobody."""
    if isinstance(value, dict):
        return {name: without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--found", type=Path, required=True, help="cotrain.json or .jsonl")
    parser.add_argument("--bench", type=Path, required=True, help="where results go, without ending")
    parser.add_argument("--device", default="NVIDIA H200")
    parser.add_argument("--commit", default="", help="that was run")
    parser.add_argument("--note", default="", help="added at the page's end")
    given = parser.parse_args(arguments)
    each_other = {}
    if given.found.suffix == ".jsonl":
        rows = read_rows(given.found)
        found, each_other = without_paths(assemble(rows)), between(rows)
    else:
        found = without_paths(json.loads(given.found.read_text()))
    if "start" not in found:
        raise SystemExit(f"{given.found} has no run `start`: nothing to compare with")
    results = {
        "bench": "cotrain", "device": given.device, "commit": given.commit, "runs": found, "gains": gains(found),
        "between": each_other,
    }  # fmt: skip
    against = "\n".join([*table(each_other, dict(SHOWN)), ""]) if each_other else ""
    keep(given, results, page(found, given.device) + against)


if __name__ == "__main__":
    main()
