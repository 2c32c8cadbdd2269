"""How early an order finds what tells: the share of questions with a telling candidate among the first few.

Orders: the embedder's, BM25's, both fused, and each pair reader's that has looked. Questions count that have a
telling candidate at all. `hit`: one of them is among the first 1, 2 or 4; `all`: as many as the question needs are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.training.policy_made import MADE, UNMADE
from infra.training.policy_pairs import BOTH, FOLDS, KINDS, MINILM, PAIRS_BOTH, PLACES, scores_in
from models.retriever.table import ALL_FEATURES, FEATURES, GOLD
from pipeline.tasks.material import Material

Orders = Mapping[str, npt.NDArray[np.float32]]
"""Scores [N, K] by which candidates are ranked, by the order's name."""
DEPTHS = (1, 2, 4)
NAMES = {kind: "pair" if kind == MINILM else f"pair_{kind}" for kind in (*KINDS, BOTH)}
"""What a pair reader's order is called among the simple methods."""
SIMPLE = {"dense": "dense", "bm25": "bm25", "hybrid": "fused"}
RANKS = "ranks.json"


def pair_orders(material: Material, out: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The orders of the pair readers whose folds are all there, and of all of a run together."""
    at = ALL_FEATURES.index("pair") - len(FEATURES)
    found = {}
    for kind, place in (PLACES | {BOTH: PAIRS_BOTH}).items():
        if all((out / place / fold / "scores.npz").exists() for fold in FOLDS):
            found[NAMES[kind]] = scores_in(material, out / place)[..., at]
    return found


def beside_orders(material: Material, out: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The orders of readers of the made questions alone, and of none of them, where these scored dev and test."""
    at = ALL_FEATURES.index("pair") - len(FEATURES)
    found = {}
    for kind, place in PLACES.items():
        for name in (MADE, UNMADE):
            path = out / place / name / "scores.npz"
            if path.exists():
                scores = np.zeros(material.tables.present.shape, np.float32)
                with np.load(path) as packed:
                    scores[packed["rows"]] = packed["columns"][..., at]
                found[f"{NAMES[kind]}_{name}"] = scores
    return found


def ranks_of(material: Material, orders: Orders) -> dict[str, Any]:
    """{split: {set: {order: {n, hit@1, ..., all@1, ...}}}} of dev and test questions, shares in percent."""
    tables = material.tables
    every = {name: tables.features[..., FEATURES.index(feature)] for name, feature in SIMPLE.items()}
    every |= dict(orders)
    told = (tables.labels == GOLD) & tables.present
    # the deepest place that is needed and the first that tells, 1 for the best candidate
    needed = np.where(tables.needs_all, told.sum(1), 1)
    found: dict[str, Any] = {}
    for name, scores in every.items():
        ranked = np.argsort(-np.where(tables.present, scores, -np.inf), axis=1, kind="stable")
        inside = np.cumsum(np.take_along_axis(told, ranked, 1), 1)
        for split in ("dev", "test"):
            for dataset in sorted({question.dataset for question in material.questions}):
                rows = material.rows(split, dataset, answerable=True)
                rows = rows[told[rows].any(1)]
                if not len(rows):
                    continue
                figures: dict[str, Any] = {"n": len(rows)}
                for depth in DEPTHS:
                    count = inside[rows, min(depth, inside.shape[1]) - 1]
                    figures[f"hit@{depth}"] = round(100 * float((count > 0).mean()), 2)
                    figures[f"all@{depth}"] = round(100 * float((count >= needed[rows]).mean()), 2)
                found.setdefault(split, {}).setdefault(dataset, {})[name] = figures
    return found


def write_ranks(material: Material, out: Path, others: Orders | None = None) -> dict[str, Any]:
    """Write OUT/ranks.json, with `others` among the orders, whole or not at all; what it says."""
    orders = {**pair_orders(material, out), **beside_orders(material, out), **(others or {})}
    found = ranks_of(material, orders)
    part = out / f"{RANKS}.part"
    part.write_text(json.dumps(found, indent=1))
    part.replace(out / RANKS)
    return found


def table_of(found: Mapping[str, Any], split: str = "test") -> str:
    """`hit` at 1, 2 and 4 as a table in Markdown, a row a set."""
    sets = found.get(split, {})
    names = list(dict.fromkeys(name for each in sets.values() for name in each))
    lines = [f"| {split}: hit at 1, 2, 4 | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for dataset, each in sets.items():
        cells = [" / ".join(f"{each[name][f'hit@{depth}']:.1f}" for depth in DEPTHS) for name in names]
        count = next(iter(each.values()))["n"]
        lines.append(f"| {dataset} ({count}) | {' | '.join(cells)} |")
    return "\n".join(lines)
