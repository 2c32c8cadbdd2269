"""Tables of a policy run's page: curves, what was read, how the runs kept, and what dev questions can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infra.training.policy_points import APART_BUDGETS, BUDGETS, kind_of

HEALTH = (
    "episode_return",
    "entropy",
    "stop_rate",
    "empty_rate",
    "budget_use",
    "tokens",
    "choices",
    "explained",
)
KINDS = (
    "pair", "pair_decoder", "pair_e5", "pair_bge", "pair_both", "pair_rewarded", "pair_both_rewarded",
    "supervised_without_pair", "supervised", "supervised_longer", "supervised_rewarded", "router",
    "reinforce_without_pair", "reinforce", "plain_ppo", "reinforce_hops", "reinforce_rewarded",
    "plain_ppo_rewarded", "shipped",
)  # fmt: skip
READINGS = ("", "_apart", "_staged")
SHOWN_TRUST = 0.85


def health_of(record: Mapping[str, Any], last: int = 10) -> dict[str, Any]:
    """Means of a run's last iterations, beside those of its first ones; nothing for what was not rewarded."""
    curve = record.get("curve") or []
    if not curve:
        return {}
    return {
        when: {
            name: round(float(np.mean([row[name] for row in part])), 3) for name in HEALTH if name in part[0]
        }
        for when, part in (("first_iterations", curve[:last]), ("last_iterations", curve[-last:]))
    }


def what_is_read(sets: Mapping[str, Any]) -> list[str]:
    """Whether a set is lost by choosing or by what the candidates hold."""
    lines = [
        "", "What is read at a budget of 256 (test; %): what tells is among the 48 candidates; of these",
        "it is read; an answer string is read; sentences; F1. Seeds' means; STOP's bias -4.", "",
        "| set | among candidates | method | what tells is read | answer string | sentences | F1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for dataset, splits in sets.items():
        for kind in (
            "bm25", "dense", "hybrid", "pair_decoder", "pair_e5", "pair_bge", "pair_both", "supervised",
            "reinforce", "plain_ppo", "shipped", "oracle",
        ):  # fmt: skip
            points = [
                p for p in splits.get("test", ())
                if kind_of(p["name"]) == kind and p["budget"] == 256 and p["stop_bias"] == _bias(p["name"])
                and "gold" in p and p["forced_f1"] is not None
            ]  # fmt: skip
            if points:
                mean = {
                    name: round(float(np.mean([p[name] for p in points])), 1)
                    for name in ("gold_among_candidates", "gold", "holds", "sentences", "forced_f1")
                }
                lines.append(f"| {dataset} | {mean.pop('gold_among_candidates')} | {kind} | " + " | ".join(
                    str(value) for value in mean.values()
                ) + " |")  # fmt: skip
    return lines if len(lines) > 6 else []


def curves(sets: Mapping[str, Any]) -> list[str]:
    """F1 over tokens at fixed points, which nothing was chosen for: read together, then read apart."""
    lines = ["", "Curves on test questions: F1 (tokens), seeds' means, STOP's bias -4 where there is a STOP:"]
    lines += _curve_table(sets, ("random", "bm25", "dense", "hybrid", *KINDS), budgets_of(sets), 1.0)
    if not any("_apart" in point["name"] for splits in sets.values() for point in splits.get("test", ())):
        return lines
    lines += ["", f"The same read apart, until the answer is trusted by {SHOWN_TRUST}:"]
    apart = ("bm25", "dense", "hybrid", "pair_plain", "pair_paired", *KINDS)
    return lines + _curve_table(sets, [f"{kind}_apart" for kind in apart], APART_BUDGETS, SHOWN_TRUST)


def budgets_of(sets: Mapping[str, Any]) -> Sequence[int]:
    """The budgets at which a run read together; those built in where it ranked by nothing."""
    found = {p["budget"] for splits in sets.values() for p in splits.get("test", ()) if p["name"] == "hybrid"}
    return sorted(found) or BUDGETS


def _curve_table(
    sets: Mapping[str, Any], kinds: Sequence[str], budgets: Sequence[int], trust: float
) -> list[str]:
    lines = [
        "",
        "| set | method | " + " | ".join(map(str, budgets)) + " |",
        "| --- |" + " --- |" * (1 + len(budgets)),
    ]
    for dataset, splits in sets.items():
        for kind in kinds:
            cells = []
            for budget in budgets:
                points = [
                    p for p in splits.get("test", ())
                    if kind_of(p["name"]) == kind and p["budget"] == budget and p["forced_f1"] is not None
                    and p["stop_bias"] == _bias(p["name"]) and p.get("trust", 1.0) == trust
                ]  # fmt: skip
                f1, tokens = (
                    float(np.mean([p[name] for p in points])) if points else np.nan
                    for name in ("forced_f1", "tokens")
                )
                cells.append(f"{f1:.1f} ({tokens:.0f})" if points else "")
            if any(cells):
                lines.append(f"| {dataset} | {kind} | " + " | ".join(cells) + " |")
    return lines


def dev_questions(sets: Mapping[str, Any]) -> list[str]:
    """How much the dev questions can tell."""
    lines = ["", "Dev and test questions, and how many have what tells among their candidates (%):", ""]
    lines += [
        "| set | dev | what tells is there | test | what tells is there |",
        "| --- | --- | --- | --- | --- |",
    ]
    for dataset, splits in sets.items():
        found = [next((p for p in splits.get(split, ()) if "n" in p), None) for split in ("dev", "test")]
        if all(found):
            cells = [f"{p['n']} | {p['gold_among_candidates']}" for p in found if p]
            lines.append(f"| {dataset} | " + " | ".join(cells) + " |")
    return lines if len(lines) > 5 else []


def healths(records: Mapping[str, Any]) -> list[str]:
    lines = ["", "Health of the runs with rewards, first ten iterations → last ten:", ""]
    lines += [
        "| policy | iterations | alarm | " + " | ".join(HEALTH) + " |",
        "| --- |" + " --- |" * (2 + len(HEALTH)),
    ]
    found = {name: health for name, record in records.items() if (health := health_of(record))}
    for name, health in found.items():
        first, last = health["first_iterations"], health["last_iterations"]
        cells = [f"{first[key]} → {last[key]}" for key in HEALTH if key in last]
        record = records[name]
        lines.append(
            f"| {name} | {record['iterations']} | {record['alarm'] or 'none'} | " + " | ".join(cells) + " |"
        )
    return lines if found else []


def own_stop(curve: Sequence[Mapping[str, Any]], name: str) -> str:
    points = [p for p in curve if p["name"] == name and p["stop_bias"] == 0]
    if not points:
        return "not run"
    point = max(points, key=lambda p: p["budget"])
    return f"F1 {point['forced_f1']} at {point['tokens']} tokens"


def _bias(name: str) -> float:
    return -4.0 if "-" in name and not name.startswith("router") else 0.0


def own_stops(summary: Mapping[str, Any]) -> list[str]:
    """The table of what `policy_evaluation.own_stops` found."""
    found = {name: told for name, told in summary.items() if name.startswith("own_stop_")}
    lines = [
        "",
        "By their own STOP (no bias) at the largest budget, where nothing was chosen on any question:",
        "",
    ]
    lines += [
        "| method_set | F1 (seeds) | tokens | gap closed | simple's tokens over ours | over simple (95%) | "
        "over supervised (95%) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, told in found.items():
        lines.append(
            f"| {name.removeprefix('own_stop_')} | {told['f1']} ({', '.join(map(str, told['seeds']))}) | "
            f"{told['tokens']} | {told['gap_closed']} | {told['tokens_ratio_to_simple']} | "
            f"{_interval(told['over_simple'])} | {_interval(told['over_supervised'])} |"
        )
    return lines if found else []


def _interval(told: Mapping[str, Any] | None) -> str:
    return f"{told['gain']} ({told['low']} to {told['high']})" if told else ""
