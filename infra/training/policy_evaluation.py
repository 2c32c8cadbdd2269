"""A policy run judged: curves of every method, the points that dev questions choose, and the named figures.

STOP's bias, the budget, the trust at which reading apart ends, and which algorithm and reading stand for "the
policy" are chosen on dev questions alone; test questions are only looked at through what was chosen there, so only
those test points of a policy need to be read (`wanted_on_test`). The best simple method is chosen on the test
questions themselves, which favours it. Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra.evaluation.choice_recall import recall
from infra.evaluation.policy_judge import gap_closed, judge, paired
from infra.training.policy_points import (
    APART,
    SIMPLE,
    ApartTable,
    Judged,
    Point,
    is_policy,
    kind_of,
    rows_of,
)
from models.retriever.trust import most_trusted
from pipeline.tasks.material import Material
from rl.episodes import Readings

READ_TOGETHER = 2_048
STAGED = "_staged"
STAGED_TRUSTS = (0.6, 0.75, 0.85, 0.95)
WITHIN = 0.98
"""A point may read at most this share of the best simple method's tokens on dev questions."""
SHOWN_BIAS = -4.0
LEARNED = ("reinforce", "plain_ppo", "reinforce_rewarded", "plain_ppo_rewarded")
"""What may stand for "the policy"; `_rewarded` sees pair readers that reward trained too."""
READINGS = ("", APART, STAGED)
Curve = Sequence[Mapping[str, Any]]
Key = tuple[str, int, float, float]
Each = np.ndarray[Any, Any]
"""F1 question by question."""
Scores = Mapping[Key, Each]


@dataclass(slots=True)
class Curves:
    """Points of a run: by set and split, and F1 question by question of those that were read."""

    sets: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    scores: dict[tuple[str, str], dict[Key, Each]] = field(default_factory=dict)

    def add(self, dataset: str, split: str, figures: dict[str, Any], each: Each | None) -> None:
        """Keep a point; without `each` it was not read, and its F1 is None."""
        self.sets.setdefault(dataset, {}).setdefault(split, []).append(
            figures if each is not None else {**figures, "forced_f1": None}
        )
        if each is not None:
            self.scores.setdefault((split, dataset), {})[key_of(figures)] = each

    def of(self, dataset: str, split: str) -> list[dict[str, Any]]:
        """The points of a split of a set."""
        return self.sets.get(dataset, {}).get(split, [])


def key_of(point: Mapping[str, Any]) -> Key:
    """What distinguishes a point on a set."""
    return point["name"], point["budget"], point["stop_bias"], point.get("trust", 1.0)


def curves_of(
    points: Sequence[Point], judged: Sequence[Judged], material: Material, readings: Readings,
    apart: ApartTable | None, most: int = 0,
) -> Curves:  # fmt: skip
    """All points with the figures of those that were read, and the staged ones that follow from them."""
    found = Curves()
    parts: dict[tuple[str, str], tuple[np.ndarray[Any, Any], Material, ApartTable | None]] = {}
    for point in points:
        place = (point.split, point.dataset)
        if place not in parts:
            rows = rows_of(material, *place, most)
            parts[place] = rows, material.take(rows), apart.take(rows) if apart else None
        rows, part, here = parts[place]
        about = {"name": point.name, "budget": point.budget, "stop_bias": point.stop_bias}
        known = all(
            readings.knows(int(row), choice.picks) for row, choice in zip(rows, point.chosen, strict=True)
        )
        each = None
        if known:
            figures, each = judge(part, rows, point.chosen, readings)
        else:
            figures = recall(part.tables, point.chosen)
        found.add(point.dataset, point.split, about | figures, each)
        if here is not None and is_policy(point.name) and not point.name.startswith("router"):
            for told, own in staged(point, figures, each, part, here):
                found.add(point.dataset, point.split, told, own)
    for one in judged:
        found.add(one.dataset, one.split, {"name": one.name} | one.figures, one.each)
    return found


def staged(
    point: Point, figures: Mapping[str, Any], each: Each | None, part: Material, here: ApartTable
) -> list[tuple[dict[str, Any], Each | None]]:
    """The first choice read alone, and all together only where that answer is not trusted enough.

    Tokens are those of both readings where there are two, the second prompt's included. A first choice that was not
    read alone (it may not be chosen apart) is read together at once.
    """
    logits = here.logits["verified" if "verified" in here.logits else "plain"]
    first = np.array([choice.picks[0] if choice.picks else -1 for choice in point.chosen])
    rows = np.arange(len(first))
    known = (first >= 0) & here.singles.read[rows, first] & here.allowed[rows, first]
    trust = np.array(
        [
            most_trusted([float(logits[row, pick])], [0])[0].trust if known[row] else 0.0
            for row, pick in enumerate(first)
        ]
    )
    tables = part.tables
    alone = tables.tokens[rows, first] + tables.heads[rows, first]
    whole = np.array([choice.tokens for choice in point.chosen])
    kind, _, seed = point.name.rpartition("-")
    found: list[tuple[dict[str, Any], Each | None]] = []
    for enough in STAGED_TRUSTS:
        sure = known & (trust >= enough)
        again = np.where(known & (whole > alone), here.prompts + whole, 0)
        tokens = np.where(sure, alone, np.where(known, alone + again, whole))
        own = None
        if each is not None:
            own = np.where(sure, np.nan_to_num(here.singles.f1[rows, first]), each).astype(np.float32)
        made = dict(figures) | {
            "name": f"{kind}{STAGED}-{seed}", "budget": point.budget, "stop_bias": point.stop_bias,
            "trust": enough, "tokens": round(float(tokens.mean()), 1), "alone": round(float(sure.mean()), 4),
            "forced_f1": None if own is None else round(100 * float(own.mean()), 2),
        }  # fmt: skip
        found.append((made, own))
    return found


def wanted_on_test(points: Sequence[Point], curves: Curves) -> list[Point]:
    """The test points of policies that are told of: those that dev questions choose, own STOP, a shown curve."""
    found = []
    for dataset in curves.sets:
        dev, test = curves.of(dataset, "dev") or others_dev(curves, dataset), curves.of(dataset, "test")
        if not dev or not test:
            continue
        simple = best_simple(test)
        named: set[tuple[str, int, float]] = set()
        for name in {p["name"] for p in test if is_policy(p["name"]) and APART not in p["name"]}:
            base = name.replace(STAGED, "")
            for choose in (at_no_more_tokens, at_equal_f1):
                if (chosen := choose(name, dev, test, simple)) is not None:
                    named.add((base, chosen["budget"], chosen["stop_bias"]))
        largest = max(p["budget"] for p in test if APART not in p["name"])
        for point in points:
            if point.split != "test" or point.dataset != dataset or not is_policy(point.name):
                continue
            shown = point.stop_bias == SHOWN_BIAS or point.name.startswith("router")
            own = point.budget == largest and point.stop_bias == 0.0
            if shown or own or (point.name, point.budget, point.stop_bias) in named:
                found.append(point)
    return found


def report(curves: Curves) -> dict[str, Any]:
    """Curves of every method on dev and test questions, and the named figures."""
    summary: dict[str, Any] = {}
    for dataset in curves.sets:
        # a set that is never trained on has no dev questions: its points are chosen on the others' together
        dev = curves.of(dataset, "dev") or others_dev(curves, dataset)
        each = curves.scores.get(("test", dataset), {})
        summary |= summarise(dataset, dev, curves.of(dataset, "test"), each)
    ratios = [v for k, v in summary.items() if k.startswith("tokens_ratio_at_equal_f1_") and v]
    gains = [v["gain"] for k, v in summary.items() if k.startswith("rl_over_supervised_") and v]
    summary["tokens_ratio_at_equal_f1"] = round(float(np.mean(ratios)), 3) if ratios else None
    summary["rl_over_supervised_f1"] = round(float(np.mean(gains)), 3) if gains else None
    return {"sets": curves.sets, "summary": summary}


def others_dev(curves: Curves, dataset: str, split: str = "dev") -> list[dict[str, Any]]:
    """The dev (or test) curve of all other sets together: the mean of each point that all of them have."""
    gathered: dict[Key, list[Mapping[str, Any]]] = {}
    others = [name for name in curves.sets if name != dataset and curves.of(name, split)]
    for name in others:
        for point in curves.of(name, split):
            if point["forced_f1"] is not None:
                gathered.setdefault(key_of(point), []).append(point)
    return [
        {
            "name": key[0], "budget": key[1], "stop_bias": key[2], "trust": key[3],
            "forced_f1": float(np.mean([p["forced_f1"] for p in found])),
            "tokens": float(np.mean([p["tokens"] for p in found])),
        }
        for key, found in gathered.items()
        if len(found) == len(others)
    ]  # fmt: skip


def best_simple(test: Curve, names: Sequence[str] = SIMPLE) -> Mapping[str, Any]:
    """The best point of the simple methods on these questions."""
    known = [p for p in test if p["name"] in names and p["forced_f1"] is not None]
    return max(known, key=lambda p: p["forced_f1"])


def summarise(dataset: str, dev: Curve, test: Curve, each: Scores) -> dict[str, Any]:
    """The named figures of a set.

    `<kind>_...` are means over the seeds of a kind of policy, at the point that dev questions chose for each seed.
    """
    if not test or not dev:
        return {}
    simple = best_simple(test)
    anyhow = best_simple(test, [*SIMPLE, *(f"{name}{APART}" for name in SIMPLE)])
    oracle = next(p for p in test if p["name"] == "oracle")
    out: dict[str, Any] = {
        f"best_simple_f1_{dataset}": simple["forced_f1"],
        f"best_simple_tokens_{dataset}": simple["tokens"],
        f"best_simple_{dataset}": f"{simple['name']} at {simple['budget']}",
        f"best_simple_any_reading_{dataset}": f"{anyhow['name']} at {anyhow['budget']}: {anyhow['forced_f1']} "
        f"({anyhow['tokens']})",
        f"oracle_f1_{dataset}": oracle["forced_f1"],
        f"oracle_tokens_{dataset}": oracle["tokens"],
    }
    theirs = each[key_of(simple)]
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    equal: dict[str, list[Mapping[str, Any]]] = {}
    for name in sorted({p["name"] for p in test} - {*SIMPLE, "oracle"}):
        if found := at_no_more_tokens(name, dev, test, simple):
            kinds.setdefault(kind_of(name), []).append(found)
        if found := at_equal_f1(name, dev, test, simple):
            equal.setdefault(kind_of(name), []).append(found)
    kinds = {kind: points for kind, points in kinds.items() if _all_read(points)}
    equal = {kind: points for kind, points in equal.items() if _all_read(points)}
    means = {kind: _mean_scores(points, each) for kind, points in kinds.items()}
    for kind, points in kinds.items():
        f1 = float(np.mean([p["forced_f1"] for p in points]))
        out[f"{kind}_f1_{dataset}"] = round(f1, 2)
        out[f"{kind}_f1_seeds_{dataset}"] = [p["forced_f1"] for p in points]
        out[f"{kind}_tokens_{dataset}"] = round(float(np.mean([p["tokens"] for p in points])), 1)
        out[f"{kind}_dev_f1_{dataset}"] = round(_dev_f1(points, dev), 2)
        out[f"{kind}_points_{dataset}"] = [_told(p) for p in points]
        out[f"{kind}_gap_closed_{dataset}"] = gap_closed(f1, simple["forced_f1"], oracle["forced_f1"])
        out[f"{kind}_over_simple_{dataset}"] = paired(means[kind], theirs)
    for kind, points in equal.items():
        out[f"{kind}_equal_f1_{dataset}"] = {
            "f1": round(float(np.mean([p["forced_f1"] for p in points])), 2),
            "tokens": round(float(np.mean([p["tokens"] for p in points])), 1),
        }
    out |= own_stops(dataset, test, each, theirs, simple, oracle)
    learned = [f"{kind}{reading}" for kind in LEARNED for reading in READINGS if f"{kind}{reading}" in kinds]
    if learned:
        # which algorithm and reading stand for "the policy" is a choice too: made on dev questions
        kind = max(learned, key=lambda each_kind: _dev_f1(kinds[each_kind], dev))
        out[f"policy_{dataset}"] = kind
        for figure in ("f1", "tokens", "gap_closed"):
            name = figure if figure == "gap_closed" else f"policy_{figure}"
            out[f"{name}_{dataset}"] = out[f"{kind}_{figure}_{dataset}"]
        out[f"gap_closed_any_reading_{dataset}"] = gap_closed(
            out[f"{kind}_f1_{dataset}"], anyhow["forced_f1"], oracle["forced_f1"]
        )
        if (found := out.get(f"{kind}_equal_f1_{dataset}")) and found["f1"] >= simple["forced_f1"]:
            out[f"tokens_ratio_at_equal_f1_{dataset}"] = round(simple["tokens"] / found["tokens"], 3)
        out |= _over_supervised(dataset, kind, kinds, means, dev)
    return out


def own_stops(
    dataset: str, test: Curve, each: Scores, theirs: Each, simple: Mapping[str, Any],
    oracle: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """`own_stop_<kind>_<set>`: policies at their largest budget by their own STOP, nothing chosen on questions."""
    points: dict[str, list[Mapping[str, Any]]] = {}
    for name in sorted({p["name"] for p in test if is_policy(p["name"])}):
        kind = kind_of(name)
        mine = [
            p for p in test
            if p["name"] == name and p["stop_bias"] == 0.0 and p.get("trust", 1.0) == 1.0 and not _hollow(p)
        ]  # fmt: skip
        if mine and kind.split("_")[0] in ("supervised", "reinforce", "plain", "shipped"):
            points.setdefault(kind, []).append(max(mine, key=lambda p: p["budget"]))
    means = {kind: _mean_scores(found, each) for kind, found in points.items()}
    out: dict[str, Any] = {}
    for kind, found in points.items():
        f1, tokens = (float(np.mean([p[name] for p in found])) for name in ("forced_f1", "tokens"))
        blind = "_without_pair" if "_without_pair" in kind else ""
        taught = "supervised" + blind + (APART if kind.endswith(APART) else "")
        out[f"own_stop_{kind}_{dataset}"] = {
            "f1": round(f1, 2),
            "seeds": [p["forced_f1"] for p in found],
            "tokens": round(tokens, 1),
            "gap_closed": gap_closed(f1, simple["forced_f1"], oracle["forced_f1"]),
            "tokens_ratio_to_simple": round(simple["tokens"] / tokens, 2) if tokens else None,
            "over_simple": paired(means[kind], theirs),
            "over_supervised": paired(means[kind], means[taught])
            if kind.startswith(LEARNED) and taught in means
            else None,
        }
    return out


def at_no_more_tokens(
    name: str, dev: Curve, test: Curve, simple: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """A method's test point of the best F1 on dev questions among those that read no more than `simple`.

    Judged by tokens on both splits and by F1 on dev alone; None where every point reads more.
    """
    limit = WITHIN * _at(dev, simple)["tokens"]
    known = [p for p in dev if p["name"] == name and not _hollow(p)]
    for point in sorted(known, key=lambda p: (-p["forced_f1"], p["tokens"])):
        there = _at(test, point)
        if point["tokens"] <= limit and there["tokens"] <= simple["tokens"]:
            return there
    return None


def at_equal_f1(name: str, dev: Curve, test: Curve, simple: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A method's test point of the fewest tokens whose F1 on dev questions reaches that of `simple` there."""
    wanted = _at(dev, simple)["forced_f1"]
    known = [p for p in dev if p["name"] == name and not _hollow(p)]
    points = sorted(known, key=lambda p: (p["tokens"], -p["forced_f1"]))
    return next((_at(test, p) for p in points if p["forced_f1"] >= wanted), None)


def _over_supervised(
    dataset: str, kind: str, kinds: Mapping[str, Any], means: Mapping[str, Any], dev: Curve
) -> dict[str, Any]:
    """Reward over labels: against the supervised policy in the same reading, and in the one that dev chooses."""
    reading = next((each for each in (APART, STAGED) if kind.endswith(each)), "")
    out: dict[str, Any] = {}
    if f"supervised{reading}" in kinds:
        out[f"rl_over_supervised_{dataset}"] = paired(means[kind], means[f"supervised{reading}"])
    known = [f"supervised{each}" for each in READINGS if f"supervised{each}" in kinds]
    if known:
        best = max(known, key=lambda each: _dev_f1(kinds[each], dev))
        out[f"over_best_supervised_{dataset}"] = {"than": best} | paired(means[kind], means[best])
    return out


def _at(curve: Curve, like: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(p for p in curve if key_of(p) == key_of(like))


def _told(point: Mapping[str, Any]) -> str:
    trust = f", trust {point['trust']:g}" if "trust" in point else ""
    return f"budget {point['budget']}, bias {point['stop_bias']:g}{trust}"


def _hollow(point: Mapping[str, Any]) -> bool:
    return point["forced_f1"] is None


def _all_read(points: Sequence[Mapping[str, Any]]) -> bool:
    return not any(map(_hollow, points))


def _mean_scores(points: Sequence[Mapping[str, Any]], each: Scores) -> Each:
    return np.asarray(np.mean([each[key_of(p)] for p in points], axis=0))


def _dev_f1(points: Sequence[Mapping[str, Any]], dev: Curve) -> float:
    return float(np.mean([_at(dev, p)["forced_f1"] for p in points]))
