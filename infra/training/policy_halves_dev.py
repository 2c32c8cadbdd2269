"""What a run says whose test points were never read: dev questions by halves, and the orders on test questions.

    python -m infra.training.policy_halves_dev_page --judged home/judged --carried build/carry/whole \\
        --folds home/folds --home home --preface PREFACE --commit HASH --out infra/bench/results/NAME

The stage `read` begins with dev questions and the simple methods; a run that is ended behind that has every point
of every policy on dev questions, and every order of a pair reader on test ones. Points of a policy (budget, STOP's
bias) are chosen on a half of a set's dev questions and told on the other, both ways, over DRAWS splits, as
`policy_halves` does on test questions. Readings are known by their row; which question stands in which row follows
from how material is made, so neither it nor a reader is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.training.policy_evaluation import LEARNED, WITHIN, Each
from infra.training.policy_over import LABELLED, gains
from infra.training.policy_points import SIMPLE, Point, is_policy
from models.retriever.selecting import Chosen
from pipeline.tasks.qa import assign_splits, read_passages, read_questions
from rl.episodes import mask_of

DRAWS = 40
"""Splits of the dev questions over which what is told is averaged."""
KINDS = ("supervised", "supervised_longer", "supervised_rewarded", *LEARNED)
Places = Mapping[tuple[str, str], Sequence[int]]
"""Rows of each (split, set), ascending."""
Key = tuple[str, str, int, float]
"""(name, set, budget, bias) of a point on one split."""


def places_of(
    carried: Path, who: Mapping[str, Mapping[str, Mapping[str, int]]]
) -> dict[tuple[str, str], list[int]]:
    """The rows of each split and set, as `policy_material.make` lays them out.

    Questions of the passages by hash, then each pool's, then newswire's worlds: training, dev, test. ValueError
    where the numbers are not those that `who_reads.json` counts (one was left out, or other data was carried).
    """
    from infra.training.policy_carry import CORPUS, SETS
    from infra.training.policy_material import HostMaterialConfig, picked
    from infra.training.policy_pools import Pooled

    texts = read_passages(carried / "corpus" / f"{CORPUS}.jsonl.zst")
    every = [q for name in SETS for q in read_questions(carried / "qa" / f"{name}.jsonl.zst")]
    asked = [(q.split, q.dataset) for q in picked(assign_splits(every, texts), HostMaterialConfig())]
    for path in sorted((carried / "pools").glob("*.json.xz")):
        asked += [(q.split, q.dataset) for q in Pooled.load(path).questions]
    counts = {(split, name): sum(told.values()) for split, sets in who.items() for name, told in sets.items()}
    for split in ("train", "dev", "test"):
        asked += [(split, "newswire")] * counts.get((split, "newswire"), 0)
    found: dict[tuple[str, str], list[int]] = {}
    for row, place in enumerate(asked):
        found.setdefault(place, []).append(row)
    if (here := {place: len(rows) for place, rows in found.items()}) != counts:
        raise ValueError(f"rows: given {counts} by who_reads.json; allowed: what is carried, {here}")
    return found


def readings_in(folder: Path) -> dict[tuple[int, int], float]:
    """F1 by row and mask of all recorded readings."""
    known: dict[tuple[int, int], float] = {}
    for path in sorted(folder.glob("readings-*.npz")):
        with np.load(path) as packed:
            keys = zip(packed["rows"].tolist(), packed["masks"].tolist(), strict=True)
            known.update(zip(keys, packed["f1"].tolist(), strict=True))
    return known


class Read:
    """The points of one split that were read whole: F1 and tokens question by question."""

    def __init__(
        self, points: Sequence[Point], places: Places, known: Mapping[tuple[int, int], float], split: str
    ):
        self.f1: dict[Key, Each] = {}
        self.tokens: dict[Key, npt.NDArray[np.float64]] = {}
        for point in points:
            rows = places.get((point.split, point.dataset), ())
            if point.split != split:
                continue
            if len(rows) != len(point.chosen):
                raise ValueError(
                    f"{point.name}: given {len(point.chosen)} choices of {len(rows)} {point.dataset}"
                )
            each = self._read(rows, point.chosen, known)
            if each is not None:
                key = (point.name, point.dataset, point.budget, point.stop_bias)
                self.f1[key] = each
                self.tokens[key] = np.array([choice.tokens for choice in point.chosen], np.float64)
        self.sets = sorted({key[1] for key in self.f1})
        self.names = sorted({key[0] for key in self.f1})

    @staticmethod
    def _read(
        rows: Sequence[int], chosen: Sequence[Chosen], known: Mapping[tuple[int, int], float]
    ) -> Each | None:
        keys = [(row, mask_of(choice.picks)) for row, choice in zip(rows, chosen, strict=True)]
        return (
            np.array([known[key] for key in keys], np.float32) if all(key in known for key in keys) else None
        )

    def of(self, name: str, dataset: str) -> list[Key]:
        """The points of a method on a set."""
        return [key for key in self.f1 if key[:2] == (name, dataset)]

    def seeds(self, kind: str) -> list[str]:
        """The policies of a kind that were read."""
        return [name for name in self.names if name.rpartition("-")[0] == kind]


def chosen_on(read: Read, name: str, dataset: str, half: npt.NDArray[np.bool_]) -> Key | None:
    """The best point of a method on some questions at no more tokens than the best simple method there."""
    simple = max(
        (key for method in SIMPLE for key in read.of(method, dataset)),
        key=lambda key: read.f1[key][half].mean(),
    )
    limit = WITHIN * read.tokens[simple][half].mean()
    fit = [key for key in read.of(name, dataset) if read.tokens[key][half].mean() <= limit]
    return max(fit, key=lambda key: (read.f1[key][half].mean(), -read.tokens[key][half].mean()), default=None)


def by_halves(
    read: Read, draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, dict[str, tuple[Each, float]]]]:
    """{kind: {set: {policy: (F1 question by question, mean tokens)}}}, each told by the half that did not choose.

    A policy that has no point within the tokens on a half of a set is left out there. `policy`: of LEARNED the kind
    whose policies are best on the half that chooses, in the mean of its seeds.
    """
    found: dict[str, dict[str, dict[str, tuple[Each, float]]]] = {}
    chance = np.random.default_rng(seed)
    for dataset in read.sets:
        size = len(read.f1[read.of(SIMPLE[1], dataset)[0]])
        names = {kind: read.seeds(kind) for kind in KINDS}
        total = {name: np.zeros(size, np.float64) for kind in KINDS for name in names[kind]}
        tokens = dict.fromkeys(total, 0.0)
        best = [np.zeros(size, np.float64) for _ in range(max(map(len, names.values()), default=0))]
        spent, lacking = 0.0, set()
        for _ in range(draws):
            half = chance.permutation(size) < size // 2
            for here, other in ((half, ~half), (~half, half)):
                chosen = {name: chosen_on(read, name, dataset, here) for name in total}
                lacking |= {name for name, key in chosen.items() if key is None}
                for name, key in chosen.items():
                    if key is not None:
                        total[name][other] += read.f1[key][other] / draws
                        tokens[name] += float(read.tokens[key][other].sum()) / draws / size
                kinds = {
                    kind: float(
                        np.mean([read.f1[key][here].mean() for n in names[kind] if (key := chosen[n])])
                    )
                    for kind in LEARNED
                    if any(chosen[n] for n in names[kind])
                }
                winner = max(kinds, key=lambda kind: kinds[kind], default=None)
                own = [key for n in names[winner] if (key := chosen[n])] if winner else []
                for at, into in enumerate(best if own else []):
                    into[other] += read.f1[own[at % len(own)]][other] / draws
                if own:
                    spent += float(np.mean([read.tokens[key][other].sum() for key in own])) / draws / size
        for kind in KINDS:
            for name in names[kind]:
                if name not in lacking:
                    found.setdefault(kind, {}).setdefault(dataset, {})[name] = (
                        total[name].astype(np.float32), round(tokens[name], 1),
                    )  # fmt: skip
        if spent:
            told = {
                f"policy-{at}": (each.astype(np.float32), round(spent, 1)) for at, each in enumerate(best)
            }
            found.setdefault("policy", {})[dataset] = told
    return found


def over(found: Mapping[str, Any], kind: str, than: str) -> dict[str, Any] | None:
    """Gains of a kind over another on the mean of the sets, seed by seed where both have it."""
    ours, theirs = {}, {}
    for dataset in found.get(kind, {}):
        pairs = [
            (mine[0], found[than][dataset][f"{than}-{name.rpartition('-')[2]}"][0])
            for name, mine in found[kind][dataset].items()
            if f"{than}-{name.rpartition('-')[2]}" in found.get(than, {}).get(dataset, {})
        ]
        if pairs:
            ours[dataset], theirs[dataset] = [a for a, _ in pairs], [b for _, b in pairs]
    return gains(ours, theirs)


def orders_over(read: Read, ours: str, theirs: str) -> dict[str, Any]:
    """Gains of one order over another at each budget, and over all budgets together (`all`)."""
    budgets = sorted({key[2] for name in (ours, theirs) for s in read.sets for key in read.of(name, s)})
    ours_at, theirs_at = (
        {s: {key[2]: read.f1[key] for key in read.of(name, s)} for s in read.sets} for name in (ours, theirs)
    )
    found: dict[str, Any] = {
        str(b): gains({s: [ours_at[s][b]] for s in read.sets}, {s: [theirs_at[s][b]] for s in read.sets})
        for b in budgets
    }
    whole = [
        {s: [np.mean([at[s][b] for b in budgets], axis=0)] for s in read.sets} for at in (ours_at, theirs_at)
    ]
    return found | {"all": gains(whole[0], whole[1])}


def at_fixed_points(read: Read) -> list[dict[str, Any]]:
    """Policies trained by reward over supervised ones of their seed at one and the same budget and bias of STOP.

    Nothing is chosen; `tokens` are those of both, means of the sets.
    """
    found = []
    for budget, bias in sorted({key[2:] for key in read.f1 if is_policy(key[0])}):
        for kind in LEARNED:
            pairs = [(name, f"supervised-{name.rpartition('-')[2]}") for name in read.seeds(kind)]
            keys = {
                s: [
                    ((a, s, budget, bias), (b, s, budget, bias))
                    for a, b in pairs
                    if (b, s, budget, bias) in read.f1
                ]
                for s in read.sets
            }
            told = gains(
                {s: [read.f1[a] for a, _ in both] for s, both in keys.items() if both},
                {s: [read.f1[b] for _, b in both] for s, both in keys.items() if both},
            )
            if told is not None:
                tokens = [
                    round(
                        float(
                            np.mean([read.tokens[pair[at]].mean() for both in keys.values() for pair in both])
                        ),
                        1,
                    )
                    for at in (0, 1)
                ]
                found.append({"kind": kind, "budget": budget, "stop_bias": bias, "tokens": tokens, **told})
    return found


def result_of(dev: Read, test: Read) -> dict[str, Any]:
    """All figures: policies on dev questions by halves, orders on test questions."""
    halves = by_halves(dev)
    arms = [
        name for name in test.names if name.endswith(("_rewarded", "_longer")) and name.startswith("pair")
    ]
    compared = {
        f"{kind} over {than}": told
        for kind, than in (
            *((kind, than) for than in LABELLED for kind in ("policy", *KINDS) if kind != than),
            *((f"{kind}_rewarded", kind) for kind in ("reinforce", "plain_ppo")),
        )
        if (told := over(halves, kind, than)) is not None
    }
    orders = {
        name: {
            s: {
                str(key[2]): [
                    round(100 * float(test.f1[key].mean()), 2),
                    round(float(test.tokens[key].mean()), 1),
                ]
                for key in test.of(name, s)
            }
            for s in test.sets
        }
        for name in test.names
        if not is_policy(name)
    }
    before = {name: name.rpartition("_")[0] for name in arms}
    return {
        "halves": {
            kind: {
                name: {"f1": [round(100 * float(each.mean()), 2) for each, _ in told.values()],
                       "tokens": round(float(np.mean([tokens for _, tokens in told.values()])), 1)}
                for name, told in sets.items()
            }
            for kind, sets in halves.items()
        },
        "over": compared,
        "at_fixed_points": at_fixed_points(dev),
        "orders_over": {f"{name} over {than}": orders_over(test, name, than) for name, than in before.items()},
        "orders": orders,
        "ratios": {
            "rl_over_supervised_f1_dev_halves": (compared.get("policy over supervised") or {}).get("gain"),
            **{f"{kind}_over_supervised_f1_dev_halves": told["gain"] for kind in LEARNED
               if (told := compared.get(f"{kind} over supervised"))},
        },
    }  # fmt: skip
