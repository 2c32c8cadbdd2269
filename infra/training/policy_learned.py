"""One score of all that is kept of a candidate: a small network over pair readers' scores, features and neighbours.

A weighted sum of MPNet's and E5's scores knows a candidate alone. Here a network of one hidden layer is added to
it that also sees both passes of each kind, the 15 features, the sum's scores of the sentences before and after and
of the best of the same text, and whether other texts' candidates name what this one names and the question does
not. It learns from the training questions of the named sets, whose scores come from readers that were not trained
on them, and scores each by a network that was not trained on it: questions of one fold by what the other taught,
dev and test questions by what both taught. Questions of other sets keep the sum. Its second pass is the sum's.

`N` questions, `K` candidates, `C` columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from infra.training.policy_pairs import (
    FOLDS,
    PAIRS_BOTH,
    PLACES,
    fold_of,
    fold_rows,
    scores_in,
)
from models.retriever.pair_base import SCORE_LIMIT, pair_columns
from models.retriever.table import GOLD
from pipeline.tasks.material import ChoiceQuestion, Material

PAIRS_LEARNED = "pairs_learned"
"""Where its features lie under OUT."""
NAMES = re.compile(r"[A-Z][\w'.-]+(?: (?:of |the |and |de )?[A-Z][\w'.-]+)*|\d[\d,.]*")
"""Names and numbers in a sentence, roughly."""
MANY = 8
"""Names beyond which one more tells nothing."""
NONE = -1e4
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedConfig:
    """How the networks are trained."""

    steps: int = field(default=250, metadata={"help": "optimizer steps"})
    questions: int = field(default=192, metadata={"help": "questions of a step"})
    hidden: int = field(default=32, metadata={"help": "width of the hidden layer"})
    best: int = field(
        default=16, metadata={"help": "candidates of a question, by the sum, that are told apart"}
    )
    lr: float = field(default=3e-3, metadata={"help": "learning rate (AdamW)"})
    decay: float = field(default=0.1, metadata={"help": "decoupled weight decay"})
    networks: int = field(default=3, metadata={"help": "networks whose scores are averaged"})

    def __post_init__(self) -> None:
        for name in ("steps", "questions", "hidden", "best", "networks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")


def columns_of(material: Material, out: Path, kinds: Sequence[str]) -> tuple[Floats, Floats]:
    """The sum's scores [N, K] in nats and all columns [N, K, C], zeros where no candidate is."""
    tables = material.tables
    base = nats(scores_in(material, out / PAIRS_BOTH)[..., 0])
    found = [scores_in(material, out / PLACES[kind])[..., :5] for kind in kinds]
    asked = [(each[..., 3:4] > -1).astype(np.float32) for each in found]
    beside = np.zeros((*base.shape, 8), np.float32)
    for row, question in enumerate(material.questions):
        count = len(question.sentences)
        beside[row, :count] = beside_of(question, base[row, :count])
    columns = np.concatenate([*found, *asked, tables.features, beside], -1).astype(np.float32)
    return base, np.where(tables.present[..., None], columns, 0).astype(np.float32)


def nats(column: Floats) -> Floats:
    """A pair reader's score from its feature."""
    return (column * np.float32(SCORE_LIMIT / 2)).astype(np.float32)


def beside_of(question: ChoiceQuestion, scores: Floats) -> Floats:
    """What stands beside each candidate, by the sum's scores [K] in nats. [K, 8]

    Scores of the sentence before, after, of the best other one of its text (the least of all where there is none),
    whether it is its text's best; of what it names and the question does not: the largest and mean probability that
    other texts name it too, how many there are; whether another candidate has the same words.
    """
    count = len(question.sentences)
    out = np.zeros((count, 8), np.float32)
    if not count:
        return out
    at = {place: index for index, place in enumerate(question.places)}
    texts: dict[int, list[int]] = {}
    for index, (text, _) in enumerate(question.places):
        texts.setdefault(text, []).append(index)
    share = np.exp(scores - scores.max())
    share /= share.sum()
    named = [_named(question, index) for index in range(count)]
    by_text: dict[str, dict[int, float]] = {}
    for index, (text, _) in enumerate(question.places):
        for name in named[index]:
            known = by_text.setdefault(name, {})
            known[text] = max(known.get(text, 0.0), float(share[index]))
    words = [sentence[2] for sentence in question.sentences]
    least = float(scores.min())
    for index, (text, place) in enumerate(question.places):
        others = [float(scores[other]) for other in texts[text] if other != index]
        for column, step in enumerate((-1, 1)):
            near = at.get((text, place + step))
            out[index, column] = least if near is None else scores[near]
        elsewhere = [
            sum(value for other, value in by_text[name].items() if other != text) for name in named[index]
        ]
        out[index, 2:] = (
            max(others, default=least), float(scores[index] >= max(others, default=least)),
            max(elsewhere, default=0.0), float(np.mean(elsewhere or [0.0])), min(len(elsewhere), MANY) / MANY,
            float(words.count(words[index]) > 1),
        )  # fmt: skip
    return out


def learned_scores(
    material: Material, base: Floats, columns: Floats, sets: Sequence[str], config: LearnedConfig
) -> Floats:
    """Scores [N, K] in nats: learned for questions of these sets, the sum's for others.

    Candidates that are not among the best by the sum stay behind these. ValueError where a fold has no training
    question that tells anything.
    """
    tables = material.tables
    order = np.argsort(-np.where(tables.present, base, -np.inf), axis=1, kind="stable")[:, : config.best]
    training = np.array(
        [r for r in material.rows("train") if material.questions[r].dataset in sets], np.int64
    )
    seen = columns[training][tables.present[training]]
    near = np.take_along_axis(columns, order[..., None], axis=1)
    inputs = (near - seen.mean(0)) / (seen.std(0) + 1e-6)
    shown = np.take_along_axis(tables.present, order, axis=1)
    parts = {
        "inputs": np.where(shown[..., None], inputs, 0).astype(np.float32),
        "base": np.take_along_axis(base, order, axis=1),
        "present": shown,
        "labels": np.take_along_axis(tables.labels, order, axis=1),
    }
    asked = {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in parts.items()}
    folds = np.array([fold_of(material, int(row)) for row in training], np.int64)
    rest = np.array(
        [r for r in range(len(material)) if _is_of(material.questions[r], sets, train=False)], np.int64
    )
    taught = [(training[folds == at], training[folds != at]) for at in (0, 1)] + [(training, rest)]
    found = base.copy()
    for rows, scored in taught:
        if not len(scored):
            continue
        learned = np.mean(
            [_taught(asked, rows, scored, config, seed) for seed in range(config.networks)], axis=0
        )
        last = np.where(parts["present"][scored], learned, np.inf).min(1, keepdims=True)
        floor = np.take_along_axis(base[scored], order[scored][:, -1:], axis=1)
        found[scored] = last + np.minimum(base[scored] - floor, 0) - 1e-3
        for row, scores in zip(scored, learned, strict=True):
            here = parts["present"][row]
            found[row, order[row][here]] = scores[here]
    return np.where(tables.present, found, 0).astype(np.float32)


def put_learned(
    material: Material,
    out: Path,
    kinds: Sequence[str],
    sets: Sequence[str],
    config: LearnedConfig | None = None,
) -> dict[str, Any]:
    """Write OUT/pairs_learned/<fold>/scores.npz as the stage pairs would; hit at 1, 2, 4 of it and of the sum."""
    base, columns = columns_of(material, out, kinds)
    first = learned_scores(material, base, columns, sets, config or LearnedConfig())
    both = scores_in(material, out / PAIRS_BOTH)
    second = np.where(both[..., 3] > -1, nats(both[..., 3]), np.nan)
    made = both.copy()
    for row, question in enumerate(material.questions):
        if question.dataset in sets:
            here = np.flatnonzero(material.tables.present[row])
            made[row, here] = pair_columns(first[row, here], second[row, here])
    for fold in FOLDS:
        rows = fold_rows(material, fold)[1]
        (out / PAIRS_LEARNED / fold).mkdir(parents=True, exist_ok=True)
        np.savez(out / PAIRS_LEARNED / fold / "scores.npz", rows=rows, columns=made[rows])
    return {
        f"{split} {dataset}": {
            name: hits(material, material.rows(split, dataset), scores)
            for name, scores in (("sum", base), ("learned", first))
        }
        for dataset in sets
        for split in ("train", "dev", "test")
    }


def hits(material: Material, rows: npt.NDArray[np.int64], scores: Floats) -> list[float]:
    """Percent of the rows with a telling candidate where one is among the first 1, 2, 4."""
    told = (material.tables.labels[rows] == GOLD) & material.tables.present[rows]
    order = np.argsort(-np.where(material.tables.present[rows], scores[rows], -np.inf), axis=1, kind="stable")
    inside = np.take_along_axis(told, order, axis=1)[told.any(1)]
    return [round(100 * float(inside[:, :count].any(1).mean()), 1) for count in (1, 2, 4)]


def _taught(
    asked: dict[str, Tensor], rows: npt.NDArray[np.int64], scored: npt.NDArray[np.int64], config: LearnedConfig,
    seed: int,
) -> Floats:  # fmt: skip
    """One network taught by some questions: its scores of others. [R, best]"""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(asked["inputs"].shape[-1], config.hidden), nn.GELU(), nn.Dropout(0.2), nn.Linear(config.hidden, 1)
    )  # fmt: skip
    nn.init.zeros_(network[3].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[3].bias)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.decay)
    labels, present = asked["labels"], asked["present"]
    gold = (labels == GOLD) & present
    known = torch.from_numpy(rows)
    # where an answer stands in texts that tell nothing, nobody knows what is right
    usable = gold[known].any(1) | ~((labels[known] > 0) & present[known]).any(1)
    known = known[usable]
    if not len(known) or not gold[known].any():
        raise ValueError("rows: no training question of this fold has a candidate that tells")
    chance = torch.Generator().manual_seed(seed)

    def scores(at: Tensor) -> Tensor:
        added: Tensor = network(asked["inputs"][at])[..., 0]
        return asked["base"][at] + added

    for _ in range(config.steps):
        at = known[torch.randint(0, len(known), (config.questions,), generator=chance)]
        right = gold[at]
        shown = present[at] & ((labels[at] == 0) | right)
        logits = torch.cat([torch.where(shown, scores(at), NONE), torch.zeros(len(at), 1)], 1).log_softmax(1)
        one = torch.logsumexp(torch.where(right, logits[:, :-1], NONE), 1)
        loss = -torch.where(right.any(1), one, logits[:, -1]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.eval()
    with torch.inference_mode():
        found: Floats = scores(torch.from_numpy(scored)).numpy()
        return found


def _named(question: ChoiceQuestion, index: int) -> set[str]:
    """What a candidate and its title name, in small letters, and the question does not."""
    title, _, text = question.sentences[index]
    asked = question.text.lower()
    found = {name.lower() for name in NAMES.findall(text)} | {title.lower()}
    return {name for name in found if len(name) > 1 and name not in asked}


def _is_of(question: ChoiceQuestion, sets: Sequence[str], *, train: bool) -> bool:
    return question.dataset in sets and (question.split == "train") == train
