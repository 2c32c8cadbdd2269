"""Training the pair reader from labels: of a question's candidates, which tells, or none of them.

A listwise loss: softmax over the candidates drawn for a question and a fixed 0 for "none of these". Half the time a
candidate stands as already read (`given`): then what is still needed is right, and "none" where it already tells.
So one model learns relevance, the second hop, and when to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.retriever.pair_base import PairRow, PairScorer, TokenIds, put
from models.retriever.table import FEATURES, GOLD, Bools, Floats, Ints, TableBatch

FUSED = FEATURES.index("fused")
WINDING_DOWN = 0.1
"""Share of the limit in which a run that is past it lets its rate fall to nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTrainConfig:
    """One training of the pair reader."""

    epochs: float = field(default=4.0, metadata={"help": "passes over the questions"})
    questions: int = field(default=32, metadata={"help": "questions of a step"})
    candidates: int = field(default=14, metadata={"help": "candidates drawn for a question"})
    lr: float = field(default=1.2e-4, metadata={"help": "peak learning rate (AdamW)"})
    given: float = field(
        default=0.5, metadata={"help": "share of steps' questions with a sentence already read"}
    )
    weak_weight: float = field(
        default=0.3, metadata={"help": "weight of questions without a gold candidate among theirs"}
    )
    together: int = field(
        default=0,
        metadata={"help": "questions whose gradient is made at once, for memory (0: all of a step)"},
    )
    seed: int = field(default=0, metadata={"help": "order and draws"})
    limit_s: float = field(
        default=math.inf,
        metadata={
            "help": "seconds after which the rest of the steps is left: the rate falls to 0 in a tenth more"
        },
    )

    def __post_init__(self) -> None:
        for name in ("questions", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if self.together < 0:
            raise ValueError(f"together: given {self.together}; allowed: 0 or more")
        for name in ("epochs", "lr", "limit_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")
        if not 0 <= self.given <= 1:
            raise ValueError(f"given: given {self.given}; allowed: 0 to 1")


@dataclass(frozen=True, slots=True)
class PairExample:
    """A question with some candidates: `right` [M] are those that tell; none: "none of them" is right."""

    rows: tuple[PairRow, ...]
    right: Bools
    all_needed: bool
    weight: float


@dataclass(frozen=True, slots=True)
class PairTexts:
    """The token ids of questions and of their candidates, row by row of a table batch."""

    questions: Sequence[TokenIds]
    candidates: Sequence[Sequence[TokenIds]]

    @classmethod
    def of(
        cls, reader: PairScorer, questions: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> PairTexts:
        """Tokenized, each distinct text once."""
        distinct = list(dict.fromkeys([*questions, *(text for texts in candidates for text in texts)]))
        ids = dict(zip(distinct, reader.tokenize(distinct), strict=True))
        return cls([ids[each] for each in questions], [[ids[text] for text in texts] for texts in candidates])


def share_of_rate(step: int, steps: int, passed: float) -> float:
    """Of the peak rate: rises over 6% of the steps, then falls straight to the last; `passed` of the time limit, it
    falls away within `WINDING_DOWN` more. 0: the run ends here."""
    share = min(1.0, (step + 1) / (0.06 * steps + 1)) * (1.0 - step / steps)
    return share * max(0.0, 1.0 - max(0.0, (passed - 1.0) / WINDING_DOWN))


def train_pairs(
    reader: PairScorer,
    tables: TableBatch,
    texts: PairTexts,
    rows: Ints,
    config: PairTrainConfig,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train the reader in place on these rows; one record a step. Raises RuntimeError where the loss is lost."""
    if not len(rows):
        raise ValueError("rows: given none; allowed: one question or more")

    def learn(drawn: list[int], chance: np.random.Generator) -> dict[str, Tensor]:
        examples = [draw(tables, texts, row, config, chance) for row in drawn]
        loss, right = backward(reader, examples, config.together)
        return {"loss": loss, "right": right}

    return train_by_steps(reader, rows, config, learn, on_step)


class StepConfig(Protocol):
    """What of a training's configuration its steps go by."""

    @property
    def epochs(self) -> float: ...
    @property
    def questions(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def limit_s(self) -> float: ...


def train_by_steps(
    reader: PairScorer, items: Ints, config: StepConfig,
    learn: Callable[[list[int], np.random.Generator], Mapping[str, Tensor]],
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Train the reader in place by what `learn` makes of some items: gradients, and the step's figures with `loss`.

    A record every twenty steps. RuntimeError where the loss is lost.
    """
    chance = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    steps = max(1, math.ceil(config.epochs * len(items) / config.questions))
    model = reader.model.train()
    tuning = reader.tuning()
    optimizer = torch.optim.AdamW(
        [{"params": params, "lr": factor} for params, factor in tuning.groups], weight_decay=0.01,
        fused=reader.device.startswith("cuda"),
    )  # fmt: skip
    moved = [param for params, _ in tuning.groups for param in params]
    records: list[dict[str, float]] = []
    order: list[int] = []
    started = time.monotonic()
    for step in range(steps):
        # by steps, so that a busy device ends as a quiet one; past the limit the rate falls away and it ends
        rate = config.lr * share_of_rate(step, steps, (time.monotonic() - started) / config.limit_s)
        if rate <= 0:
            break
        for group, (_, factor) in zip(optimizer.param_groups, tuning.groups, strict=True):
            group["lr"] = rate * factor
        if len(order) < config.questions:
            order += chance.permutation(items).tolist()
        drawn, order = order[: config.questions], order[config.questions :]
        optimizer.zero_grad(set_to_none=True)
        told = learn(drawn, chance)
        tuning.gather()
        nn.utils.clip_grad_norm_(moved, 1.0)
        optimizer.step()
        tuning.merge()
        if step % 20 == 0 or step == steps - 1:  # figures are fetched rarely: each waits for the device
            found = {name: value.item() for name, value in told.items()}
            if not math.isfinite(found["loss"]):
                raise RuntimeError(
                    f"the loss is {found['loss']} at step {step}; lower the learning rate (given {config.lr})"
                )
            records.append({"step": step, "lr": rate, **found})
            if on_step is not None:
                on_step(records[-1])
    model.eval()
    return records


def backward(reader: PairScorer, examples: Sequence[PairExample], together: int = 0) -> tuple[Tensor, Tensor]:
    """Gradients of the examples' loss, made for so many of them at once (0: all); the loss and the share right."""
    size = together or len(examples)
    whole = sum(example.weight for example in examples)
    losses, rights = [], []
    for at in range(0, len(examples), size):
        part = examples[at : at + size]
        loss, right = listwise_loss(reader.learn([row for example in part for row in example.rows]), part)
        loss = loss * (sum(example.weight for example in part) / whole)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        rights.append(right * (len(part) / len(examples)))
    return torch.stack(losses).sum(), torch.stack(rights).sum()


def draw(
    tables: TableBatch, texts: PairTexts, row: int, config: PairTrainConfig, chance: np.random.Generator
) -> PairExample:
    """A question as it is learned from now: candidates that tell, hard and random others, perhaps one read."""
    labels = tables.labels[row]
    best = int(labels.max(initial=0))
    wanted = [int(at) for at in np.flatnonzero((labels == best) & tables.present[row])] if best else []
    others = np.flatnonzero((labels == 0) & tables.present[row])
    hard = others[np.argsort(-tables.features[row, others, FUSED], kind="stable")][:12]
    needs_all = bool(tables.needs_all[row]) and len(wanted) > 1
    given, right = -1, wanted
    if chance.random() < config.given:
        if best == GOLD and chance.random() < (0.6 if needs_all else 0.4):
            given = int(chance.choice(wanted))
            right = [at for at in wanted if at != given] if needs_all else []
        elif len(hard):
            given = int(chance.choice(hard))
    # another gold of a question that needs one only is neither right nor wrong once one was read
    shown = right[:4]
    room = max(1, config.candidates - len(shown))
    hard = hard[hard != given]
    some = chance.permutation(hard)[: (room + 1) // 2].tolist()
    rest = np.array([at for at in others if at != given and at not in some], np.int64)
    some += chance.permutation(rest)[: room - len(some)].tolist()
    picks = [*shown, *map(int, some)]
    candidates = texts.candidates[row]
    read = candidates[given] if given >= 0 else ()
    return PairExample(
        tuple(PairRow(texts.questions[row], candidates[at], read) for at in picks),
        np.array([at in shown for at in picks], bool),
        needs_all,
        1.0 if best == GOLD else config.weak_weight,
    )


def listwise_loss(scores: Tensor, examples: Sequence[PairExample]) -> tuple[Tensor, Tensor]:
    """The weighted mean loss of the examples whose rows stand one after another, and the share won by a right one.

    Where one right candidate is enough their probabilities are added up; where all are needed each counts alike.
    """
    width = max(len(example.rows) for example in examples)
    place = np.zeros((len(examples), width), np.int64)
    there = np.zeros((len(examples), width), bool)
    goal: Floats = np.zeros((len(examples), width + 3), np.float32)  # the last two: all needed, weight
    start = 0
    for at, example in enumerate(examples):
        size = len(example.rows)
        place[at, :size] = np.arange(start, start + size)
        there[at, :size] = True
        start += size
        if example.right.any():
            goal[at, :size] = example.right
        else:
            goal[at, width] = 1.0
        goal[at, -2:] = example.all_needed, example.weight
    device = scores.device
    table = torch.where(put(there, device), scores[put(place, device)], -1e4)
    logits = torch.cat([table, table.new_zeros(len(examples), 1)], 1)
    log_probs = logits.log_softmax(1)
    told = put(goal, device)
    wanted, needs, weight = told[:, :-2], told[:, -2] > 0, told[:, -1]
    together = -torch.logsumexp(torch.where(wanted > 0, log_probs, -1e4), 1)
    each = -(wanted * log_probs).sum(1) / wanted.sum(1)
    loss = (torch.where(needs, each, together) * weight).sum() / weight.sum()
    right = wanted.gather(1, logits.argmax(1, keepdim=True)).mean()
    return loss, right
