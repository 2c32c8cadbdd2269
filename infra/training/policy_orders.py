"""A run's policies against every order alone, the pair readers' own included.

    python -m infra.training.policy_orders --home build/policy-home --into infra/bench/results/NAME.json

The best simple method of the named figures is by words and vectors. An order by a pair reader's score costs as
much to make as the policies that see it, so what a policy adds is told against the best of these too. As elsewhere
the best order is chosen on the test questions themselves, points of policies on dev questions, or by own STOP.
Needs F1 question by question (`scores.npz`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infra.evaluation.policy_judge import gap_closed, paired
from infra.training.policy_evaluation import (
    LEARNED,
    Curves,
    at_no_more_tokens,
    best_simple,
    key_of,
    others_dev,
)
from infra.training.policy_halves import load_scores
from infra.training.policy_points import SIMPLE, is_policy, kind_of
from infra.training.policy_ranks import NAMES

ORDERS = (*SIMPLE, *NAMES.values())
KINDS = ("supervised", *LEARNED, "reinforce_hops", "shipped")


def over_orders(curves: Curves, dataset: str) -> dict[str, Any]:
    """The best order of a set, and by `dev` and `own_stop` each kind's F1, tokens, gap closed and difference.

    Nothing for a set that was not read; a kind is left out where every point reads more than the best order.
    """
    test = curves.of(dataset, "test")
    dev = curves.of(dataset, "dev") or others_dev(curves, dataset)
    if not test or not dev:
        return {}
    each = curves.scores["test", dataset]
    best = best_simple(test, ORDERS)
    oracle = next(p for p in test if p["name"] == "oracle")
    largest = max(p["budget"] for p in test if is_policy(p["name"]))
    found: dict[str, Any] = {
        "best": {"order": f"{best['name']} at {best['budget']}", "f1": best["forced_f1"], "tokens": best["tokens"]}
    }  # fmt: skip
    by_dev: dict[str, list[Any]] = {}
    by_stop: dict[str, list[Any]] = {}
    for name in sorted({p["name"] for p in test if kind_of(p["name"]) in KINDS and is_policy(p["name"])}):
        by_dev.setdefault(kind_of(name), []).append(at_no_more_tokens(name, dev, test, best))
        own = (p for p in test if (p["name"], p["budget"], p["stop_bias"]) == (name, largest, 0.0))
        by_stop.setdefault(kind_of(name), []).append(next(own, None))
    for way, kinds in (("dev", by_dev), ("own_stop", by_stop)):
        for kind, points in kinds.items():
            if all(p is not None and p["forced_f1"] is not None for p in points):
                f1 = float(np.mean([p["forced_f1"] for p in points]))
                mean = np.mean([each[key_of(p)] for p in points], axis=0)
                found.setdefault(way, {})[kind] = {
                    "f1": round(f1, 2),
                    "tokens": round(float(np.mean([p["tokens"] for p in points])), 1),
                    "gap_closed": gap_closed(f1, best["forced_f1"], oracle["forced_f1"]),
                    "over_best": paired(mean, each[key_of(best)]),
                }
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each set and kind: F1 (tokens), gap closed, difference with interval, by dev and by own STOP."""
    lines = [
        "| set | best order of all | method | as dev chooses | by own STOP |",
        "| --- | --- | --- | --- | --- |",
    ]
    for dataset, told in found.items():
        best = told["best"]
        for kind in KINDS:
            cells = [_cell(told.get(way, {}).get(kind)) for way in ("dev", "own_stop")]
            if any(cells):
                order = f"{best['order']}: {best['f1']:.1f} ({best['tokens']:.0f})"
                lines.append(f"| {dataset} | {order} | {kind} | {' | '.join(cells)} |")
    return lines


def _cell(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return ""
    over = told["over_best"]
    return (
        f"{told['f1']:.1f} ({told['tokens']:.0f}), gap {told['gap_closed']:.2f}, "
        f"{over['gain']:+.1f} ({over['low']:.1f} to {over['high']:.1f})"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True, help="what policy_collect unpacked")
    parser.add_argument("--into", type=Path, help="a kept result that gets the figures")
    given = parser.parse_args()
    evaluation = json.loads((given.home / "evaluation.json").read_text(encoding="utf-8"))
    curves = Curves(sets=dict(evaluation["sets"]))
    load_scores(curves, given.home / "scores.npz")
    found = {name: told for name in curves.sets if (told := over_orders(curves, name))}
    print("\n".join(table(found)))  # noqa: T201
    if given.into is not None:
        from infra.training.policy_report import as_json

        result = json.loads(given.into.read_text(encoding="utf-8"))
        last = result.pop("curves")
        given.into.write_text(as_json({**result, "over_orders": found, "curves": last}), encoding="utf-8")


if __name__ == "__main__":
    main()
