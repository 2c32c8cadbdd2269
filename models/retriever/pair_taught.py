"""A small pair reader taught by a large one: soft targets of the teacher beside the labels (arXiv 1503.02531).

What is learned from is drawn beforehand (`Plan`): for each example a question, some of its candidates, perhaps one
that stands as read, as `pair_training.draw` draws them, but by number and not as tokens. So a teacher with another
tokenizer scores the very rows that the student learns later, no row more, and several devices may share them.

The loss of an example: `soft` times T² times the divergence of the student's softmax at the temperature T from the
teacher's, both over the candidates and the 0 that "none of these" stands at, and the labels' listwise loss for the
rest. Words' vectors stay as MiniLM has them, so that a reader without its own (`own_words=False`) is the same.

`E` examples, `M` rows of all examples, `N` rows of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.retriever.pair_base import GIVEN_TOKENS, QUESTION_TOKENS, TEXT_TOKENS, PairRow, PairScorer
from models.retriever.pair_reader import PairReader
from models.retriever.pair_training import (
    PairExample,
    PairTexts,
    PairTrainConfig,
    draw,
    listwise_loss,
    share_of_rate,
)
from models.retriever.table import Bools, Floats, Ints, TableBatch

NOT_READ = -1
"""`given` of a row with nothing read yet."""
WORDS = "bert.embeddings.word_embeddings.weight"
_AT_ONCE = 32_768
"""Tokens of a batch with its padding on a GPU: rows of like length share one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Drawn examples, row by row; `starts` [E + 1] are the places of each one's rows.

    Questions and candidates by their numbers in a table batch. A score that is NaN: the teacher did not look.
    """

    questions: Ints
    picks: Ints
    given: Ints
    right: Bools
    scores: Floats
    starts: Ints
    needs_all: Bools
    weights: Floats

    def __len__(self) -> int:
        return len(self.needs_all)

    @property
    def num_rows(self) -> int:
        """M."""
        return len(self.picks)

    def take(self, examples: Ints) -> Plan:
        """Some of the examples, in the order given."""
        sizes = np.diff(self.starts)[examples]
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        at = np.repeat(self.starts[:-1][examples], sizes) + within
        return Plan(
            self.questions[at], self.picks[at], self.given[at], self.right[at], self.scores[at],
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), self.needs_all[examples],
            self.weights[examples],
        )  # fmt: skip

    def scored(self, scores: Floats) -> Plan:
        """The same with the teacher's scores. [M]"""
        if scores.shape != self.picks.shape:
            raise ValueError(f"scores: given {scores.shape}; allowed: {self.picks.shape}")
        return replace(self, scores=scores.astype(np.float32))

    def rows(self, texts: PairTexts) -> list[PairRow]:
        """Each row as tokens."""
        return [
            PairRow(
                texts.questions[question],
                texts.candidates[question][pick],
                texts.candidates[question][read] if read != NOT_READ else (),
            )
            for question, pick, read in zip(
                self.questions.tolist(), self.picks.tolist(), self.given.tolist(), strict=True
            )
        ]

    def examples(self, texts: PairTexts) -> list[PairExample]:
        """Each example as tokens."""
        rows, starts = self.rows(texts), self.starts.tolist()
        return [
            PairExample(
                tuple(rows[first:last]),
                self.right[first:last],
                bool(self.needs_all[at]),
                float(self.weights[at]),
            )
            for at, (first, last) in enumerate(pairwise(starts))
        ]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        part = path.with_suffix(".part.npz")
        np.savez(part, **{name: getattr(self, name) for name in self.__slots__})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """What `save` wrote; FileNotFoundError where it did not."""
        with np.load(path) as packed:
            return cls(**{name: packed[name] for name in cls.__slots__})

    @classmethod
    def join(cls, parts: Sequence[Plan]) -> Plan:
        """Several plans over one material, one after another."""
        if not parts:
            raise ValueError("parts: given none; allowed: one plan or more")
        sizes = np.concatenate([np.diff(part.starts) for part in parts])
        whole = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__slots__ if name != "starts"
        }  # fmt: skip
        return cls(**whole, starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class TaughtConfig:
    """One training of a student."""

    questions: int = field(default=64, metadata={"help": "examples of a step"})
    lr: float = field(default=1.5e-4, metadata={"help": "peak learning rate (AdamW), the head's ten times"})
    soft: float = field(default=0.7, metadata={"help": "share of the loss that is the teacher's"})
    temperature: float = field(default=2.0, metadata={"help": "both softmaxes are taken at it"})
    seed: int = field(default=0, metadata={"help": "order of the examples"})
    limit_s: float = field(
        default=math.inf, metadata={"help": "seconds after which the rate falls to 0 in a tenth more"}
    )

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ValueError(f"questions: given {self.questions}; allowed: 1 or more")
        if not 0 <= self.soft <= 1:
            raise ValueError(f"soft: given {self.soft}; allowed: 0 to 1")
        for name in ("lr", "temperature", "limit_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")


def draw_plan(tables: TableBatch, rows: Ints, examples: int, config: PairTrainConfig) -> Plan:
    """So many examples over these questions, each as often as any other, drawn as `config` has it."""
    if not len(rows):
        raise ValueError("rows: given none; allowed: one question or more")
    chance = np.random.default_rng(config.seed)
    width = tables.num_candidates
    # tokens stand for themselves here: the number of a candidate, and of none where nothing was read
    numbers: list[tuple[int, ...]] = [(at,) for at in range(width)]
    texts = PairTexts([()] * len(tables), [numbers] * len(tables))
    order: list[int] = []
    while len(order) < examples:
        order += chance.permutation(rows).tolist()
    drawn = [draw(tables, texts, row, config, chance) for row in order[:examples]]
    sizes = [len(each.rows) for each in drawn]
    every = [row for each in drawn for row in each.rows]
    return Plan(
        np.repeat(np.array(order[:examples], np.int64), sizes),
        np.array([row.text[0] for row in every], np.int64),
        np.array([row.given[0] if row.given else NOT_READ for row in every], np.int64),
        np.concatenate([each.right for each in drawn]),
        np.full(len(every), np.nan, np.float32),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.array([each.all_needed for each in drawn], bool),
        np.array([each.weight for each in drawn], np.float32),
    )


def soft_loss(scores: Tensor, targets: Tensor, sizes: Sequence[int], temperature: float) -> Tensor:
    """T² times the mean divergence of the student's softmax from the teacher's; examples without targets are out.

    `scores`, `targets`: rows of all examples one after another [N]; "none of these" stands at 0 beside each one's.
    """
    device, width = scores.device, max(sizes)
    there = np.arange(width)[None] < np.asarray(sizes)[:, None]
    place = torch.from_numpy(np.cumsum(there).reshape(there.shape) - 1).clamp_min(0).to(device)
    inside = torch.from_numpy(there).to(device)
    known = ~torch.where(inside, targets[place].isnan(), False).any(1)
    none = scores.new_zeros(len(sizes), 1)

    def logs(flat: Tensor) -> Tensor:
        table = torch.where(inside, flat[place] / temperature, -1e4)
        return torch.cat([table, none], 1).log_softmax(1)

    wanted, told = logs(targets.nan_to_num()), logs(scores)
    each = (wanted.exp() * (wanted - told)).sum(1)
    # no example without the teacher's scores counts; a batch of such ones has no soft loss
    return temperature**2 * torch.where(known, each, 0.0).sum() / known.sum().clamp_min(1)


def taught_loss(
    reader: PairScorer, plan: Plan, texts: PairTexts, config: TaughtConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a plan's examples, the soft part of it, and the share whose best row is right by the labels."""
    examples = plan.examples(texts)
    scores = learned(reader, [row for example in examples for row in example.rows])
    label, right = listwise_loss(scores, examples)
    targets = torch.from_numpy(plan.scores).to(scores.device)
    soft = soft_loss(scores, targets, np.diff(plan.starts).tolist(), config.temperature)
    return (1 - config.soft) * label + config.soft * soft, soft.detach(), right


def train_taught(
    reader: PairScorer, plan: Plan, texts: PairTexts, config: TaughtConfig,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """One pass over the plan's examples in an order of its own; a record every twenty steps.

    The reader is trained in place, its words' vectors excepted. RuntimeError where the loss is lost.
    """
    if not len(plan):
        raise ValueError("plan: given no example; allowed: one or more")
    torch.manual_seed(config.seed)
    order = np.random.default_rng(config.seed).permutation(len(plan))
    steps = math.ceil(len(plan) / config.questions)
    model = reader.model.train()
    words = _words(reader)
    tuning = reader.tuning()
    groups = [([each for each in params if each is not words], factor) for params, factor in tuning.groups]
    optimizer = torch.optim.AdamW(
        [{"params": params, "lr": factor} for params, factor in groups], weight_decay=0.01,
        fused=reader.device.startswith("cuda"),
    )  # fmt: skip
    moved = [param for params, _ in groups for param in params]
    records: list[dict[str, float]] = []
    started = time.monotonic()
    if words is not None:
        words.requires_grad_(False)
    for step in range(steps):
        rate = config.lr * share_of_rate(step, steps, (time.monotonic() - started) / config.limit_s)
        if rate <= 0:
            break
        for group, (_, factor) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = rate * factor
        part = plan.take(order[step * config.questions : (step + 1) * config.questions])
        optimizer.zero_grad(set_to_none=True)
        loss, soft, right = taught_loss(reader, part, texts, config)
        loss.backward()  # type: ignore[no-untyped-call]
        tuning.gather()
        nn.utils.clip_grad_norm_(moved, 1.0)
        optimizer.step()
        tuning.merge()
        if step % 20 == 0 or step == steps - 1:  # figures are fetched rarely: each waits for the device
            told = {"step": step, "loss": loss.item(), "soft": soft.item(), "right": right.item(), "lr": rate}
            if not math.isfinite(told["loss"]):
                raise RuntimeError(
                    f"the loss is {told['loss']} at step {step}; lower the learning rate (given {config.lr})"
                )
            records.append(told)
            if on_step is not None:
                on_step(told)
    if words is not None:
        words.requires_grad_(True)
    model.eval()
    return records


def measured(reader: PairScorer, plan: Plan, texts: PairTexts, temperature: float = 1.0) -> dict[str, float]:
    """How a reader does on examples that it did not learn: `soft`, and shares in percent.

    `right`: its best row (or none) is right by the labels; `teacher_right`: the teacher's is; `agrees`: it is the
    teacher's.
    """
    scores = reader.scores(plan.rows(texts))
    own, theirs = _best(scores, plan), _best(plan.scores, plan)
    flat = [torch.from_numpy(each) for each in (scores, plan.scores)]
    return {
        "examples": float(len(plan)),
        "soft": round(float(soft_loss(flat[0], flat[1], np.diff(plan.starts).tolist(), temperature)), 4),
        "right": round(100 * float(np.mean(_is_right(own, plan))), 2),
        "teacher_right": round(100 * float(np.mean(_is_right(theirs, plan))), 2),
        "agrees": round(100 * float(np.mean(own == theirs)), 2),
    }


def _best(scores: Floats, plan: Plan) -> Ints:
    """The place of each example's best row within it, -1 for none of them. [E]"""
    found = []
    for first, last in zip(plan.starts[:-1], plan.starts[1:], strict=True):
        at = int(np.argmax(scores[first:last]))
        found.append(at if scores[first + at] > 0 else -1)
    return np.array(found, np.int64)


def _is_right(best: Ints, plan: Plan) -> Bools:
    told = [
        bool(plan.right[first + at]) if at >= 0 else not plan.right[first:last].any()
        for at, first, last in zip(best, plan.starts[:-1], plan.starts[1:], strict=True)
    ]
    return np.array(told, bool)


def learned(reader: PairScorer, rows: Sequence[PairRow]) -> Tensor:
    """Scores with their gradient, in order: rows of like length in a batch of their own. [N]"""
    lengths = np.array(
        [
            min(len(row.question), QUESTION_TOKENS)
            + min(len(row.given), GIVEN_TOKENS)
            + min(len(row.text), TEXT_TOKENS)
            for row in rows
        ]
    )
    groups: list[list[int]] = []
    for at in np.argsort(-lengths, kind="stable").tolist():
        if not groups or (len(groups[-1]) + 1) * (lengths[groups[-1][0]] + 4) > _AT_ONCE:
            groups.append([])
        groups[-1].append(at)
    scores = torch.cat([reader.learn([rows[at] for at in group]) for group in groups])
    places = torch.tensor([at for group in groups for at in group], device=scores.device)
    return torch.zeros_like(scores).index_copy(0, places, scores)


def _words(reader: PairScorer) -> nn.Parameter | None:
    """MiniLM's vectors of words, which stay; None for a decoder, whose own are not among what is tuned."""
    if not isinstance(reader, PairReader):
        return None
    return dict(reader.model.named_parameters())[WORDS]
