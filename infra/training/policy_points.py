"""What every method of a policy run chooses, at every budget, with every bias of STOP, in both readings.

A method is named `<kind>` or `<kind>-<seed>`; a kind that ends in `_apart` reads what it chooses apart. Choices
that are read together are points to be read later; those read apart are judged at once, from the table of single
readings. Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.evaluation.choice_recall import SIMPLE as RANKED_BY
from infra.evaluation.choice_recall import recall
from infra.evaluation.policy_judge import GIVE_UP_MARGIN, choose
from models.retriever.apart_costs import apart_tables, paid_apart
from models.retriever.network import PolicyNetwork
from models.retriever.selecting import Chosen, Trail, fill, trails
from models.retriever.storage import load_policy
from models.retriever.table import ALL_FEATURES, FEATURES, Floats, TableBatch
from models.retriever.trust import SingleReadings, most_trusted
from pipeline.tasks.material import Material
from rl.episodes import Request

BUDGETS = (32, 64, 96, 128, 192, 256)
APART_BUDGETS = (64, 128, 192, 256, 384, 512)
BIASES = (-12.0, -4.0, -1.5, 0.0)
TRUSTS = (1.0, 0.95, 0.85, 0.7, 0.5)
"""Readings apart end when the answer is trusted this much (1: never)."""
SIMPLE = ("random", "bm25", "dense", "hybrid")
SPLITS = ("dev", "test")
APART = "_apart"


@dataclass(frozen=True, slots=True)
class Point:
    """One method at one budget on the questions of a split of a set: what it chose for each."""

    name: str
    split: str
    dataset: str
    budget: int
    stop_bias: float
    chosen: tuple[Chosen, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """A point that is judged: its figures as a curve has them, and F1 question by question."""

    name: str
    split: str
    dataset: str
    figures: dict[str, Any]
    each: Floats


@dataclass(frozen=True, slots=True)
class ApartTable:
    """What reading apart is judged with, question by question.

    The readings, the trust in each by its kind [N, K], what may be chosen [N, K], tokens of the bare prompts [N].
    """

    singles: SingleReadings
    logits: dict[str, Floats]
    allowed: np.ndarray[Any, np.dtype[np.bool_]]
    prompts: np.ndarray[Any, np.dtype[np.int64]]

    def take(self, rows: np.ndarray[Any, Any]) -> ApartTable:
        """The same of some questions."""
        logits = {kind: each[rows] for kind, each in self.logits.items()}
        return ApartTable(self.singles.take(rows), logits, self.allowed[rows], self.prompts[rows])

    def tables(self, tables: TableBatch) -> TableBatch:
        """The tables as reading apart costs, nothing but what was read in them."""
        return apart_tables(tables, self.allowed & self.singles.read, self.prompts)


def rows_of(material: Material, split: str, dataset: str, most: int = 0) -> np.ndarray[Any, Any]:
    """The answerable rows of a split of a set, at most `most` (0: all)."""
    return material.rows(split, dataset, answerable=True)[: most or None]


def datasets(material: Material) -> list[str]:
    """The sets that are judged, by name: those that have test questions."""
    return sorted({question.dataset for question in material.questions if question.split == "test"})


def is_policy(name: str) -> bool:
    """Whether a method is a policy of some seed."""
    return "-" in name


def kind_of(name: str) -> str:
    """What a method is, without its seed."""
    return name.rsplit("-", 1)[0] if is_policy(name) else name


def names_to_judge(
    material: Material, policies: Path, together: bool = False, orders: Iterable[str] = ()
) -> list[str]:
    """Simple methods in both readings, the oracle, the pair reader where it has looked, every policy that is there.

    Supervised policies are judged in both readings; those learned by reward in the one that they were paid for.
    `together`: nothing that is read apart. `orders`: pair readers' own, read together; apart, `pair` is the order
    of the one whose scores are among the features.
    """
    ranked = [*RANKED_BY]
    looked = material.tables.num_features == len(ALL_FEATURES)
    apart = [*ranked, *(["pair"] if looked else [])]
    ranked += list(orders) or (["pair"] if looked else [])
    made = ["random", "oracle", *ranked, *(f"{name}{APART}" for name in apart if not together)]
    for folder in sorted(policies.glob("*/carried")):
        name = folder.parent.name
        made.append(name)
        if name.startswith("supervised") and not together:
            made.append(f"{kind_of(name)}{APART}-{name.rsplit('-', 1)[1]}")
    return made


def scores_seen(name: str, policies: Path) -> tuple[str, int]:
    """Whose pair features a method's policy sees, as its record says (`policy_opened.seen_by`), and its seed."""
    record = policies / name / "record.json"
    told = json.loads(record.read_text()) if is_policy(name) and record.is_file() else {}
    return str(told.get("scores", "")), int(told.get("seed", 0))


def network_of(name: str, policies: Path, device: str) -> PolicyNetwork | None:
    """The policy of a method, None where it has none; `supervised_apart-0` is `supervised-0`."""
    if not is_policy(name):
        return None
    own = policies / name / "carried"
    known = own if own.is_dir() else policies / name.replace(APART, "") / "carried"
    return load_policy(known, device)[0]


def choices_of(
    name: str, material: Material, policies: Path, *, device: str, budgets: Sequence[int] = BUDGETS,
    biases: Sequence[float] = BIASES, most: int = 0, orders: Mapping[str, Floats] | None = None,
) -> list[Point]:  # fmt: skip
    """All points of a method that reads together: a simple one, `pair`, `oracle`, or a policy's folder.

    `orders`: scores [N, K] of further simple methods by name; `pair` without one is the features' pair reader.
    """
    ranked = orders or {}
    network = network_of(name, policies, device)
    routed = name.startswith("router")
    found = []
    for split, dataset, rows in _places(material, most):
        part = material.take(rows)
        for budget in (max(budgets),) if name == "oracle" else budgets:
            if network is not None and not routed:
                walks = trails(network, part.tables, budget, device=device)
                found += [
                    Point(name, split, dataset, budget, bias, tuple(_until(part.tables, walks, bias)))
                    for bias in biases
                ]
                continue
            if name in ranked:
                chosen = fill(part.tables, ranked[name][rows], budget)
            elif name == "pair":
                chosen = fill(part.tables, part.tables.features[..., ALL_FEATURES.index("pair")], budget)
            else:
                method = "router" if routed else name
                chosen = choose(part, method, budget, network=network, device=device)
            found.append(Point(name, split, dataset, budget, 0.0, tuple(chosen)))
    return found


def judged_apart(
    name: str, material: Material, apart: ApartTable, policies: Path, *, device: str,
    budgets: Sequence[int] = APART_BUDGETS, biases: Sequence[float] = BIASES,
    trusts: Sequence[float] = TRUSTS, most: int = 0,
) -> list[Judged]:  # fmt: skip
    """All points of a method that reads apart, judged from single readings.

    Trust is `plain` where the method knows no pair reader, else `verified`; for the pair reader's own ranking every
    kind of trust is judged (`pair_apart`, `pair_plain_apart`, `pair_paired_apart`).
    """
    network = network_of(name, policies, device)
    found = []
    for split, dataset, rows in _places(material, most):
        part, here = material.take(rows), apart.take(rows)
        tables = here.tables(part.tables)
        for budget in budgets:
            room = here.prompts + budget
            if network is not None:
                whole = trails(network, tables, room, device=device)
                walks = [(bias, _picks(whole, bias)) for bias in biases]
            else:
                ranking = {"hybrid": "fused"}.get(name.removesuffix(APART), name.removesuffix(APART))
                scores = tables.features[..., ALL_FEATURES.index(ranking)]
                walks = [(0.0, [chosen.picks for chosen in fill(tables, scores, room, 16)])]
            for label, kind in _trusts_of(name, network, here):
                for bias, picks in walks:
                    found += [
                        Judged(label, split, dataset, {"budget": budget, "stop_bias": bias} | figures, each)
                        for figures, each in answered(part, tables, here, kind, picks, trusts)
                    ]
    return found


def answered(
    part: Material, tables: TableBatch, here: ApartTable, kind: str, picks: Sequence[Sequence[int]],
    trusts: Sequence[float],
) -> list[tuple[dict[str, Any], Floats]]:  # fmt: skip
    """Figures and F1 of choices read apart one after another, for each trust at which reading ends.

    Tokens are those of every text that was read with its head, and of every prompt but the first.
    """
    after = [
        most_trusted(
            here.logits[kind][row, list(chosen)].tolist(), here.singles.groups[row, list(chosen)].tolist()
        )
        for row, chosen in enumerate(picks)
    ]
    found = []
    for enough in trusts:
        each = np.zeros(len(picks), np.float32)
        gave_up = np.zeros(len(picks), bool)
        read: list[Chosen] = []
        for row, (chosen, answers) in enumerate(zip(picks, after, strict=True)):
            count = next((at for at, answer in enumerate(answers, 1) if answer.trust >= enough), len(answers))
            told = tuple(chosen[:count])
            read.append(Chosen(told, paid_apart(tables, row, told, int(here.prompts[row]))))
            if count:
                best = chosen[answers[count - 1].at]
                each[row] = here.singles.f1[row, best]
                gave_up[row] = here.singles.margin[row, best] > GIVE_UP_MARGIN
        figures = recall(part.tables, read) | {
            "trust": enough,
            "f1": round(100 * float(np.where(gave_up, 0.0, each).mean()), 2),
            "forced_f1": round(100 * float(each.mean()), 2),
            "gave_up": round(100 * float(gave_up.mean()), 2),
        }
        found.append((figures, each))
    return found


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


def points_in(path: Path) -> list[Point]:
    """The points of one file that `save_points` left."""
    return [
        Point(
            row["name"], row["split"], row["dataset"], row["budget"], row["stop_bias"],
            tuple(Chosen(tuple(p), int(t)) for p, t in zip(row["picks"], row["tokens"], strict=True)),
        )
        for row in json.loads(path.read_text())
    ]  # fmt: skip


def load_points(folder: Path) -> list[Point]:
    """All points that `save_points` left in a folder."""
    return [point for path in sorted(folder.glob("*.points.json")) for point in points_in(path)]


def save_judged(judged: Sequence[Judged], path: Path) -> None:
    """Write judged points (npz), whole or not at all."""
    part = path.with_suffix(".part.npz")
    told = [
        {"name": each.name, "split": each.split, "dataset": each.dataset, "figures": each.figures}
        for each in judged
    ]
    arrays: dict[str, Any] = {f"each{at}": each.each.astype(np.float16) for at, each in enumerate(judged)}
    np.savez_compressed(part, told=np.array(json.dumps(told)), **arrays)
    part.replace(path)


def load_judged(folder: Path) -> list[Judged]:
    """All points that `save_judged` left in a folder."""
    found = []
    for path in sorted(folder.glob("*.judged.npz")):
        with np.load(path) as packed:
            for at, row in enumerate(json.loads(str(packed["told"]))):
                each = packed[f"each{at}"].astype(np.float32)
                found.append(Judged(row["name"], row["split"], row["dataset"], row["figures"], each))
    return found


def requests_of(points: Iterable[Point], material: Material, most: int = 0) -> list[Request]:
    """Every distinct reading that the points need."""
    found: dict[Request, None] = {}
    known: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
    for point in points:
        place = (point.split, point.dataset)
        if place not in known:
            known[place] = rows_of(material, *place, most)
        for row, choice in zip(known[place], point.chosen, strict=True):
            found[int(row), tuple(sorted(choice.picks))] = None
    return list(found)


def _places(material: Material, most: int) -> list[tuple[str, str, np.ndarray[Any, Any]]]:
    found = [
        (split, dataset, rows_of(material, split, dataset, most))
        for split in SPLITS
        for dataset in datasets(material)
    ]
    return [place for place in found if len(place[2])]


def _until(tables: TableBatch, walks: Sequence[Trail], bias: float) -> list[Chosen]:
    found = []
    for row, picks in enumerate(_picks(walks, bias)):
        heads = {int(tables.groups[row, at]): int(tables.heads[row, at]) for at in picks}
        found.append(Chosen(picks, int(tables.tokens[row, list(picks)].sum()) + sum(heads.values())))
    return found


def _picks(walks: Sequence[Trail], bias: float) -> list[tuple[int, ...]]:
    return [walk.until(bias) for walk in walks]


def _trusts_of(name: str, network: PolicyNetwork | None, here: ApartTable) -> list[tuple[str, str]]:
    """(name in the results, kind of trust) of a method that reads apart."""
    if network is not None:
        knows_pair = network.config.num_features > len(FEATURES)
        return [(name, "verified" if knows_pair and "verified" in here.logits else "plain")]
    if name == f"pair{APART}":
        extra = [(f"pair_{kind}{APART}", kind) for kind in here.logits if kind != "verified"]
        return [(name, "verified"), *extra]
    return [(name, "plain")]
