"""One way of co-training against another, question by question: what their gains on the start do not tell.

Two gains whose intervals overlap may still differ, as both are of the same questions. Wants the scores by question
that OUT/cotrain.jsonl holds and cotrain.json does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

PAIRS = (
    ("policy", "start"), ("alternating", "start"), ("joint", "start"), ("reader", "start"),
    ("alternating", "policy"), ("joint", "policy"), ("joint", "alternating"), ("joint", "reader"),
)  # fmt: skip
POINT = "policy_128"
MEAN = "mean of the sets"
Floats = npt.NDArray[np.float64]
Cell = dict[str, float]


def between(
    rows: Iterable[Mapping[str, Any]], point: str = POINT, draws: int = 2000
) -> dict[str, dict[str, Cell]]:
    """`{ours}_over_{theirs}` by set, and for the mean of the sets: F1 in points over the seeds that both have.

    A cell has `gain`, its 95% bootstrap interval over questions (`low`, `high`; drawn within each set), and the
    seeds' `least` and `most`. The interval takes the seeds as they are: it says nothing of other seeds. A set that
    either way was not judged on is left out, and the mean with it.
    """
    scores: dict[tuple[str, int], dict[str, Floats]] = {}
    for row in rows:
        if row.get("point") == point:
            scores.setdefault((row["run"], row["seed"]), {})[row["set"]] = np.array(row["scores"], np.float64)
    sets = sorted({name for judged in scores.values() for name in judged})
    found: dict[str, dict[str, Cell]] = {}
    for ours, theirs in PAIRS:
        gaps = {name: gap for name in sets if len(gap := _gap(scores, ours, theirs, name))}
        cells = {name: _cell([gap], draws) for name, gap in gaps.items()}
        if cells and len(cells) == len(sets) and len({len(gap) for gap in gaps.values()}) == 1:
            cells[MEAN] = _cell(list(gaps.values()), draws)
        if cells:
            found[f"{ours}_over_{theirs}"] = cells
    return found


def table(found: Mapping[str, Mapping[str, Cell]], named: Mapping[str, str]) -> list[str]:
    """The lines of a page; none where nothing was found. `named` says what a run is called there."""
    if not found:
        return []
    sets = list(dict.fromkeys(name for cells in found.values() for name in cells))
    lines = [
        "", "## Each against the others", "",
        "By the policy's own STOP at 128: F1 gained, question by question (least to most of the seeds; 95% "
        "interval over questions, the seeds taken as they are).", "",
        f"| | {' | '.join(sets)} |", "| --- |" + " --- |" * len(sets),
    ]  # fmt: skip
    for pair, cells in found.items():
        ours, theirs = (named.get(name, name) for name in pair.split("_over_"))
        told = [_told(cells[name]) if name in cells else "" for name in sets]
        lines.append(f"| {ours} over {theirs} | {' | '.join(told)} |")
    return lines


def _gap(scores: Mapping[tuple[str, int], Mapping[str, Floats]], ours: str, theirs: str, name: str) -> Floats:
    """Points by seed and question, [seeds, questions]; the one start stands for each seed's."""
    gaps = []
    for run, seed in sorted(scores):
        against = scores.get((theirs, 0 if theirs == "start" else seed), {})
        if run == ours and name in scores[run, seed] and name in against:
            gaps.append(100 * (scores[run, seed][name] - against[name]))
    return np.array(gaps)


def _cell(gaps: Sequence[Floats], draws: int) -> Cell:
    """The mean over sets, each [seeds, questions]."""
    chance = np.random.default_rng(0)
    drawn = np.zeros(draws)
    for gap in gaps:
        by_question = gap.mean(0)
        picks = chance.integers(0, len(by_question), (draws, len(by_question)))
        drawn += by_question[picks].mean(1) / len(gaps)
    by_seed = np.mean([gap.mean(1) for gap in gaps], axis=0)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "gain": round(float(by_seed.mean()), 2), "low": round(float(low), 2), "high": round(float(high), 2),
        "least": round(float(by_seed.min()), 2), "most": round(float(by_seed.max()), 2), "seeds": len(by_seed),
    }  # fmt: skip


def _told(cell: Cell) -> str:
    return (
        f"{cell['gain']:+.1f} ({cell['least']:+.1f} to {cell['most']:+.1f}; "
        f"{cell['low']:+.1f} to {cell['high']:+.1f})"
    )
