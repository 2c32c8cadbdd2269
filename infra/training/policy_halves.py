"""What a policy run says where its points are chosen on questions that the reader was not trained on.

The reader was trained on most dev questions, so dev questions favour points that it is sure of by heart. Beside
them, three other ways to choose budget, bias of STOP, trust, algorithm and reading, told apart by name:

* `others`: on the test questions of all other sets together (needs the curves alone);
* `halves`: on one half of a set's test questions, told on the other, both ways (needs F1 question by question);
* `same`: on the very questions that are told, as the best simple method is chosen (a favour, not a finding).

The best simple method stays the one that the page names. Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.evaluation.policy_judge import gap_closed, paired
from infra.training.policy_evaluation import (
    LEARNED,
    READINGS,
    Curve,
    Curves,
    Each,
    Scores,
    at_no_more_tokens,
    best_simple,
    key_of,
    others_dev,
)
from infra.training.policy_points import SIMPLE, kind_of

KINDS = (
    *(f"{kind}{reading}" for reading in READINGS for kind in ("supervised", *LEARNED)), "reinforce_hops", "shipped"
)  # fmt: skip
"""What is chosen among; only rewarded ones stand for "the policy"."""
LEAST_BUDGET = 128
WAYS = ("dev", "others", "halves", "same")
Told = dict[str, Any]


def half_of(question_ids: Iterable[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which half each question falls to, by a hash of its id: the same on every machine."""
    digests = (hashlib.blake2b(each.encode(), digest_size=2).digest() for each in question_ids)
    return np.array([bool(digest[0] & 1) for digest in digests], bool)


def by_others(curves: Curves, dataset: str) -> Told:
    """Each kind of policy at the points that the test questions of all other sets choose; `policy` names one."""
    return _chosen(curves, dataset, others_dev(curves, dataset, "test"))


def by_the_same(curves: Curves, dataset: str) -> Told:
    """Each kind at the points that are best on the very questions that are told."""
    return _chosen(curves, dataset, curves.of(dataset, "test"))


def by_dev(curves: Curves, dataset: str) -> Told:
    """Each kind at the points that dev questions choose, as the page's own figures are."""
    return _chosen(curves, dataset, curves.of(dataset, "dev") or others_dev(curves, dataset))


def _chosen(curves: Curves, dataset: str, guide: Curve) -> Told:
    test = [p for p in curves.of(dataset, "test") if p["forced_f1"] is not None]
    if not test or not guide:
        return {}
    simple, oracle = _bounds(test)
    if not any(key_of(p) == key_of(simple) for p in guide):
        return {}
    found: Told = {}
    for kind, names in _names(test).items():
        points = [_point(name, guide, test, simple) for name in names]
        if any(p is None for p in points):
            continue
        told = [p for p in points if p is not None]
        found[kind] = _figures(
            [p["forced_f1"] for p in told], [p["tokens"] for p in told], simple, oracle,
            guide=float(np.mean([_same(guide, p)["forced_f1"] for p in told])),
        )  # fmt: skip
    return _named(found)


def by_halves(dataset: str, test: Curve, each: Scores, second: np.ndarray[Any, Any]) -> Told:
    """Each kind with its points chosen on one half and told on the other, both ways, every question told once.

    Tokens are means over all questions (they do not look at answers). `over_simple` is against the best simple
    method of all questions; `simple` is what the simple methods give when they too are chosen by halves.
    """
    read = [p for p in test if p["forced_f1"] is not None]
    if not read or second.all() or not second.any():
        return {}
    simple, oracle = _bounds(read)
    sides = [(_half(read, each, here), _half(read, each, ~here), ~here) for here in (second, ~second)]
    found: Told = {}
    scores: dict[str, list[tuple[float, Each, float]]] = {}
    for kind, names in _names(read).items():
        for guide, other, told in sides:
            points = [_point(name, guide, other, simple) for name in names]
            if any(p is None for p in points):
                scores.pop(kind, None)
                break
            known = [p for p in points if p is not None]
            mean = np.mean([each[key_of(p)][told] for p in known], axis=0)
            guided = float(np.mean([_same(guide, p)["forced_f1"] for p in known]))
            tokens = float(np.mean([p["tokens"] for p in known]))
            scores.setdefault(kind, []).append((guided, mean, tokens))
    for kind, both in scores.items():
        found[kind] = _joined([(mean, tokens) for _, mean, tokens in both], sides, simple, oracle, each)
    learned = [kind for kind in scores if kind.startswith(LEARNED) and "_without_pair" not in kind]
    if learned:
        # the algorithm and the reading are chosen on the guiding half, too
        picked = [max(learned, key=lambda kind: scores[kind][at][0]) for at in (0, 1)]
        best = [scores[kind][at][1:] for at, kind in enumerate(picked)]
        found["policy"] = _joined(best, sides, simple, oracle, each) | {"kind": " / ".join(picked)}
    own = [best_simple(guide) for guide, _, _ in sides]
    theirs = [(each[key_of(p)][told], p["tokens"]) for p, (_, _, told) in zip(own, sides, strict=True)]
    found["simple"] = _joined(theirs, sides, simple, oracle, each)
    return found


def _joined(
    both: Sequence[tuple[Each, float]], sides: Sequence[tuple[Any, Any, Each]], simple: Mapping[str, Any],
    oracle: Mapping[str, Any], each: Scores,
) -> Told:  # fmt: skip
    """Figures over all questions of what was told on each half."""
    whole = np.zeros(len(sides[0][2]))
    for (mean, _), (_, _, told) in zip(both, sides, strict=True):
        whole[told] = mean
    shares = [float(told.mean()) for _, _, told in sides]
    tokens = sum(share * count for share, (_, count) in zip(shares, both, strict=True))
    made = _figures([100 * float(whole.mean())], [tokens], simple, oracle)
    return made | {"over_simple": paired(whole, each[key_of(simple)])}


def _figures(
    f1: Sequence[float], tokens: Sequence[float], simple: Mapping[str, Any], oracle: Mapping[str, Any],
    guide: float | None = None,
) -> Told:  # fmt: skip
    mean = float(np.mean(f1))
    made: Told = {
        "f1": round(mean, 2),
        "tokens": round(float(np.mean(tokens)), 1),
        "gap_closed": gap_closed(mean, simple["forced_f1"], oracle["forced_f1"]),
    }
    return made if guide is None else made | {"guide_f1": round(guide, 2)}


def _named(found: Told) -> Told:
    learned = [kind for kind in found if kind.startswith(LEARNED)]
    if learned:
        best = max(learned, key=lambda kind: float(found[kind]["guide_f1"]))
        found["policy"] = found[best] | {"kind": best}
    return found


def _names(test: Curve) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in sorted({p["name"] for p in test}):
        if kind_of(name) in KINDS:
            names.setdefault(kind_of(name), []).append(name)
    return names


def _bounds(test: Curve) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return best_simple(test), next(p for p in test if p["name"] == "oracle")


def _half(points: Curve, each: Scores, here: Each) -> list[dict[str, Any]]:
    return [{**p, "forced_f1": 100 * float(each[key_of(p)][here].mean())} for p in points]


def _point(name: str, guide: Curve, told: Curve, simple: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """As `at_no_more_tokens`, passing over points that were not read where they would be told."""
    names = (name, simple["name"])
    told = [p for p in told if p["name"] in names]
    known = {key_of(p) for p in told}
    guide = [p for p in guide if p["name"] in names and key_of(p) in known]
    return at_no_more_tokens(name, guide, told, simple)


def _same(curve: Curve, like: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(p for p in curve if key_of(p) == key_of(like))


def agreement(curves: Curves, dataset: str) -> Told:
    """How far dev questions tell about test ones: rank correlation over points of policies, and F1 of both.

    Of those points among which a choice is made in earnest: no more tokens than the best simple method, and a
    budget of at least `LEAST_BUDGET`.
    """
    dev = {key_of(p): p["forced_f1"] for p in curves.of(dataset, "dev")}
    read = [p for p in curves.of(dataset, "test") if p["forced_f1"] is not None]
    if not read or not dev:
        return {}
    most = best_simple(read)["tokens"]
    pairs = [
        (dev[key_of(p)], p["forced_f1"])
        for p in read
        if kind_of(p["name"]) in KINDS and dev.get(key_of(p)) is not None
        if p["tokens"] <= most and p["budget"] >= LEAST_BUDGET
    ]
    simple = [
        (dev[key_of(p)], p["forced_f1"])
        for p in curves.of(dataset, "test")
        if p["name"] in SIMPLE and p["name"] != "random" and key_of(p) in dev
    ]
    if len(pairs) < 3 or not simple:
        return {}
    ranks = [np.argsort(np.argsort(column)) for column in zip(*pairs, strict=True)]
    return {
        "points": len(pairs),
        "rank_correlation": round(float(np.asarray(np.corrcoef(ranks))[0, 1]), 3),
        "policies_dev_less_test": round(float(np.mean([a - b for a, b in pairs])), 2),
        "simple_dev_less_test": round(float(np.mean([a - b for a, b in simple])), 2),
    }


def ways(curves: Curves, halves: Mapping[str, Each] | None = None) -> Told:
    """All ways to choose, of each set; `halves` (which half each test question falls to) where F1 is known."""
    found: Told = {}
    for dataset in curves.sets:
        told = {
            "dev": by_dev(curves, dataset), "others": by_others(curves, dataset),
            "same": by_the_same(curves, dataset), "agreement": agreement(curves, dataset),
        }  # fmt: skip
        each = curves.scores.get(("test", dataset))
        if halves and each and dataset in halves:
            told["halves"] = by_halves(dataset, curves.of(dataset, "test"), each, halves[dataset])
        found[dataset] = told
    return found


_KEPT = {"test": "f1", "dev": "dev"}
"""How arrays of F1 are named by split."""


def save_scores(curves: Curves, halves: Mapping[str, Each], path: Path) -> None:
    """F1 question by question of every point that was read, on test and on dev questions, and the halves (npz)."""
    arrays: dict[str, Any] = {f"half_{name}": half for name, half in halves.items()}
    for (split, dataset), scores in curves.scores.items():
        arrays[f"{_KEPT[split]}_{dataset}"] = np.array(list(scores.values()), np.float16)
    np.savez_compressed(path, **arrays)


def load_scores(curves: Curves, path: Path) -> dict[str, Each]:
    """Put what `save_scores` kept back beside the curves (points that were read, in their order); the halves.

    Files of runs before 2026-12-01 have none of dev questions.
    """
    with np.load(path) as packed:
        places = [(split, dataset) for dataset in curves.sets for split in _KEPT]
        for split, dataset in places:
            if split == "dev" and f"{_KEPT[split]}_{dataset}" not in packed.files:
                continue
            read = [p for p in curves.of(dataset, split) if p["forced_f1"] is not None]
            rows = packed[f"{_KEPT[split]}_{dataset}"].astype(np.float64)
            if len(rows) != len({key_of(p) for p in read}):
                raise ValueError(
                    f"{path}: given {len(rows)} points of {dataset}; the evaluation has {len(read)} that were "
                    "read; take both files of one run"
                )
            keys = dict.fromkeys(key_of(p) for p in read)
            curves.scores[split, dataset] = dict(zip(keys, rows, strict=True))
        return {name: packed[f"half_{name}"] for name in curves.sets}


def table(found: Mapping[str, Told], folds: bool = False) -> list[str]:
    """The table of a page: F1 (tokens), gap closed, of each kind by each way to choose.

    `folds`: dev questions were read by readers that do not know them.
    """
    knew = (
        "no test question; dev questions were read by readers that do not know them"
        if folds
        else "most dev questions, on no test question"
    )
    shown = [way for way in WAYS if any(told.get(way) for told in found.values())]
    titles = {
        "dev": "dev questions", "others": "the other sets' test questions", "halves": "the other half",
        "same": "the same questions",
    }  # fmt: skip
    lines = [
        "",
        "Chosen otherwise: F1 (tokens), gap closed, where budget, bias and trust of each seed are chosen on the",
        "questions that the column names; `policy`: algorithm and reading too. The judged reader was trained on",
        f"{knew}; the best simple method is chosen on the same questions.",
        "",
        "| set | method | " + " | ".join(titles[way] for way in shown) + " |",
        "| --- | --- |" + " --- |" * len(shown),
    ]
    for dataset, told in found.items():
        for kind in (*KINDS, "policy", "simple"):
            cells = [_cell(told.get(way, {}).get(kind)) for way in shown]
            if any(cells):
                lines.append(f"| {dataset} | {kind} | " + " | ".join(cells) + " |")
    lines += [
        "", f"How far dev questions tell (points of policies read on both, budgets from {LEAST_BUDGET} on, no more",
        "tokens than the best simple method):", "",
        "| set | points | rank correlation | policies' F1, dev less test | simple methods' |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for dataset, told in found.items():
        if agreed := told.get("agreement"):
            lines.append(f"| {dataset} | " + " | ".join(str(value) for value in agreed.values()) + " |")
    return lines


def _cell(told: Told | None) -> str:
    if not told:
        return ""
    name = f"{told['kind']}: " if "kind" in told else ""
    return f"{name}{told['f1']} ({told['tokens']:.0f}), {told['gap_closed']}"
