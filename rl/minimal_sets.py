"""Minimal sufficient sets: from a choice that the reader answers from, leave out what it does not need.

As Context-Picker mines them (arXiv 2512.14465), but judged by the reader's own score instead of a language
model's verdict, and cheapest first: of all members that can go, the longest goes. All questions go on in step, so a
round is one call to the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.retriever.table import TableBatch
from rl.episodes import Readings, Request


@dataclass(frozen=True, slots=True)
class MinimalSets:
    """`wanted` [N, K]: the minimal set of each row, empty where even the whole choice does not do."""

    wanted: npt.NDArray[np.bool_]
    rounds: int

    @property
    def found(self) -> float:
        """Share of rows with a set."""
        return float(self.wanted.any(1).mean()) if len(self.wanted) else 0.0

    def told(self, tables: TableBatch) -> dict[str, float]:
        """Of the rows with a set: their share, candidates and tokens of a set, share that holds a labelled one."""
        rows = np.flatnonzero(self.wanted.any(1))
        if not len(rows):
            return {"found": 0.0}
        sets = self.wanted[rows]
        return {
            "found": round(self.found, 4),
            "candidates": round(float(sets.sum(1).mean()), 3),
            "tokens": round(float((tables.tokens[rows] * sets).sum(1).mean()), 2),
            "labelled": round(float(((tables.labels[rows] > 0) & sets).any(1).mean()), 4),
            "rounds": float(self.rounds),
        }

    def or_labels(self, tables: TableBatch) -> npt.NDArray[np.bool_]:
        """The sets, and by relevance labels what to choose for rows without one. [N, K]"""
        best = tables.labels.max(1, keepdims=True)
        labelled = (tables.labels == best) & (best > 0) & tables.present
        wanted: npt.NDArray[np.bool_] = np.where(self.wanted.any(1, keepdims=True), self.wanted, labelled)
        return wanted


def mine(
    tables: TableBatch,
    readings: Readings,
    starts: Sequence[Sequence[int]],
    *,
    enough: float = 0.8,
    give_up_margin: float = 1.5,
    keep_gold: bool = False,
    in_turn: bool = False,
) -> MinimalSets:
    """Shrink each row's start while its quality stays at `enough` or more.

    With `keep_gold` a set must also hold the labelled candidates that it began with one of: luck does not count.
    `in_turn`: members are tried once, in the order of the start, as Context-Picker does, not the longest first.
    """
    if len(starts) != len(tables):
        raise ValueError(f"starts: given {len(starts)}; allowed: one a row, {len(tables)}")
    current = [tuple(sorted(set(start))) for start in starts]
    whole: list[Request] = [(row, picks) for row, picks in enumerate(current)]
    good = [outcome.quality(give_up_margin) >= enough for outcome in readings.read(whole)]
    if keep_gold:
        good = [
            fine and bool((tables.labels[row, list(picks)] > 0).any())
            for row, (fine, picks) in enumerate(zip(good, current, strict=True))
        ]
    if in_turn:
        order = [list(dict.fromkeys(start)) for start in starts]
        rounds = _in_turn(tables, readings, current, order, good, enough, give_up_margin, keep_gold)
        return MinimalSets(_wanted(tables, current, good), rounds)
    active = [row for row, fine in enumerate(good) if fine and len(current[row]) > 1]
    rounds = 0
    while active:
        rounds += 1
        asked: list[Request] = []
        for row in active:
            for pick in current[row]:
                rest = tuple(other for other in current[row] if other != pick)
                if not keep_gold or (tables.labels[row, list(rest)] > 0).any():
                    asked.append((row, rest))
        if not asked:
            break
        best: dict[int, tuple[int, tuple[int, ...]]] = {}
        for (row, rest), outcome in zip(asked, readings.read(asked), strict=True):
            if outcome.quality(give_up_margin) >= enough:
                tokens = int(tables.tokens[row, list(rest)].sum())
                best[row] = min(best.get(row, (1 << 60, rest)), (tokens, rest))
        for row, (_, rest) in best.items():
            current[row] = rest
        active = [row for row in best if len(current[row]) > 1]
    return MinimalSets(_wanted(tables, current, good), rounds)


def _in_turn(
    tables: TableBatch, readings: Readings, current: list[tuple[int, ...]], order: list[list[int]],
    good: list[bool], enough: float, give_up_margin: float, keep_gold: bool,
) -> int:  # fmt: skip
    """Leave each member out for good where the reader still answers, one of every row a round; the rounds."""
    rounds = 0
    for place in range(max(map(len, order), default=0)):
        asked: list[Request] = []
        for row, members in enumerate(order):
            if good[row] and place < len(members) and len(current[row]) > 1:
                rest = tuple(other for other in current[row] if other != members[place])
                if not keep_gold or (tables.labels[row, list(rest)] > 0).any():
                    asked.append((row, rest))
        if asked:
            rounds += 1
        for (row, rest), outcome in zip(asked, readings.read(asked), strict=True):
            if outcome.quality(give_up_margin) >= enough:
                current[row] = rest
    return rounds


def _wanted(
    tables: TableBatch, current: Sequence[tuple[int, ...]], good: Sequence[bool]
) -> npt.NDArray[np.bool_]:
    wanted = np.zeros(tables.present.shape, bool)
    for row, fine in enumerate(good):
        if fine:
            wanted[row, list(current[row])] = True
    return wanted
