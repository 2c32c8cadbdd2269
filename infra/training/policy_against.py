"""The policies of a run against one that was judged beside them, on the same test questions at one budget.

    python -m infra.training.policy_against --home build/policy-home --theirs shipped-0 --bias -12 --budget 128 \\
        --into infra/bench/results/2026-11-30_policy_folds_h200.json

Which policy and bias of STOP stand against it is chosen on dev questions alone: the best mean of the sets' F1, each
set counting once; once among all, once among those that read no more tokens there than the other. Whether it is to
ship is told by dev questions too (`ships`): better on the mean of the sets, worse beyond chance on none, no more
tokens. Test questions say what that is worth. Prints a page's table; `--into` adds the figures to a kept result.
Needs F1 question by question (`scores.npz`; of dev questions, for `ships`, runs since 2026-12-01 have it).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infra.evaluation.policy_judge import paired
from infra.training.policy_evaluation import LEARNED, Curves, key_of
from infra.training.policy_halves import load_scores
from infra.training.policy_points import kind_of
from infra.training.policy_served import scored_by_own

ANYHOW, NO_MORE = "best on dev", "best on dev at no more tokens"


class Served(NamedTuple):
    """A policy with the bias of STOP that it would serve with."""

    name: str
    bias: float


def load_curves(home: Path) -> Curves:
    """A run's curves with F1 question by question, from what came home of it."""
    evaluation = json.loads((home / "evaluation.json").read_text(encoding="utf-8"))
    curves = Curves(sets=dict(evaluation["sets"]))
    load_scores(curves, home / "scores.npz")
    return curves


def on_dev(curves: Curves, who: Served, budget: int) -> tuple[float, float]:
    """Means over the sets that have dev questions: F1, tokens."""
    points = [_point(curves, name, "dev", who, budget) for name in curves.sets if curves.of(name, "dev")]
    return float(np.mean([p["forced_f1"] for p in points])), float(np.mean([p["tokens"] for p in points]))


def named(curves: Curves, theirs: Served, budget: int) -> dict[str, Served]:
    """The rewarded policy and bias that dev questions name, among all and at no more tokens than `theirs`."""
    known = {
        Served(p["name"], p["stop_bias"])
        for splits in curves.sets.values()
        for p in splits.get("dev", ())
        if kind_of(p["name"]).startswith(LEARNED) and p["budget"] == budget and p["forced_f1"] is not None
    }
    told = {who: on_dev(curves, who, budget) for who in sorted(known)}
    most = on_dev(curves, theirs, budget)[1]
    found = {}
    for rule, may in ((ANYHOW, told), (NO_MORE, {who: t for who, t in told.items() if t[1] <= most})):
        if may:
            found[rule] = max(may, key=lambda who: may[who][0])
    return found


def against(curves: Curves, ours: Served, theirs: Served, budget: int, draws: int = 2000) -> dict[str, Any]:
    """F1, tokens and the paired difference on each set's test questions; the mean of the sets, each drawn anew."""
    sets, gain = _differences(curves, "test", ours, theirs, budget, draws)
    dev, their_dev = on_dev(curves, ours, budget), on_dev(curves, theirs, budget)
    dev_gain, ships = None, None
    if all(("dev", name) in curves.scores for name in curves.sets if curves.of(name, "dev")):
        on, dev_gain = _differences(curves, "dev", ours, theirs, budget, draws)
        worse = any(told["high"] < 0 for told in on.values())
        ships = bool(dev_gain["gain"] > 0 and dev[1] <= their_dev[1] and not worse)
    return {
        "ours": ours._asdict(), "theirs": theirs._asdict(), "budget": budget, "dev": dev, "their_dev": their_dev,
        "dev_gain": dev_gain,
        "ships": ships,
        "sets": sets,
        "mean": {
            "tokens": round(float(np.mean([told["tokens"] for told in sets.values()])), 1),
            "their_tokens": round(float(np.mean([told["their_tokens"] for told in sets.values()])), 1),
        } | gain,
    }  # fmt: skip


def _differences(
    curves: Curves, split: str, ours: Served, theirs: Served, budget: int, draws: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Each set's F1, tokens and paired difference; the difference of the sets' mean with its interval."""
    sets: dict[str, Any] = {}
    gaps = []
    for name in curves.sets:
        if not curves.of(name, split):
            continue
        mine, other = (_point(curves, name, split, who, budget) for who in (ours, theirs))
        each = curves.scores[split, name]
        gaps.append(100 * (each[key_of(mine)] - each[key_of(other)]))
        sets[name] = {
            "f1": mine["forced_f1"], "tokens": mine["tokens"],
            "their_f1": other["forced_f1"], "their_tokens": other["tokens"],
        } | paired(each[key_of(mine)], each[key_of(other)])  # fmt: skip
    chance = np.random.default_rng(0)
    drawn = [chance.integers(0, len(gap), (draws, len(gap))) for gap in gaps]
    means = np.mean([gap[rows].mean(1) for gap, rows in zip(gaps, drawn, strict=True)], axis=0)
    low, high = np.quantile(means, (0.025, 0.975))
    gain = round(float(np.mean([gap.mean() for gap in gaps])), 2)
    return sets, {"gain": gain, "low": round(float(low), 2), "high": round(float(high), 2)}


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each comparison, a column for each set: F1 (tokens), then the difference with its interval."""
    sets = list(next(iter(found.values()))["sets"])
    lines = [
        "| chosen as | policy, bias | dev F1 (tokens) | "
        + " | ".join(sets)
        + " | mean of the sets, tokens |",
        "| --- | --- | --- |" + " --- |" * (len(sets) + 1),
    ]
    first = next(iter(found.values()))
    cells = [f"{t['their_f1']:.1f} ({t['their_tokens']:.0f})" for t in first["sets"].values()]
    lines.append(
        _line("serves", first["theirs"], first["their_dev"], cells, f"{first['mean']['their_tokens']:.0f}")
    )
    for rule, told in found.items():
        cells = [f"{t['f1']:.1f} ({t['tokens']:.0f}), {_gain(t)}" for t in told["sets"].values()]
        lines.append(
            _line(
                rule, told["ours"], told["dev"], cells, f"{_gain(told['mean'])}, {told['mean']['tokens']:.0f}"
            )
        )
    return lines


def _line(rule: str, who: Mapping[str, Any], dev: tuple[float, float], cells: list[str], last: str) -> str:
    middle = " | ".join(cells)
    return f"| {rule} | {who['name']}, {who['bias']:g} | {dev[0]:.1f} ({dev[1]:.0f}) | {middle} | {last} |"


def _gain(told: Mapping[str, Any]) -> str:
    return f"{told['gain']:+.1f} ({told['low']:.1f} to {told['high']:.1f})"


def _point(curves: Curves, dataset: str, split: str, who: Served, budget: int) -> Mapping[str, Any]:
    for point in curves.of(dataset, split):
        if (point["name"], point["budget"], point["stop_bias"]) == (who.name, budget, who.bias):
            return point
    known = sorted({(p["name"], p["budget"], p["stop_bias"]) for p in curves.of(dataset, split)})
    raise ValueError(
        f"{dataset}, {split}: given {who.name} at a budget of {budget} with bias {who.bias:g}; the run has "
        f"{known[:8]} and {max(0, len(known) - 8)} more; name one of its points"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True, help="what policy_collect unpacked")
    parser.add_argument("--theirs", default="shipped-0", help="the policy that is stood against")
    parser.add_argument("--bias", type=float, required=True, help="of STOP, that it serves with")
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--into", type=Path, help="a kept result that gets the figures")
    given = parser.parse_args()
    curves = load_curves(given.home)
    theirs = Served(given.theirs, given.bias)
    found = {
        rule: against(curves, ours, theirs, given.budget)
        for rule, ours in named(curves, theirs, given.budget).items()
    }
    print("\n".join(table(found)))  # noqa: T201
    over = "its own pair reader" if scored_by_own(given.home) else "the run's pair reader, not its own"
    print(f"{theirs.name} sees {over}")  # noqa: T201
    for rule, told in found.items():
        if told["dev_gain"] is not None:
            verdict = "ships" if told["ships"] else "does not ship"
            print(f"{rule}: {_gain(told['dev_gain'])} on dev, by dev questions it {verdict}")  # noqa: T201
    if given.into is not None:
        result = json.loads(given.into.read_text(encoding="utf-8"))
        from infra.training.policy_report import as_json

        curves_last = {name: value for name, value in result.items() if name != "curves"}
        result = {**curves_last, "against": found, "curves": result["curves"]}
        given.into.write_text(as_json(result), encoding="utf-8")


if __name__ == "__main__":
    main()
