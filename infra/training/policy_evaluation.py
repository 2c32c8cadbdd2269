"""The judging stages of `policy_gpu`: every method's choices at every budget, read once, then compared.

STOP's bias and the budget of each policy are chosen on dev questions alone; test questions are only looked at
through what was chosen there. The best simple method is chosen on the test questions themselves, which favours it.
Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.evaluation.policy_judge import choose, gap_closed, judge, paired
from models.retriever.selecting import Chosen, fill
from models.retriever.storage import load_policy
from models.retriever.table import ALL_FEATURES
from pipeline.tasks.material import Material
from rl.episodes import Readings, Request

BUDGETS = (32, 64, 96, 128, 192, 256)
BIASES = (-12.0, -4.0, -1.5, 0.0)
SIMPLE = ("random", "bm25", "dense", "hybrid")
READ_TOGETHER = 8_192
SPLITS = ("dev", "test")
WITHIN = 0.98
"""A point may read at most this share of the best simple method's tokens on dev questions."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """One method at one budget on the questions of a split of a set: what it chose for each."""

    name: str
    split: str
    dataset: str
    budget: int
    stop_bias: float
    chosen: tuple[Chosen, ...]

    def key(self) -> tuple[int, float]:
        """What distinguishes the points of a method on a set."""
        return self.budget, self.stop_bias


def rows_of(material: Material, split: str, dataset: str, most: int = 0) -> np.ndarray[Any, Any]:
    """The answerable rows of a split of a set, at most `most` (0: all)."""
    return material.rows(split, dataset, answerable=True)[: most or None]


def datasets(material: Material) -> list[str]:
    """The sets, by name."""
    return sorted({question.dataset for question in material.questions})


def choices_of(
    name: str, material: Material, policies: Path, *, device: str, budgets: Sequence[int] = BUDGETS,
    biases: Sequence[float] = BIASES, most: int = 0,
) -> list[Point]:  # fmt: skip
    """All points of a method: a simple one, `pair` (ranked by the pair reader), `oracle`, or a policy's folder."""
    network = load_policy(policies / name / "carried", device)[0] if _is_policy(name) else None
    routed = name.startswith("router")
    found = []
    for split in SPLITS:
        for dataset in datasets(material):
            rows = rows_of(material, split, dataset, most)
            if not len(rows):
                continue
            part = material.take(rows)
            for budget in (max(budgets),) if name == "oracle" else budgets:
                for bias in biases if network is not None and not routed else (0.0,):
                    if name == "pair":
                        scores = part.tables.features[..., ALL_FEATURES.index("pair")]
                        chosen = fill(part.tables, scores, budget)
                    else:
                        method = name if network is None else "router" if routed else "policy"
                        chosen = choose(part, method, budget, network=network, stop_bias=bias, device=device)
                    found.append(Point(name, split, dataset, budget, bias, tuple(chosen)))
    return found


def names_to_judge(material: Material, policies: Path) -> list[str]:
    """Simple methods, the oracle, the pair reader where it has looked, and every policy that is there."""
    made = [*SIMPLE, "oracle"]
    if material.tables.num_features == len(ALL_FEATURES):
        made.append("pair")
    return [*made, *(folder.parent.name for folder in sorted(policies.glob("*/carried")))]


def save_points(points: Sequence[Point], path: Path) -> None:
    """Write points as JSON, whole or not at all."""
    body = [
        {
            "name": point.name, "split": point.split, "dataset": point.dataset, "budget": point.budget,
            "stop_bias": point.stop_bias, "picks": [each.picks for each in point.chosen],
            "tokens": [each.tokens for each in point.chosen],
        }
        for point in points
    ]  # fmt: skip
    part = path.with_suffix(".part")
    part.write_text(json.dumps(body))
    part.replace(path)


def load_points(folder: Path) -> list[Point]:
    """All points that `save_points` left in a folder."""
    return [
        Point(
            row["name"], row["split"], row["dataset"], row["budget"], row["stop_bias"],
            tuple(Chosen(tuple(p), int(t)) for p, t in zip(row["picks"], row["tokens"], strict=True)),
        )
        for path in sorted(folder.glob("*.points.json"))
        for row in json.loads(path.read_text())
    ]  # fmt: skip


def requests_of(points: Iterable[Point], material: Material, most: int = 0) -> list[Request]:
    """Every distinct reading that the points need."""
    found: dict[Request, None] = {}
    known: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
    for point in points:
        place = (point.split, point.dataset)
        if place not in known:
            known[place] = rows_of(material, *place, most)
        rows = known[place]
        for row, choice in zip(rows, point.chosen, strict=True):
            found[int(row), tuple(sorted(choice.picks))] = None
    return list(found)


def report(points: Sequence[Point], material: Material, readings: Readings, most: int = 0) -> dict[str, Any]:
    """Curves of every method on dev and test questions, and the named figures; everything must have been read."""
    sets: dict[str, dict[str, list[dict[str, Any]]]] = {}
    scores: dict[tuple[str, str, str, int, float], np.ndarray[Any, Any]] = {}
    parts: dict[tuple[str, str], tuple[np.ndarray[Any, Any], Material]] = {}
    for point in points:
        place = (point.split, point.dataset)
        if place not in parts:
            rows = rows_of(material, *place, most)
            parts[place] = rows, material.take(rows)
        rows, part = parts[place]
        figures, each = judge(part, rows, point.chosen, readings)
        curves = sets.setdefault(point.dataset, {}).setdefault(point.split, [])
        curves.append({"name": point.name, "budget": point.budget, "stop_bias": point.stop_bias, **figures})
        scores[point.split, point.dataset, point.name, *point.key()] = each
    summary: dict[str, Any] = {}
    for dataset, curves_of in sets.items():
        each_test = {key[2:]: value for key, value in scores.items() if key[:2] == ("test", dataset)}
        summary |= summarise(dataset, curves_of.get("dev", []), curves_of.get("test", []), each_test)
    ratios = [v for k, v in summary.items() if k.startswith("tokens_ratio_at_equal_f1_") and v]
    gains = [v["gain"] for k, v in summary.items() if k.startswith("rl_over_supervised_") and v]
    summary["tokens_ratio_at_equal_f1"] = round(float(np.mean(ratios)), 3) if ratios else None
    summary["rl_over_supervised_f1"] = round(float(np.mean(gains)), 3) if gains else None
    return {"sets": sets, "summary": summary}


Curve = Sequence[Mapping[str, Any]]
Scores = Mapping[tuple[str, int, float], "np.ndarray[Any, Any]"]


def summarise(dataset: str, dev: Curve, test: Curve, each: Scores) -> dict[str, Any]:
    """The named figures of a set.

    `<kind>_...` are means over the seeds of a kind of policy, at the point that dev questions chose for each seed.
    """
    if not test or not dev:
        return {}
    simple = max((p for p in test if p["name"] in SIMPLE), key=lambda p: p["forced_f1"])
    oracle = next(p for p in test if p["name"] == "oracle")
    out: dict[str, Any] = {
        f"best_simple_f1_{dataset}": simple["forced_f1"],
        f"best_simple_tokens_{dataset}": simple["tokens"],
        f"best_simple_{dataset}": f"{simple['name']} at {simple['budget']}",
        f"oracle_f1_{dataset}": oracle["forced_f1"],
        f"oracle_tokens_{dataset}": oracle["tokens"],
    }
    theirs = each[simple["name"], simple["budget"], simple["stop_bias"]]
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    equal: dict[str, list[Mapping[str, Any]]] = {}
    for name in sorted({p["name"] for p in test} - {*SIMPLE, "oracle"}):
        kind = name.rsplit("-", 1)[0] if _is_policy(name) else name
        if found := at_no_more_tokens(name, dev, test, simple):
            kinds.setdefault(kind, []).append(found)
        if found := at_equal_f1(name, dev, test, simple):
            equal.setdefault(kind, []).append(found)
    means = {kind: _mean_scores(points, each) for kind, points in kinds.items()}
    for kind, points in kinds.items():
        f1 = float(np.mean([p["forced_f1"] for p in points]))
        out[f"{kind}_f1_{dataset}"] = round(f1, 2)
        out[f"{kind}_f1_seeds_{dataset}"] = [p["forced_f1"] for p in points]
        out[f"{kind}_tokens_{dataset}"] = round(float(np.mean([p["tokens"] for p in points])), 1)
        out[f"{kind}_points_{dataset}"] = [f"budget {p['budget']}, bias {p['stop_bias']:g}" for p in points]
        out[f"{kind}_gap_closed_{dataset}"] = gap_closed(f1, simple["forced_f1"], oracle["forced_f1"])
        out[f"{kind}_over_simple_{dataset}"] = paired(means[kind], theirs)
    for kind, points in equal.items():
        out[f"{kind}_equal_f1_{dataset}"] = {
            "f1": round(float(np.mean([p["forced_f1"] for p in points])), 2),
            "tokens": round(float(np.mean([p["tokens"] for p in points])), 1),
        }
    learned = [kind for kind in ("reinforce", "plain_ppo") if kind in kinds]
    if learned:
        # which algorithm stands for "the policy" is a choice too: made on dev questions
        kind = max(learned, key=lambda each_kind: _dev_f1(kinds[each_kind], dev))
        out[f"policy_{dataset}"] = kind
        for figure in ("f1", "tokens", "gap_closed"):
            name = figure if figure == "gap_closed" else f"policy_{figure}"
            out[f"{name}_{dataset}"] = out[f"{kind}_{figure}_{dataset}"]
        if (found := out.get(f"{kind}_equal_f1_{dataset}")) and found["f1"] >= simple["forced_f1"]:
            out[f"tokens_ratio_at_equal_f1_{dataset}"] = round(simple["tokens"] / found["tokens"], 3)
        if "supervised" in kinds:
            out[f"rl_over_supervised_{dataset}"] = paired(means[kind], means["supervised"])
    return out


def at_no_more_tokens(
    name: str, dev: Curve, test: Curve, simple: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """A method's test point of the best F1 on dev questions among those that read no more than `simple`.

    Judged by tokens on both splits and by F1 on dev alone; None where every point reads more.
    """
    limit = WITHIN * _at(dev, simple["name"], simple)["tokens"]
    points = sorted((p for p in dev if p["name"] == name), key=lambda p: (-p["forced_f1"], p["tokens"]))
    for point in points:
        there = _at(test, name, point)
        if point["tokens"] <= limit and there["tokens"] <= simple["tokens"]:
            return there
    return None


def at_equal_f1(name: str, dev: Curve, test: Curve, simple: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A method's test point of the fewest tokens whose F1 on dev questions reaches that of `simple` there."""
    wanted = _at(dev, simple["name"], simple)["forced_f1"]
    points = sorted((p for p in dev if p["name"] == name), key=lambda p: (p["tokens"], -p["forced_f1"]))
    return next((_at(test, name, p) for p in points if p["forced_f1"] >= wanted), None)


def _at(curve: Curve, name: str, like: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(
        p for p in curve
        if p["name"] == name and (p["budget"], p["stop_bias"]) == (like["budget"], like["stop_bias"])
    )  # fmt: skip


def _mean_scores(points: Sequence[Mapping[str, Any]], each: Scores) -> np.ndarray[Any, Any]:
    found = [each[p["name"], p["budget"], p["stop_bias"]] for p in points]
    return np.asarray(np.mean(found, axis=0))


def _dev_f1(points: Sequence[Mapping[str, Any]], dev: Curve) -> float:
    return float(np.mean([_at(dev, p["name"], p)["forced_f1"] for p in points]))


def _is_policy(name: str) -> bool:
    return "-" in name
