"""Readings apart: chosen candidates are read each alone, and the answer of the most trusted readings is given.

What stands beside the telling sentence misleads a small reader (docs/policy.md), so here nothing stands beside it.
Each reading has a weight, exp of a linear combination of what is known of the candidate and of the reading;
readings that give the same answer add up; "none of them" weighs 1. The combination is a handful of weights, fitted
on training questions.

`N` questions, `K` candidates, `F` inputs. A candidate that was not read has NaN as its F1 and no group.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.formats import FORMAT, KEY, check_format
from models.retriever.table import ALL_FEATURES, Floats, Ints, TableBatch

ALONE = ("margin", "sure", "whole")
"""Known of the reading itself, whatever chose what is read."""
PLAIN = ("dense", "bm25", "fused", *ALONE)
"""Known without any trained ranker: three features of the table, three of the reading."""
PAIRED = (*PLAIN, "pair", "pair_share")
VERIFIED = (*PAIRED, "verified")
"""With the pair reader's score of the candidate, and with a verifier's score of the answer in it."""
KINDS = {"alone": ALONE, "plain": PLAIN, "paired": PAIRED, "verified": VERIFIED}
UNREAD = -1
_MOST = 20.0


@dataclass(frozen=True, slots=True)
class SingleReadings:
    """What the reader said over each candidate alone, all [N, K], NaN (or UNREAD) where it was not read.

    `f1` of its answer, `margin` by which it would rather give up, `sure`: mean log-probability a token of its
    answer, `lengths` of that answer in tokens, `groups`: the same number for the same answer to the same question,
    `loss` of the gold answer (NaN too where it was not asked for).
    """

    f1: Floats
    margin: Floats
    sure: Floats
    lengths: Floats
    groups: Ints
    loss: Floats

    @property
    def read(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which were read. [N, K]"""
        found: np.ndarray[Any, np.dtype[np.bool_]] = self.groups != UNREAD
        return found

    def take(self, rows: Sequence[int] | Ints) -> SingleReadings:
        """Those of some questions, in the order given."""
        at = np.asarray(rows, np.int64)
        return SingleReadings(**{name: getattr(self, name)[at] for name in self.__slots__})


def inputs_of(
    tables: TableBatch | None, singles: SingleReadings, names: Sequence[str], verified: Floats | None = None
) -> Floats:
    """The inputs of a combination, by their names; 0 where not read. [N, K, F]

    `verified` [N, K]: a verifier's logits. Without tables only what readings tell is known. ValueError for a name
    that these tables or readings do not have.
    """
    described = () if tables is None else ALL_FEATURES[: tables.num_features]
    made: list[Floats] = []
    column: np.ndarray[Any, Any]
    for name in names:
        if name == "margin":
            column = np.clip(-singles.margin / 4, -4, 4)
        elif name == "sure":
            column = np.clip(singles.sure, -5, 0)
        elif name == "whole":
            column = np.clip(singles.sure * (singles.lengths + 1) / 4, -5, 0)
        elif name == "verified" and verified is not None:
            column = np.clip(verified / 4, -4, 4)
        elif tables is not None and name in described:
            column = tables.features[:, :, ALL_FEATURES.index(name)]
        else:
            raise ValueError(
                f"names: given {name!r}, which these tables and readings do not have; allowed: margin, sure, "
                f"whole, verified (with a verifier's scores), {', '.join(described)}"
            )
        made.append(np.where(singles.read, np.nan_to_num(column), 0.0).astype(np.float32))
    return np.stack(made, 2)


@dataclass(frozen=True, slots=True)
class Combination:
    """Weights of the inputs by their names, and a constant."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    constant: float

    def logits(
        self, tables: TableBatch | None, singles: SingleReadings, verified: Floats | None = None
    ) -> Floats:
        """The trust of every reading against "none of them", which stands at 0. [N, K]"""
        inputs = inputs_of(tables, singles, self.names, verified)
        found: Floats = inputs @ np.asarray(self.weights, np.float32) + np.float32(self.constant)
        return np.clip(found, -_MOST, _MOST)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(
            json.dumps({KEY: FORMAT, "names": self.names, "weights": self.weights, "constant": self.constant})
            + "\n"
        )

    @classmethod
    def load(cls, path: Path) -> Combination:
        """Read what `save` wrote; ValueError where names and weights do not fit."""
        body = json.loads(path.read_text())
        check_format(body, path)
        if len(body["names"]) != len(body["weights"]):
            raise ValueError(
                f"{path}: given {len(body['weights'])} weights for {len(body['names'])} names; allowed: one each"
            )
        return cls(tuple(body["names"]), tuple(map(float, body["weights"])), float(body["constant"]))


OWN_PROBABILITY = Combination(("whole",), (4.0,), 0.0)
"""The reader's own probability of its whole answer (`whole` is a quarter of its logarithm)."""


def claim(answer: str, title: str, text: str) -> str:
    """What a verifier reads beside the question: an answer with the sentence that it was read from."""
    return f"{answer}. {title}: {text}"


@dataclass(frozen=True, slots=True)
class TrustedAnswer:
    """The reading whose answer is given, as its place among those read, and the share that trusts this answer."""

    at: int
    trust: float


def most_trusted(logits: Sequence[float], groups: Sequence[int]) -> list[TrustedAnswer]:
    """The answer after the first reading, after the first two, and so on."""
    weight_of: dict[int, float] = {}
    best_of: dict[int, tuple[float, int]] = {}
    whole, found = 1.0, []
    for at, (logit, group) in enumerate(zip(logits, groups, strict=True)):
        weight = float(np.exp(logit))
        whole += weight
        weight_of[group] = weight_of.get(group, 0.0) + weight
        if group not in best_of or weight > best_of[group][0]:
            best_of[group] = (weight, at)
        winner = max(weight_of, key=lambda each: weight_of[each])
        found.append(TrustedAnswer(best_of[winner][1], weight_of[winner] / whole))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How a combination is fitted."""

    steps: int = field(default=400, metadata={"help": "full-batch steps of Adam"})
    lr: float = field(default=0.05, metadata={"help": "learning rate"})
    most_read: int = field(default=10, metadata={"help": "readings of a drawn question, at most"})
    draws: int = field(default=4, metadata={"help": "sets of readings drawn for each question"})
    ridge: float = field(default=1e-3, metadata={"help": "weight of the squared weights"})
    seed: int = field(default=0, metadata={"help": "of the draws"})

    def __post_init__(self) -> None:
        for name in ("steps", "most_read", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")


def fit(
    tables: TableBatch,
    singles: SingleReadings,
    names: Sequence[str],
    config: FitConfig | None = None,
    verified: Floats | None = None,
) -> Combination:
    """Weights under which the answers that are trusted are right: the most likely ones on these questions.

    A question is drawn several times with the first readings of one of its rankings, as many as chance says. The
    likelihood of a draw is the F1 that is expected of it, or the share of "none of them" where none is half right.
    """
    if not len(tables) or not singles.read.any():
        raise ValueError("singles: given no reading; allowed: one question with one reading or more")
    config = config or FitConfig()
    chance = np.random.default_rng(config.seed)
    inputs = inputs_of(tables, singles, names, verified)
    ranked = [ALL_FEATURES.index(name) for name in ("fused", "dense", "bm25")]
    if tables.num_features == len(ALL_FEATURES):
        ranked += [ALL_FEATURES.index("pair")] * 3
    shown, rows = [], []
    for row in np.flatnonzero(singles.read.any(1)):
        read = np.flatnonzero(singles.read[row])
        for _ in range(config.draws):
            scores = tables.features[row, read, int(chance.choice(ranked))]
            count = int(chance.integers(1, config.most_read + 1))
            picks = read[np.argsort(-scores, kind="stable")[:count]]
            shown.append(np.pad(picks, (0, config.most_read - len(picks)), constant_values=UNREAD))
            rows.append([row])
    drawn, at = np.stack(shown), np.array(rows)
    there = torch.from_numpy(drawn != UNREAD)
    given = torch.from_numpy(inputs[at, drawn])
    right = torch.from_numpy(np.nan_to_num(singles.f1[at, drawn]).astype(np.float32)) * there
    none = right.amax(1) < 0.5
    weights = torch.zeros(len(names), requires_grad=True)
    constant = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weights, constant], lr=config.lr)
    for _ in range(config.steps):
        logits = torch.where(there, given @ weights + constant, torch.tensor(-1e4))
        shares = torch.cat([logits, logits.new_zeros(len(logits), 1)], 1).softmax(1)
        likely = torch.where(none, shares[:, -1], (shares[:, :-1] * right).sum(1))
        loss = -(likely + 1e-3).log().mean() + config.ridge * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    fitted = [round(float(weight), 4) for weight in weights.detach()]
    return Combination(tuple(names), tuple(fitted), round(float(constant.detach()), 4))
