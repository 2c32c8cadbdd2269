"""The judging stage of `policy_gpu`: F1 over tokens of every policy and every simple method, read in large batches.

Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.evaluation.policy_judge import choose, gap_closed, judge, paired
from models.retriever.network import PolicyNetwork
from models.retriever.selecting import Chosen
from models.retriever.storage import load_policy
from pipeline.tasks.material import Material
from rl.episodes import Readings, Request

BUDGETS = (32, 48, 64, 96, 128, 192, 256)
BIASES = (-6.0, -3.0, -1.5, 0.0, 1.5)
SIMPLE = ("random", "bm25", "dense", "hybrid")
LEARNING = ("reinforce", "plain_ppo")
READ_TOGETHER = 8_192
Say = Callable[[str], None]


def evaluate(
    material: Material, readings: Readings, policies: Path, *, device: str, say: Say,
    budgets: Sequence[int] = BUDGETS, biases: Sequence[float] = BIASES, most: int = 0, out: Path | None = None,
    limit_s: float = math.inf,
) -> dict[str, Any] | None:  # fmt: skip
    """Curves of F1 over tokens on the test questions of every set, for the simple methods and every policy.

    Everything is chosen first and read together, in large batches; `out` keeps the readings. None if `limit_s` was
    over before all was read: call again with those readings.
    """
    began = time.monotonic()
    networks = {
        folder.parent.name: load_policy(folder, device)[0] for folder in sorted(policies.glob("*/carried"))
    }
    points: list[_Point] = []
    for dataset in sorted({question.dataset for question in material.questions}):
        rows = material.rows("test", dataset, answerable=True)[: most or None]
        if len(rows):
            points += _points(dataset, material.take(rows), rows, networks, budgets, biases, device)
    wanted = list(dict.fromkeys(request for point in points for request in point.requests()))
    missing = [each for each in wanted if not readings.knows(*each)]
    say(f"{len(points)} points, {len(wanted):,} distinct readings, {len(missing):,} to be done")
    for at in range(0, len(missing), READ_TOGETHER):
        if time.monotonic() - began > limit_s:
            say(f"{len(missing) - at:,} readings left: start again with --readings {out}")
            return None
        readings.read(missing[at : at + READ_TOGETHER])
        if out is not None:
            readings.save(out / "readings-judged.npz")
    found: dict[str, Any] = {"sets": {}, "summary": {}}
    for dataset in dict.fromkeys(point.dataset for point in points):
        curves: list[dict[str, Any]] = []
        each_f1: dict[tuple[str, int, float], np.ndarray[Any, Any]] = {}
        for point in points:
            if point.dataset == dataset:
                figures, scores = judge(point.part, point.rows, point.chosen, readings)
                curves.append(point.about() | figures)
                each_f1[point.name, point.budget, point.stop_bias] = scores
        found["sets"][dataset] = curves
        found["summary"] |= summary(dataset, curves, each_f1)
        say(f"{dataset}: {json.dumps({k: v for k, v in found['summary'].items() if k.endswith(dataset)})}")
    ratios = [v for k, v in found["summary"].items() if k.startswith("tokens_ratio_") and v]
    gains = [v["gain"] for k, v in found["summary"].items() if k.startswith("rl_over_supervised_") and v]
    found["summary"]["tokens_ratio_at_equal_f1"] = round(float(np.mean(ratios)), 3) if ratios else None
    found["summary"]["rl_over_supervised_f1"] = round(float(np.mean(gains)), 3) if gains else None
    return found


@dataclass(frozen=True, slots=True)
class _Point:
    """One method at one budget: what it chose for every test question of a set."""

    dataset: str
    name: str
    method: str
    budget: int
    stop_bias: float
    part: Material
    rows: np.ndarray[Any, Any]
    chosen: Sequence[Chosen]

    def requests(self) -> list[Request]:
        return [(int(row), tuple(choice.picks)) for row, choice in zip(self.rows, self.chosen, strict=True)]

    def about(self) -> dict[str, Any]:
        return {
            "name": self.name, "method": self.method, "budget": self.budget, "stop_bias": self.stop_bias,
        }  # fmt: skip


def _points(
    dataset: str, part: Material, rows: np.ndarray[Any, Any], networks: dict[str, PolicyNetwork],
    budgets: Sequence[int], biases: Sequence[float], device: str,
) -> list[_Point]:  # fmt: skip
    """All that is compared on one set: simple methods and policies at every budget, and the oracle."""
    told: list[tuple[str, str, int, float]] = [("oracle", "oracle", max(budgets), 0.0)]
    for budget in budgets:
        told += [(method, method, budget, 0.0) for method in SIMPLE]
        for name in networks:
            routed = name.startswith("router")
            told += [
                (name, "router" if routed else "policy", budget, bias)
                for bias in ((0.0,) if routed else biases)
            ]
    return [
        _Point(
            dataset, name, method, budget, bias, part, rows,
            choose(part, method, budget, network=networks.get(name), stop_bias=bias, device=device),
        )
        for name, method, budget, bias in told
    ]  # fmt: skip


def summary(
    dataset: str, curves: Sequence[dict[str, Any]], each: dict[tuple[str, int, float], Any]
) -> dict[str, Any]:
    """The named figures of a set: the best simple point, the RL policies at no more tokens, the gap closed."""
    simple = max((p for p in curves if p["name"] in SIMPLE), key=lambda p: p["forced_f1"])
    oracle = next(p for p in curves if p["name"] == "oracle")
    out: dict[str, Any] = {
        f"best_simple_f1_{dataset}": simple["forced_f1"],
        f"best_simple_tokens_{dataset}": simple["tokens"],
        f"best_simple_{dataset}": simple["name"],
        f"oracle_f1_{dataset}": oracle["forced_f1"],
    }
    best: dict[str, list[dict[str, Any]]] = {}
    for name in sorted({p["name"] for p in curves} - {*SIMPLE, "oracle"}):
        within = [p for p in curves if p["name"] == name and p["tokens"] <= simple["tokens"]]
        if within:
            best.setdefault(name.rsplit("-", 1)[0], []).append(max(within, key=lambda p: p["forced_f1"]))
    for algorithm, points in best.items():
        f1 = float(np.mean([p["forced_f1"] for p in points]))
        out[f"{algorithm}_f1_{dataset}"] = round(f1, 2)
        out[f"{algorithm}_f1_seeds_{dataset}"] = [p["forced_f1"] for p in points]
        out[f"{algorithm}_gap_closed_{dataset}"] = gap_closed(f1, simple["forced_f1"], oracle["forced_f1"])
    learned = {name: points for name, points in best.items() if name in LEARNING}
    if learned:
        name = max(learned, key=lambda key: float(np.mean([p["forced_f1"] for p in learned[key]])))
        points = learned[name]
        out[f"policy_f1_{dataset}"] = out[f"{name}_f1_{dataset}"]
        out[f"policy_tokens_{dataset}"] = round(float(np.mean([p["tokens"] for p in points])), 1)
        out[f"gap_closed_{dataset}"] = out[f"{name}_gap_closed_{dataset}"]
        equal = [
            p["tokens"] for p in curves
            if p["name"].startswith(f"{name}-") and p["forced_f1"] >= simple["forced_f1"]
        ]  # fmt: skip
        out[f"tokens_ratio_{dataset}"] = round(simple["tokens"] / min(equal), 3) if equal else None
        if taught := best.get("supervised"):
            ours, theirs = (
                np.mean([each[p["name"], p["budget"], p["stop_bias"]] for p in group], axis=0)
                for group in (points, taught)
            )
            out[f"rl_over_supervised_{dataset}"] = paired(ours, theirs)
    return out
