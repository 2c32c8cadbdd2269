"""Choices of every method read together and apart: what the joining of answers is fitted and judged on.

A row a question: its candidates in numbers (costs, labels, features), what each method chooses, and every reading
that any way of joining asks for: each chosen sentence alone, each choice together, the first sentences by two. A
reading is kept with the answer, its F1 when made to answer, the margin by which the reader would rather give up,
and how likely the answer was. Weights are fitted from these rows at home, without a reader (`apart_fit`).

`K` candidates. Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.evaluation.choice_recall import simple_choices
from models.reader_decoding import GreedyAnswer, greedy_answers
from models.reader_scoring import answer_losses
from models.retriever.network import PolicyNetwork
from models.retriever.selecting import fill, trails
from models.retriever.table import ALL_FEATURES, TableBatch
from pipeline.session.prompts import giving_up_token, parse_answer, reader_prompt
from pipeline.tasks.material import Material
from pipeline.tasks.reading import STOP, Voice
from pipeline.tasks.scores import answer_f1, normalize_answer

RANKED = {"bm25": "bm25", "dense": "dense", "hybrid": "fused", "pair": "pair"}
"""Methods that a feature ranks: name to feature."""
ORACLE, POLICY = "oracle", "policy"
KEPT = ("dense", "bm25", "fused", "pair", "pair_share", "next")
"""Features that a row keeps of each candidate."""
Row = dict[str, Any]
Picks = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ApartPlan:
    """What is chosen and read of each question."""

    methods: tuple[str, ...] = ("hybrid", "dense", "bm25", "pair", ORACLE, POLICY)
    budgets: tuple[int, ...] = (48, 64, 96, 128, 192, 256)
    sizes: tuple[int, ...] = ()
    """Numbers of sentences, beside budgets: the first so many by a ranking."""
    biases: tuple[float, ...] = (-4.0, 0.0)
    """Of the policy's STOP."""
    by_two: int = 5
    """So many first sentences by the pair reader are also read by two."""
    cross: int = 6
    """The answers of so many first sentences are weighed under each of them, under all, and under none (0: not)."""

    def __post_init__(self) -> None:
        known = (*RANKED, ORACLE, POLICY)
        if unknown := [name for name in self.methods if name not in known]:
            raise ValueError(f"methods: given {', '.join(unknown)}; allowed: {', '.join(known)}")
        if not self.budgets and not self.sizes:
            raise ValueError("budgets, sizes: given neither; allowed: one of them at least")


@dataclass(frozen=True, slots=True)
class Told:
    """One reading: made to answer, `margin` by which giving up was likelier than the best other first token.

    `logp` of the whole answer with its line end and `first` of its first token, giving up barred; `count` of tokens
    with the line end.
    """

    picks: Picks
    text: str
    f1: float
    margin: float
    logp: float
    first: float
    count: int


def chosen_by(
    tables: TableBatch, plan: ApartPlan, network: PolicyNetwork | None, device: str
) -> list[dict[str, Picks]]:
    """What each method chooses of every question, in its order of choosing, by "method:limit".

    Limits: a budget ("hybrid:128"), a number of sentences ("hybrid:#4"), a budget with STOP's bias
    ("policy:128:-4"); the oracle has the largest budget alone ("oracle:256").
    """
    found: list[dict[str, Picks]] = [{} for _ in range(len(tables))]

    def put(name: str, picks: Sequence[Picks]) -> None:
        for row, each in zip(found, picks, strict=True):
            row[name] = tuple(map(int, each))

    for method in plan.methods:
        if method == ORACLE:
            most = max(plan.budgets, default=256)
            put(f"{ORACLE}:{most}", [one.picks for one in simple_choices(tables, ORACLE, most)])
        elif method == POLICY:
            if network is None:
                raise ValueError("network: given none; the method policy needs one")
            for budget in plan.budgets:
                walks = trails(network, tables, budget, device=device)
                for bias in plan.biases:
                    put(f"{POLICY}:{budget}:{bias:g}", [walk.until(bias) for walk in walks])
        else:
            scores = tables.features[:, :, ALL_FEATURES.index(RANKED[method])]
            for budget in plan.budgets:
                put(f"{method}:{budget}", [one.picks for one in fill(tables, scores, budget)])
            for size in plan.sizes:
                put(f"{method}:#{size}", [one.picks for one in fill(tables, scores, 1 << 20, size)])
    return found


def wanted_of(chosen: Mapping[str, Picks], by_two: int) -> list[Picks]:
    """Every reading that a question's choices ask for, each once, as sorted picks; () where nothing is chosen.

    By two are the first `by_two` sentences (`first_by_pair`).
    """
    wanted: dict[Picks, None] = {(): None}
    for picks in chosen.values():
        wanted |= {(pick,): None for pick in picks}
        wanted[tuple(sorted(picks))] = None
    first = first_by_pair(chosen, by_two)
    wanted |= {tuple(sorted(both)): None for both in combinations(first, 2)}
    return list(wanted)


def rows_read(
    material: Material, rows: Sequence[int], plan: ApartPlan, voice: Voice, network: PolicyNetwork | None = None,
) -> Iterator[Row]:  # fmt: skip
    """The rows of some questions of the material, all that they ask for read in one go."""
    part = material.take(rows)
    chosen = chosen_by(part.tables, plan, network, voice.device)
    wanted = [wanted_of(each, plan.by_two) for each in chosen]
    asked = [(at, picks) for at, each in enumerate(wanted) for picks in each]
    told = readings(part, asked, voice)
    by_row: list[list[Told]] = [[] for _ in rows]
    for (at, _), each in zip(asked, told, strict=True):
        by_row[at].append(each)
    crossed = weighed(part, [first_by_pair(each, plan.cross) for each in chosen], by_row, voice)
    for at, said in enumerate(by_row):
        yield row_of(part, at, chosen[at], said, voice) | {"crossed": crossed[at]}


def first_by_pair(chosen: Mapping[str, Picks], count: int) -> Picks:
    """The first sentences of the pair reader's longest choice (else of the longest of all)."""
    orders = [picks for name, picks in chosen.items() if name.startswith("pair:")] or list(chosen.values())
    return max(orders, key=len, default=())[:count]


def weighed(
    part: Material, firsts: Sequence[Picks], said: Sequence[Sequence[Told]], voice: Voice
) -> list[list[list[Any]]]:
    """[picks, answer, log-probability with the line end] of the answers of each question's first sentences.

    Each answer once under each of these sentences alone, under the first 2, 4, … together, and under none; what is
    lost to giving up counts, other than in readings.
    """
    end = voice.encode(STOP)
    wanted: list[tuple[int, Picks, str]] = []
    pairs: list[tuple[list[int], list[int]]] = []
    for at, (first, read) in enumerate(zip(firsts, said, strict=True)):
        alone = {one.picks[0]: one.text for one in read if len(one.picks) == 1}
        answers = {normalize_answer(alone[pick]): alone[pick] for pick in reversed(first)}
        together = [tuple(sorted(first[:size])) for size in range(2, len(first) + 1, 2)]
        for picks in [(), *((pick,) for pick in first), *together] if answers else []:
            prompt = [*voice.begin, *voice.encode(part.prompt(at, picks, voice.form))]
            for name, text in answers.items():
                wanted.append((at, picks, name))
                pairs.append((prompt, [*voice.encode(f" {text}"), *end]))
    losses = answer_losses(voice.model, pairs, tokens_per_batch=voice.tokens_per_batch, device=voice.device)
    found: list[list[list[Any]]] = [[] for _ in said]
    for (at, picks, name), (_, target), loss in zip(wanted, pairs, losses, strict=True):
        found[at].append([list(picks), name, round(-loss * len(target), 3)])
    return found


def row_of(part: Material, at: int, chosen: Mapping[str, Picks], said: Sequence[Told], voice: Voice) -> Row:
    """A question as it is kept: numbers, choices, readings as [picks, answer, F1, margin, logp, first, count]."""
    question, tables = part.questions[at], part.tables
    there = np.flatnonzero(tables.present[at])
    count = int(there.max()) + 1 if len(there) else 0
    features = {
        name: [round(float(value), 4) for value in tables.features[at, :count, ALL_FEATURES.index(name)]]
        for name in KEPT
        if ALL_FEATURES.index(name) < tables.num_features
    }
    return {
        "id": question.question_id, "dataset": question.dataset, "split": question.split, "kind": question.kind,
        "prompt": len(voice.begin) + len(voice.encode(reader_prompt((), question.text, voice.form))),
        "tokens": tables.tokens[at, :count].tolist(), "heads": tables.heads[at, :count].tolist(),
        "groups": tables.groups[at, :count].tolist(), "labels": tables.labels[at, :count].tolist(),
        "needs_all": bool(tables.needs_all[at]), "features": features,
        "chosen": {name: list(picks) for name, picks in chosen.items()},
        "read": [
            [list(one.picks), normalize_answer(one.text), round(one.f1, 4), round(one.margin, 3),
             round(one.logp, 3), round(one.first, 3), one.count]
            for one in said
        ],
    }  # fmt: skip


def readings(part: Material, asked: Sequence[tuple[int, Picks]], voice: Voice) -> list[Told]:
    """Each (row, picks) read in a prompt of its own by a reader that must answer, in order."""
    prompts = [[*voice.begin, *voice.encode(part.prompt(row, picks, voice.form))] for row, picks in asked]
    heard = Heard()
    said: list[GreedyAnswer] = greedy_answers(
        voice.model, prompts, stop_id=voice.encode(STOP)[0], give_up_id=giving_up_token(voice.encode),
        may_give_up=False, max_new_tokens=voice.max_new_tokens, tokens_per_batch=voice.tokens_per_batch,
        device=voice.device, pick=heard.pick, on_batch=heard.end_batch,
    )  # fmt: skip
    # greedy_answers takes prompts by their length, shortest first
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    logps: dict[int, list[float]] = dict(zip(order, heard.rows(), strict=True))
    found = []
    for at, ((row, picks), answer) in enumerate(zip(asked, said, strict=True)):
        text = parse_answer(voice.decode(answer.ids)).text
        steps = logps[at][: len(answer.ids) + 1]
        golds = part.questions[row].answers
        found.append(
            Told(tuple(picks), text, answer_f1(text, golds), answer.margin, sum(steps), steps[0], len(steps))
        )
    return found


class Heard:
    """Log-probabilities of the picked tokens of every batch of `greedy_answers`: a pass of their own is spared."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []
        self._batches: list[npt.NDArray[Any]] = []

    def pick(self, logits: Tensor) -> Tensor:
        """The likeliest token of logits [B, V], its log-probability remembered. [B]"""
        best, chosen = logits.max(-1)
        self._steps.append(best - torch.logsumexp(logits, -1))
        return chosen

    def end_batch(self, _: int) -> None:
        """What was picked since the last call belongs to one batch."""
        self._batches.append(torch.stack(self._steps, 1).cpu().numpy())
        self._steps = []

    def rows(self) -> list[list[float]]:
        """The log-probabilities of each prompt's tokens, batch by batch, those behind its end included."""
        return [row.tolist() for batch in self._batches for row in batch]
