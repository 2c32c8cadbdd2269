"""A pair reader that learns from what a reader made of its picks: a policy gradient without sampling noise.

The pair reader's scores are a policy of at most two picks: softmax over the candidates and the 0 that "none of
these" stands at; after a pick, softmax over the next candidates (with the first as already read) and a 0 to end.
What each pick, each two and nothing is worth has been read beforehand (`ReadQuestion`), so the expected worth is a
sum over all of them, and its gradient is the mean of REINFORCE's over its draws (Williams 1992), which no baseline
changes. Four forms (`RewardedConfig.form`):

expected    the expected worth itself
log         its logarithm: what is worth much and is hardly picked is learned from too, as by a label
likelihood  the divergence of the picks' softmax from one over the gold answer's log-likelihood (REPLUG's LSR,
            arXiv 2301.12652; Atlas' perplexity distillation, 2208.03299); one pick, not two
labels      nothing of it: as many steps over the same questions by the labels alone, to compare with

Beside each the labels' listwise loss weighs `labels`, so that scores keep what they say against "none of these".

`B` questions of a batch, `n` candidates read alone, `m` of them read in twos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.retriever.pair_base import PairRow, PairScorer, put
from models.retriever.pair_taught import learned
from models.retriever.pair_training import (
    PairTexts,
    PairTrainConfig,
    draw,
    listwise_loss,
    train_by_steps,
)
from models.retriever.table import Bools, Floats, Ints, TableBatch

FLOOR = 0.05
"""Added to the expected worth under the logarithm: what is never picked moves nothing by more than 1 / FLOOR."""
FORMS = ("expected", "log", "likelihood", "labels")
Form = Literal["expected", "log", "likelihood", "labels"]


@dataclass(frozen=True, slots=True)
class ReadQuestion:
    """What was read of a question: `picks` [n] of its candidates, each alone, and the first m of them in twos.

    `alone` [n] and `nothing`: what reading that much is worth; `losses` [n]: the gold answer's, in nats a token;
    `twos` [m, m]: what reading both is worth, the same both ways; NaN where they were not read.
    """

    row: int
    picks: Ints
    alone: Floats
    losses: Floats
    nothing: float
    twos: Floats

    def __post_init__(self) -> None:
        count, second = len(self.picks), len(self.twos)
        if not count or self.alone.shape != (count,) or self.losses.shape != (count,):
            raise ValueError(
                f"picks: given {count} with {len(self.alone)} worths and {len(self.losses)} losses; "
                "allowed: 1 or more with one each"
            )
        if second > count or self.twos.shape != (second, second):
            raise ValueError(f"twos: given {self.twos.shape}; allowed: a square, {count} at most")


@dataclass(frozen=True, slots=True)
class ReadQuestions:
    """Questions of one table batch with what was read of them."""

    tables: TableBatch
    texts: PairTexts
    questions: Sequence[ReadQuestion]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardedConfig:
    """One training of a pair reader by reward."""

    form: Form = field(default="log", metadata={"help": "expected, log, likelihood or labels"})
    epochs: float = field(default=2.0, metadata={"help": "passes over the questions read"})
    questions: int = field(default=32, metadata={"help": "questions of a step"})
    lr: float = field(default=4e-5, metadata={"help": "peak learning rate (AdamW)"})
    reward: float = field(default=1.0, metadata={"help": "weight of what reading is worth"})
    labels: float = field(default=0.25, metadata={"help": "weight of the labels' loss"})
    temperature: float = field(
        default=0.3, metadata={"help": "nats a token by which the likelihood's softmax is made"}
    )
    drawn: PairTrainConfig = field(
        default_factory=lambda: PairTrainConfig(candidates=10),
        metadata={"help": "how the labels' examples are drawn"},
    )
    together: int = field(
        default=0,
        metadata={"help": "questions whose gradient is made at once, for memory (0: all of a step)"},
    )
    seed: int = field(default=0, metadata={"help": "order and draws"})
    limit_s: float = field(
        default=math.inf, metadata={"help": "seconds after which the rate falls to 0 in a tenth more"}
    )

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form: given {self.form!r}; allowed: {', '.join(FORMS)}")
        if self.questions < 1:
            raise ValueError(f"questions: given {self.questions}; allowed: 1 or more")
        for name in ("reward", "labels", "together"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 or more")
        for name in ("epochs", "lr", "temperature", "limit_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")


@dataclass(frozen=True, slots=True)
class Worths:
    """What was read of a batch, padded: `there` and `alone` [B, n], `nothing` [B], `known` and `twos` [B, m, m]."""

    there: Tensor
    alone: Tensor
    nothing: Tensor
    known: Tensor
    twos: Tensor

    @classmethod
    def of(cls, questions: Sequence[ReadQuestion], device: str | torch.device = "cpu") -> Worths:
        """Of these questions; a pair of one and the same candidate is not known, nor one with a NaN."""
        count, width = len(questions), max(len(each.picks) for each in questions)
        second = max(len(each.twos) for each in questions)
        there: Bools = np.zeros((count, width), bool)
        alone: Floats = np.zeros((count, width), np.float32)
        twos: Floats = np.full((count, second, second), np.nan, np.float32)
        for at, each in enumerate(questions):
            there[at, : len(each.picks)] = True
            alone[at, : len(each.picks)] = each.alone
            twos[at, : len(each.twos), : len(each.twos)] = each.twos
        known = ~np.isnan(twos) & ~np.eye(second, dtype=bool)
        nothing: Floats = np.array([each.nothing for each in questions], np.float32)
        return cls(*(put(each, device) for each in (there, alone, nothing, known, np.nan_to_num(twos))))


def expected_worth(first: Tensor, second: Tensor, worths: Worths) -> Tensor:
    """The exact expected worth of at most two picks by these scores. [B, n] and [B, m, m] to [B]

    `second[b, i, j]`: the score of candidate j where i stands as read. Without any, a pick is its own end.
    """
    logits = torch.cat([torch.where(worths.there, first, -1e4), first.new_zeros(len(first), 1)], 1)
    picked = logits.softmax(1)
    worth = worths.alone
    if (width := second.shape[1]) > 0:
        logits = torch.where(worths.known, second, -1e4)
        after = torch.cat([logits, second.new_zeros(*second.shape[:2], 1)], 2).softmax(2)
        ended = after[..., -1] * worth[:, :width]
        worth = torch.cat([(after[..., :-1] * worths.twos).sum(2) + ended, worth[:, width:]], 1)
    return (picked[:, :-1] * worth).sum(1) + picked[:, -1] * worths.nothing


def likelihood_loss(first: Tensor, losses: Tensor, there: Tensor, temperature: float) -> Tensor:
    """Divergence of the picks' softmax from that of log-likelihoods over `temperature`. [B, n] to [B]"""
    wanted = torch.where(there, -losses / temperature, -1e4).log_softmax(1)
    told = torch.where(there, first, -1e4).log_softmax(1)
    return (wanted.exp() * (wanted - told)).sum(1)


def reward_loss(
    first: Tensor, second: Tensor, questions: Sequence[ReadQuestion], config: RewardedConfig
) -> tuple[Tensor, Tensor]:
    """The loss of each question by the form, and the expected worth of each, without a gradient. [B]"""
    worths = Worths.of(questions, first.device)
    if config.form == "likelihood":
        losses: Floats = np.zeros(tuple(worths.there.shape), np.float32)
        for at, each in enumerate(questions):
            losses[at, : len(each.picks)] = each.losses
        loss = likelihood_loss(first, put(losses, first.device), worths.there, config.temperature)
        return loss, expected_worth(first.detach(), second[:, :0, :0], worths)
    worth = expected_worth(first, second, worths)
    if config.form == "log":
        return -(worth.clamp_min(0.0) + FLOOR).log(), worth.detach()
    return -worth, worth.detach()


def train_rewarded(
    reader: PairScorer, sources: Sequence[ReadQuestions], config: RewardedConfig,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Train the reader in place; a record every twenty steps. RuntimeError where the loss is lost.

    All sources' questions are learned as often; labels' examples are drawn alike in every form.
    """
    every = [(source, each) for source in sources for each in source.questions]
    if not every:
        raise ValueError("sources: given no question that was read; allowed: one or more")

    def learn(drawn: list[int], chance: np.random.Generator) -> dict[str, Tensor]:
        return backward(reader, [every[at] for at in drawn], config, chance)

    return train_by_steps(reader, np.arange(len(every)), config, learn, on_step)


def backward(
    reader: PairScorer, batch: Sequence[tuple[ReadQuestions, ReadQuestion]], config: RewardedConfig,
    chance: np.random.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients of a step's loss, so many questions at once; the loss, the mean expected worth, the labels' loss.

    The worth is 0 where the form does not look at it.
    """
    size = config.together or len(batch)
    found: dict[str, list[Tensor]] = {"loss": [], "worth": [], "label_loss": []}
    for at in range(0, len(batch), size):
        part = batch[at : at + size]
        share = len(part) / len(batch)
        loss, worth, labels = _loss(reader, part, config, chance)
        (loss * share).backward()  # type: ignore[no-untyped-call]
        for name, value in (("loss", loss), ("worth", worth), ("label_loss", labels)):
            found[name].append(value.detach() * share)
    return {name: torch.stack(values).sum() for name, values in found.items()}


def _loss(
    reader: PairScorer, batch: Sequence[tuple[ReadQuestions, ReadQuestion]], config: RewardedConfig,
    chance: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, worth and labels' loss of some questions: all their rows go through the model as one."""
    drawn = [draw(source.tables, source.texts, each.row, config.drawn, chance) for source, each in batch]
    asked = [row for example in drawn for row in example.rows]
    if config.form == "labels":
        labels, _ = listwise_loss(learned(reader, asked), drawn)
        return config.labels * labels, labels.new_zeros(()), labels
    questions = [each for _, each in batch]
    rows, firsts, seconds = picked_rows(batch, twos=config.form != "likelihood")
    scores = learned(reader, [*rows, *asked])
    # what no row stands at is masked: any place will do
    first, second = (scores[put(np.maximum(places, 0), scores.device)] for places in (firsts, seconds))
    loss, worth = reward_loss(first, second, questions, config)
    labels, _ = listwise_loss(scores[len(rows) :], drawn)
    return config.reward * loss.mean() + config.labels * labels, worth.mean(), labels


def picked_rows(
    batch: Sequence[tuple[ReadQuestions, ReadQuestion]], twos: bool = True
) -> tuple[list[PairRow], Ints, Ints]:
    """The rows that a batch's picks are scored by, and where each first and second pick's stands (-1: none).

    [B, n] and [B, m, m]; without `twos` no second picks are asked for, though they may be known.
    """
    count = len(batch)
    width = max(len(each.picks) for _, each in batch)
    second = max(len(each.twos) for _, each in batch)
    firsts: Ints = np.full((count, width), -1, np.int64)
    seconds: Ints = np.full((count, second, second), -1, np.int64)
    rows: list[PairRow] = []
    for at, (source, each) in enumerate(batch):
        question, texts = source.texts.questions[each.row], source.texts.candidates[each.row]
        for i, pick in enumerate(each.picks.tolist()):
            firsts[at, i] = len(rows)
            rows.append(PairRow(question, texts[pick]))
        for i, j in np.argwhere(~np.isnan(each.twos)).tolist() if twos else ():
            if i != j:
                seconds[at, i, j] = len(rows)
                rows.append(PairRow(question, texts[int(each.picks[j])], texts[int(each.picks[i])]))
    return rows, firsts, seconds
