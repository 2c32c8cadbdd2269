"""The figures of policies over kept scores (`policy_kept`), and the page that says them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infra.training import policy_evaluation as judging
from infra.training.policy_points import is_policy
from models.retriever.table import Floats

DRAWS = 4000
TOLD = ("name", "budget", "stop_bias", "forced_f1", "f1", "tokens", "sentences", "gold")
"""Of a seed's point, what is kept."""
OWN, ONE = "each seed's own, by dev", "one for all seeds, by dev"
"""Which points of the seeds are told, beside a place that is named whatever dev questions say."""


def ways_of(
    curves: judging.Curves, dataset: str, shown: tuple[int, float]
) -> dict[str, list[Mapping[str, Any]]]:
    """The test points of all seeds (of the sets' policies), by how they were named; {} for what cannot be named.

    OWN: `at_no_more_tokens` for each seed. ONE: the place whose mean F1 on dev questions is best among those where
    the seeds' mean tokens are no more than the best simple method's, on both splits (dev: WITHIN). Last: `shown`.
    """
    dev, test = curves.of(dataset, "dev"), curves.of(dataset, "test")
    simple = judging.best_simple(test)
    names = sorted({p["name"] for p in test if is_policy(p["name"])})

    def at(curve: judging.Curve, place: tuple[int, float]) -> list[Mapping[str, Any]]:
        return [p for p in curve if p["name"] in names and (p["budget"], p["stop_bias"]) == place]

    own = [found for name in names if (found := judging.at_no_more_tokens(name, dev, test, simple))]
    most = judging.WITHIN * next(p["tokens"] for p in dev if judging.key_of(p) == judging.key_of(simple))
    told = {
        place: float(np.mean([p["forced_f1"] for p in at(dev, place)]))
        for place in sorted({(p["budget"], p["stop_bias"]) for p in dev if p["name"] in names})
        if all(p["forced_f1"] is not None for p in at(dev, place))
        and np.mean([p["tokens"] for p in at(dev, place)]) <= most
        and np.mean([p["tokens"] for p in at(test, place)]) <= simple["tokens"]
    }
    ways = {OWN: own, f"budget {shown[0]}, bias {shown[1]:g}": at(test, shown)}
    if told:
        ways[ONE] = at(test, max(told, key=lambda place: told[place]))
    return {way: points for way, points in ways.items() if len(points) == len(names)}


def result_of(
    curves: judging.Curves, sets: Sequence[str], shown: tuple[int, float], about: Mapping[str, Any]
) -> dict[str, Any]:
    """What is kept: of each set the seeds' points by how they were named, and every dev point that was read."""
    found: dict[str, Any] = {}
    for dataset in sets:
        dev, test = curves.of(dataset, "dev"), curves.of(dataset, "test")
        each = curves.scores.get(("test", dataset), {})
        simple = judging.best_simple(test)
        oracle = next(p for p in test if p["name"] == "oracle")
        ends = [each[judging.key_of(simple)], each[judging.key_of(oracle)]]
        found[dataset] = {
            "simple": dict(simple), "oracle": dict(oracle), "questions": len(ends[0]),
            "dev_questions": next((p["n"] for p in dev), 0),
            "ways": {
                way: closed(points, each, ends)
                for way, points in ways_of(curves, dataset, shown).items()
                if all(p["forced_f1"] is not None for p in points)
            },
            "dev": [dict(p) for p in dev if p["forced_f1"] is not None and is_policy(p["name"])],
        }  # fmt: skip
    return {"bench": "policy_kept_scores", "device": "two cores", **about, "sets": found}


def closed(
    points: Sequence[Mapping[str, Any]], each: judging.Scores, ends: Sequence[Floats]
) -> dict[str, Any]:
    """F1, tokens and the share of the gap of several seeds' points; 95% by drawing questions anew, all together."""
    ours = np.mean([each[judging.key_of(p)] for p in points], axis=0)
    simple, oracle = ends
    drawn = np.random.default_rng(0).integers(0, len(ours), (DRAWS, len(ours)))
    f1, low, high = (100 * one[drawn].mean(1) for one in (ours, simple, oracle))
    share = (f1 - low) / np.maximum(high - low, 1e-9)

    def told(values: Floats) -> list[float]:
        return [round(float(one), 4) for one in np.quantile(values, (0.025, 0.975))]

    return {
        "f1": round(100 * float(ours.mean()), 2), "f1_between": told(f1),
        "tokens": round(float(np.mean([p["tokens"] for p in points])), 1),
        "gap_closed": round(float((ours.mean() - simple.mean()) / (oracle.mean() - simple.mean())), 4),
        "gap_closed_between": told(share),
        "over_simple": round(100 * float((ours - simple).mean()), 2), "over_simple_between": told(f1 - low),
        "seeds": [
            {name: p[name] for name in TOLD} for p in points
        ],
        "each": [[round(float(one), 3) for one in each[judging.key_of(p)]] for p in points],
    }  # fmt: skip


def page(result: Mapping[str, Any]) -> str:
    """The result in Markdown."""
    steps = ", ".join(
        f"{name} {record['steps']} steps to a loss of {record['warm_loss']:.4f}"
        for name, record in result["records"].items()
    )
    hits = ", ".join(f"{name} {hit:.1f}" for name, hit in result["kept"]["hit_1"].items())
    lines = [
        "# Policies over kept scores, on two cores", "",
        f"Command: `{result['command']}`. No GPU. Policies see the best {result['candidates']} candidates of",
        f"each question; {steps}. Weights of the sum: {result['kept']['weights']}; hit at 1 on all test questions:",
        f"{hits}. {result['readings_done']:,} readings done by this call, all others known; "
        f"{result['dev_points_known']} dev points read whole.",
        "Points are chosen on dev questions, each seed's its own; 95% over questions.", "",
    ]  # fmt: skip
    for place, told in result["kept"].get("learned", {}).items():
        lines.append(f"Hit at 1, 2, 4, {place}: the sum {told['sum']}, learned {told['learned']}.")
    for dataset, found in result["sets"].items():
        simple, oracle = found["simple"], found["oracle"]
        lines += [
            f"## {dataset} ({found['questions']} test questions, {found['dev_questions']} of dev)", "",
            f"Best simple method, chosen on the test questions: {simple['name']} at {simple['budget']}, "
            f"{simple['forced_f1']} F1 for {simple['tokens']} tokens; oracle sentence {oracle['forced_f1']} "
            f"({oracle['tokens']}). The bar is a third of the gap.", "",
            "| point | F1 | tokens | over simple | gap closed | seeds: F1 (tokens) at budget, bias; tells read |",
            "| --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for way, told in found["ways"].items():
            seeds = "; ".join(
                f"{p['forced_f1']} ({p['tokens']}) at {p['budget']}, {p['stop_bias']:g}; {p['gold']}%"
                for p in told["seeds"]
            )
            lines.append(
                f"| {way} | {told['f1']} ({_span(told['f1_between'])}) | {told['tokens']} | "
                f"{told['over_simple']:+} ({_span(told['over_simple_between'])}) | "
                f"{told['gap_closed']:.3f} ({_span(told['gap_closed_between'], 2)}) | {seeds} |"
            )
        lines += ["", "Dev questions, points read whole: F1 (tokens)", ""]
        places = sorted({(p["budget"], p["stop_bias"]) for p in found["dev"]})
        lines += [
            f"| policy | {' | '.join(f'{budget}, {bias:g}' for budget, bias in places)} |",
            "| --- |" + " --- |" * len(places),
        ]
        for name in result["records"]:
            own = {(p["budget"], p["stop_bias"]): p for p in found["dev"] if p["name"] == name}
            cells = [f"{own[at]['forced_f1']} ({own[at]['tokens']})" if at in own else "" for at in places]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _span(between: Sequence[float], places: int = 1) -> str:
    return f"{between[0]:.{places}f} to {between[1]:.{places}f}"
