"""Reward over labels on all sets together: the mean of the sets' gains, its interval, and each seed's.

Points are those that dev questions choose for each policy and seed (`policy_evaluation.at_no_more_tokens`); gains
are question by question against the policies that learned from labels alone, over the label-trained pair readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infra.training.policy_evaluation import (
    LEARNED,
    Curves,
    Each,
    at_no_more_tokens,
    best_simple,
    key_of,
    others_dev,
)
from infra.training.policy_points import is_policy, kind_of

LABELLED = ("supervised", "supervised_longer")
"""What is compared with: labels alone, and labels alone with as many steps of the pair reader as reward had."""
COMPARED = (*LEARNED, "supervised_rewarded", "supervised_longer")
DRAWS = 2_000
BySeed = Mapping[str, Sequence[Each]]
"""F1 question by question of each seed, by the set."""


def chosen_scores(curves: Curves) -> dict[str, dict[str, dict[str, Each]]]:
    """{kind: {set: {seed: F1 question by question}}} at the points that dev questions choose."""
    found: dict[str, dict[str, dict[str, Each]]] = {}
    for dataset in curves.sets:
        dev, test = curves.of(dataset, "dev") or others_dev(curves, dataset), curves.of(dataset, "test")
        each = curves.scores.get(("test", dataset), {})
        if not dev or not test:
            continue
        simple = best_simple(test)
        for name in sorted({p["name"] for p in test if is_policy(p["name"])}):
            point = at_no_more_tokens(name, dev, test, simple)
            if point is not None and key_of(point) in each:
                seeds = found.setdefault(kind_of(name), {}).setdefault(dataset, {})
                seeds[name.rpartition("-")[2]] = each[key_of(point)]
    return found


def gains(ours: BySeed, theirs: BySeed, seed: int = 0) -> dict[str, Any] | None:
    """Points of F1 on the mean of the sets that both have, with a 95% bootstrap interval over the questions.

    `seeds`: the same of each seed by itself, by what the other kind's seed of its number has; None without a set.
    """
    sets = [name for name in ours if name in theirs]
    if not sets:
        return None
    chance = np.random.default_rng(seed)
    means, draws = [], np.zeros(DRAWS)
    for name in sets:
        gap = 100 * (np.mean(ours[name], axis=0) - np.mean(theirs[name], axis=0))
        means.append(float(gap.mean()))
        draws += gap[chance.integers(0, len(gap), (DRAWS, len(gap)))].mean(1) / len(sets)
    count = min(len(each[name]) for each in (ours, theirs) for name in sets)
    own = [
        float(np.mean([100 * (ours[name][at] - theirs[name][at]).mean() for name in sets]))
        for at in range(count)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "gain": round(float(np.mean(means)), 2), "low": round(float(low), 2), "high": round(float(high), 2),
        "seeds": [round(each, 2) for each in own],
        "spread": round(float(np.std(own, ddof=1)), 2) if count > 1 else None,
        "sets": dict(zip(sets, (round(each, 2) for each in means), strict=True)),
    }  # fmt: skip


def over_supervised(curves: Curves, summary: Mapping[str, Any]) -> dict[str, Any]:
    """{than: {kind: gains}}; `policy` is on each set the kind that its dev questions choose (`policy_<set>`).

    A seed is held against the same seed, and left out where the other kind lacks it.
    """
    found = chosen_scores(curves)
    policy = {
        dataset: found[kind][dataset]
        for dataset in curves.sets
        if (kind := summary.get(f"policy_{dataset}")) in found and dataset in found[kind]
    }
    every = {"policy": policy, **{kind: found[kind] for kind in COMPARED if kind in found}}
    out: dict[str, Any] = {}
    for than in LABELLED:
        if than in found:
            out[than] = {
                kind: told
                for kind, scores in every.items()
                if kind != than and (told := gains(*_by_seed(scores, found[than]))) is not None
            }
    return out


def _by_seed(
    ours: Mapping[str, Mapping[str, Each]], theirs: Mapping[str, Mapping[str, Each]]
) -> tuple[BySeed, BySeed]:
    """What both have, seed by seed in the same order."""
    both = {name: [seed for seed in ours[name] if seed in theirs[name]] for name in ours if name in theirs}
    pairs = {name: seeds for name, seeds in both.items() if seeds}
    return (
        {name: [ours[name][seed] for seed in seeds] for name, seeds in pairs.items()},
        {name: [theirs[name][seed] for seed in seeds] for name, seeds in pairs.items()},
    )


def table(found: Mapping[str, Any]) -> list[str]:
    """The gains as a table in Markdown."""
    if not found:
        return []
    sets = sorted({name for kinds in found.values() for told in kinds.values() for name in told["sets"]})
    lines = [
        "", "Reward over labels, F1 points on the mean of the sets, at the points that dev questions choose (95%,",
        "then each seed, then the sets):", "",
        f"| over | of | gain | seeds | {' | '.join(sets)} |", "| --- | --- | --- | --- |" + " --- |" * len(sets),
    ]  # fmt: skip
    for than, kinds in found.items():
        for kind, told in kinds.items():
            cells = " | ".join(str(told["sets"].get(name, "")) for name in sets)
            seeds = ", ".join(map(str, told["seeds"]))
            lines.append(
                f"| {than} | {kind} | {told['gain']} ({told['low']} to {told['high']}) | {seeds} | {cells} |"
            )
    return lines


def over_row(name: str, told: Mapping[str, Any], sets: Sequence[str]) -> str:
    """A row of a table: a gain with its interval, its seeds and its sets."""
    cells = " | ".join(str(told["sets"].get(s, "")) for s in sets)
    seeds = ", ".join(map(str, told["seeds"]))
    return f"| {name} | {told['gain']} ({told['low']} to {told['high']}) | {seeds} | {cells} |"


def fixed_table(found: Sequence[Mapping[str, Any]], bias: float = -12.0) -> list[str]:
    """Gains at a bias of STOP (`policy_halves_dev.at_fixed_points`), a row a kind and a column a budget."""
    cells = {(each["kind"], each["budget"]): each for each in found if each["stop_bias"] == bias}
    budgets = sorted({budget for _, budget in cells})
    lines = [f"| over supervised | {' | '.join(map(str, budgets))} |", "| --- |" + " --- |" * len(budgets)]
    for kind in dict.fromkeys(kind for kind, _ in cells):
        shown = [
            f"{told['gain']}, {told['low']} to {told['high']} ({told['tokens'][0]:.0f} for {told['tokens'][1]:.0f})"
            if (told := cells.get((kind, budget)))
            else ""
            for budget in budgets
        ]
        lines.append(f"| {kind} | {' | '.join(shown)} |")
    return lines


def otherwise_table(halves: Mapping[str, Any], fixed: Sequence[Mapping[str, Any]]) -> list[str]:
    """The page's part on test questions by halves of their own, and with nothing chosen; [] where neither is."""
    lines: list[str] = []
    if halves:
        sets = sorted({name for told in halves.values() for name in told["sets"]})
        lines += [
            "", "The same on test questions by halves: each policy's point chosen on one half, told on the",
            "other, 40 splits (95% over the questions):", "",
            f"| | gain | seeds | {' | '.join(sets)} |", "| --- | --- | --- |" + " --- |" * len(sets),
            *(over_row(name, each, sets) for name, each in halves.items()),
        ]  # fmt: skip
    for bias, said in ((-12.0, "all but never stopping (bias -12)"), (0.0, "by their own STOP (bias 0)")):
        if any(each["stop_bias"] == bias for each in fixed):
            lines += [
                "", f"Test questions, nothing chosen: {said}, at one and the same budget; gain (tokens for the",
                "supervised ones'):", "", *fixed_table(fixed, bias),
            ]  # fmt: skip
    return lines
