"""The page of backbones on news and books: losses of all methods, by position, by seed; keys told and found.

python -m infra.training.subq_backbones_page --found subq-backbones.json --bench infra/bench/results/NAME

Gains are paired: methods of a seed were trained on the same batches and judged on the same text. At equal time:
the loss in training when the quickest method of the seed had ended, from the curves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from infra.training.kept_page import keep, page_parser
from infra.training.subq_backbones import TEXTS, ratios_of
from infra.training.subq_report import STUDENT

AGAINST = "no-retrieval"
Runs = Sequence[dict[str, Any]]


def page(summary: dict[str, Any]) -> str:
    """Tables over all runs that were judged."""
    runs: Runs = summary["runs"]
    lines = [f"# Backbones of equal size on news and books, needles among them, {summary['device']}", ""]
    if not runs:
        return "\n".join([*lines, "No run has been judged yet."]) + "\n"
    lines += [
        f"{runs[0]['tokens']:,} tokens a run in {runs[0]['steps']} updates, half news and half books, needles and "
        f"questions among them, every token a target; sequences of {runs[0]['model']['context_tokens']:,}; "
        f"{summary['jobs']} runs at a time on the device, so that seconds compare only roughly. Methods of a seed "
        "had the same batches.", "",
        *losses(runs), *gains(runs), *positions(runs), *equal_time(runs), *rare_words(runs), *needles(runs),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def losses(runs: Runs) -> list[str]:
    """A line a run."""
    lines = [
        "| method | seed | parameters | seconds | GB | " + " | ".join(
            f"{text}, nats | perplexity | without reading" for text in TEXTS
        ) + " |",
        "|" + " --- |" * (5 + 3 * len(TEXTS)),
    ]  # fmt: skip
    for run in sorted(runs, key=lambda run: (_order(runs, run["method"]), run["seed"])):
        cells = []
        for text in TEXTS:
            loss = run[text]["read"]["loss"]
            unread = run[text].get("unread", {}).get("loss", "")
            cells.append(f"{loss} | {math.exp(loss):.2f} | {unread}")
        lines.append(
            f"| {run['method']} | {run['seed']} | {run['parameters']:,} | {run['train_seconds']} "
            f"| {run['peak_bytes'] / 1e9:.1f} | {' | '.join(cells)} |"
        )
    return [*lines, ""]


def gains(runs: Runs) -> list[str]:
    """What each method gains over no retrieval, seed by seed, with the mean's interval."""
    by = {(run["method"], run["seed"]): run for run in runs}
    lines = [
        f"Nats gained over {AGAINST} (above 0: better), by seed; 95% of the mean of paired differences:", "",
        "| text | method | by seed | mean | 95% |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for text in TEXTS:
        for method in _methods(runs):
            told = [
                by[AGAINST, seed][text]["read"]["loss"] - run[text]["read"]["loss"]
                for (name, seed), run in sorted(by.items())
                if name == method != AGAINST and (AGAINST, seed) in by
            ]
            if told:
                each = ", ".join(f"{gain:+.4f}" for gain in told)
                lines.append(f"| {text} | {method} | {each} | {mean(told):+.4f} | {_interval(told)} |")
    return [*lines, ""]


def positions(runs: Runs) -> list[str]:
    """Nats a token by position, means over the seeds, with reading and without."""
    lines = []
    for text in TEXTS:
        places = list(runs[0][text]["read"]["by_position"])
        shown = " | ".join(f"{int(place):,}" for place in places)
        lines += [
            f"Nats a token of {text} by position (up to), means over the seeds:",
            "",
            f"| method | {shown} |",
        ]
        lines.append("|" + " --- |" * (1 + len(places)))
        for method in _methods(runs):
            own = [run for run in runs if run["method"] == method]
            for kind, name in (("read", method), ("unread", f"{method}, reading switched off")):
                if all(kind in run[text] for run in own):
                    told = [mean(run[text][kind]["by_position"][place] for run in own) for place in places]
                    lines.append(f"| {name} | {' | '.join(f'{nats:.4f}' for nats in told)} |")
        lines.append("")
    return lines


def equal_time(runs: Runs) -> list[str]:
    """The loss in training of each method when the quickest of its seed had ended, means over the seeds.

    The clock begins behind the first point of a curve: blocks are compiled before it.
    """
    ends = {
        seed: min(_clock(run, run["curve"][-1]) for run in runs if run["seed"] == seed)
        for seed in _seeds(runs)
    }
    lines = [
        "Loss in training (mean of 20 updates) when the quickest method of the seed had ended, and the share of "
        "its tokens that each had seen by then. The clock begins behind the first 20 updates, in which blocks are "
        "compiled; runs had the device beside others, and the rate of the slower ones had not fallen yet:", "",
        "| method | nats | share of tokens | seconds of the whole |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for method in _methods(runs):
        told, shares, whole = [], [], []
        for run in (run for run in runs if run["method"] == method):
            seen = [row for row in run["curve"] if _clock(run, row) <= ends[run["seed"]]]
            told.append(seen[-1]["language"])
            shares.append(seen[-1]["step"] / run["steps"])
            whole.append(_clock(run, run["curve"][-1]))
        shown = ", ".join(f"{seconds:.0f}" for seconds in whole)
        lines.append(f"| {method} | {mean(told):.3f} | {100 * mean(shares):.0f}% | {shown} |")
    return [*lines, ""]


def needles(runs: Runs) -> list[str]:
    """Questions answered to the last token and found, means over the seeds."""
    rows = [(run["method"], row) for run in runs for row in run["needles"]]
    cells = list(dict.fromkeys((row["length"], row["wording"]) for _, row in rows))
    if not cells:
        return []
    lines = [
        "Questions among all needles of their sequence, unseen names in unseen books: answered to the last token / "
        "key chunks read, %; means over the seeds "
        f"(n a seed: {', '.join(str(_n(rows, cell)) for cell in cells)}):", "",
        "| method | " + " | ".join(f"{wording}, {length:,}" for length, wording in cells) + " |",
        "|" + " --- |" * (1 + len(cells)),
    ]  # fmt: skip
    for method in _methods(runs):
        shown = []
        for cell in cells:
            own = [row for name, row in rows if name == method and (row["length"], row["wording"]) == cell]
            found = f" / {mean(row['recall'] for row in own):.1f}" if own and "recall" in own[0] else ""
            shown.append(f"{mean(row['exact'] for row in own):.1f}{found}" if own else "")
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return [*lines, ""]


def rare_words(runs: Runs) -> list[str]:
    """What chosen chunks hold of the rare words to come, against the best on offer and against chance."""
    own = [run for run in runs if run[TEXTS[0]].get("rare_words")]
    if not own:
        return []
    lines = [
        "Nats of rare words that a chunk brings up and an earlier one holds: the best chunk chosen / the best of "
        "as many drawn by chance / the best on offer (known only afterwards); means over the seeds:", "",
        "| method | " + " | ".join(TEXTS) + " |", "|" + " --- |" * (1 + len(TEXTS)),
    ]  # fmt: skip
    for method in _methods(own):
        cells = []
        for text in TEXTS:
            rows = [
                run[text]["rare_words"] for run in own if run["method"] == method and run[text]["rare_words"]
            ]
            cells.append(
                " / ".join(f"{mean(row[key] for row in rows):.2f}" for key in ("chosen", "by_chance", "best"))
                if rows
                else ""
            )
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, ""]


def named(runs: Runs) -> dict[str, Any]:
    """The figures by name: those of the run, and what each form of subq gains, `lm_loss_gain_of_retrieval…_<text>`.

    What stands between is the form's name behind `subq`; nothing for `subq` itself.
    """
    found = ratios_of(runs)
    for method in (each for each in _methods(runs) if each.startswith("subq")):
        form = method.removeprefix("subq").replace("-", "_")
        for text in TEXTS:
            gain = found.get(f"gain_over_no_retrieval_subq{form}_{text}")
            if gain is not None:
                found[f"lm_loss_gain_of_retrieval{form}_{text}"] = gain
    return found


def _n(rows: Sequence[tuple[str, dict[str, Any]]], cell: tuple[int, str]) -> int:
    found: int = next(row["n"] for _, row in rows if (row["length"], row["wording"]) == cell)
    return found


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    half = STUDENT.get(len(values), 2.0) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values) - half:+.4f} to {mean(values) + half:+.4f}"


def _clock(run: dict[str, Any], row: dict[str, float]) -> float:
    """Seconds of a run from the first point of its curve to another."""
    first: float = run["curve"][0]["seconds"]
    return row["seconds"] - first


def _methods(runs: Runs) -> list[str]:
    return list(dict.fromkeys(run["method"] for run in runs))


def _seeds(runs: Runs) -> list[int]:
    return sorted({run["seed"] for run in runs})


def _order(runs: Runs, method: str) -> int:
    place: int = _methods(runs).index(method)
    return place


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    given = page_parser(__doc__, "subq-backbones.json of the run", commit=True).parse_args(arguments)
    summary = json.loads(given.found.read_text(encoding="utf-8"))
    summary |= {"commit": given.commit, "ratios": named(summary["runs"])}
    keep(given, summary, page(summary))


if __name__ == "__main__":
    main()
