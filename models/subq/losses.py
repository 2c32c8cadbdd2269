"""The hybrid loss of a sub-quadratic backbone: each term apart, each with a weight of its own.

L = language + answers + contrastive + λ1 · E[tokens] + λ2 · ‖A‖²_F + λ3 · (N_q + k)²
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.subq.router import Routing

_NEVER = -1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Factor of every term; 0 switches it off."""

    language: float = field(default=1.0, metadata={"help": "next tokens of the text"})
    answers: float = field(default=1.0, metadata={"help": "next tokens of answers, the mean over them"})
    contrastive: float = field(
        default=1.0, metadata={"help": "InfoNCE of a question's query and gold chunks"}
    )
    tokens: float = field(default=0.0, metadata={"help": "λ1: expected tokens read by a query"})
    frobenius: float = field(
        default=0.0, metadata={"help": "λ2: squared Frobenius norm of the choice's weights"}
    )
    operations: float = field(
        default=0.0, metadata={"help": "λ3: square of queries per thousand tokens plus chunks read by one"}
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 0:
                raise ValueError(f"{each.name}: given {getattr(self, each.name)}; allowed: 0 or more")


class LossTerms(NamedTuple):
    """Every term before its weight, scalars."""

    language: Tensor
    answers: Tensor
    contrastive: Tensor
    tokens: Tensor
    frobenius: Tensor
    operations: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """The weighted sum; terms of weight 0 are left out, whatever they are."""
        parts = [
            getattr(weights, name) * getattr(self, name) for name in self._fields if getattr(weights, name)
        ]
        return torch.stack(parts).sum()


def language_terms(
    logits: Tensor, targets: Tensor, is_answer: Tensor, losses: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss of text and of answers, and which targets were likeliest: logits [M, V], targets, is_answer [M].

    losses [M]: nats of the targets where they are not those of the logits alone.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none") if losses is None else losses
    answers = is_answer.to(losses.dtype)
    text = (losses * (1 - answers)).sum() / (1 - answers).sum().clamp_min(1)
    told = (losses * answers).sum() / answers.sum().clamp_min(1)
    return text, told, logits.argmax(-1) == targets


def choice_terms(routing: Routing | None, chunk: int, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of the choice: E[tokens], ‖A‖²_F a query, (N_q + k)².

    Weights sum to 1 over a fixed number of slots, so what a choice costs is measured by its effective number of
    chunks exp(entropy): 1 when all weight is on one, top_k when it is even. N_q: queries per thousand tokens.
    """
    if routing is None:
        zero = torch.zeros(())
        return zero, zero, zero
    weights = routing.weights.flatten(0, 1)
    asked = (routing.indices.flatten(0, 1) >= 0).any(-1).to(weights.dtype)
    entropy = -(weights * weights.clamp_min(1e-9).log()).sum(-1)
    effective = (entropy.exp() * asked).sum() / asked.sum().clamp_min(1)
    norm = weights.square().sum() / asked.sum().clamp_min(1)
    num_queries = asked.sum() * 1000.0 / max(num_tokens, 1)
    return effective * chunk, norm, (num_queries + effective).square()


def info_nce(
    queries: Tensor,
    landmarks: Tensor,
    gold: Tensor,
    negative: Tensor,
    scale: Tensor | float,
    bank: Tensor | None = None,
    bank_negative: Tensor | None = None,
) -> Tensor:
    """Loss [Q] of telling the gold chunk from all others: queries [Q, R], landmarks [N, R], gold [Q, 2].

    A straddled key has two gold chunks: each is a positive of its own, and no negative of the other's. What
    counts as wrong: negative [Q, N] and, over the bank's detached landmarks [M, R], bank_negative [Q, M].
    """
    scores = queries @ landmarks.T * scale
    positive = scores.gather(1, gold)
    # finite, so that a question without any negative has a loss of zero, and a gradient
    wrong = scores.masked_fill(~negative, _NEVER).scatter(1, gold, _NEVER)
    if bank is not None and bank_negative is not None and len(bank):
        far = (queries @ bank.T.to(queries.dtype) * scale).masked_fill(~bank_negative, _NEVER)
        wrong = torch.cat((wrong, far), 1)
    against = wrong.logsumexp(1, keepdim=True)
    return (torch.logaddexp(positive, against) - positive).mean(1)


class Questions(NamedTuple):
    """Asked needles of a batch, by flat chunk numbers over all its sequences; all int64 [Q] but gold."""

    asking: Tensor  # the chunk that the answer begins in; the chunk before it asks
    gold: Tensor  # [Q, 2] first and last chunk that holds the key
    first: Tensor  # chunks of the needle's sentence, first and last
    last: Tensor
    anonymous: (
        Tensor  # bool: nobody owns the key, so that other sequences' anonymous needles would answer too
    )
    position: Tensor  # flat token of the question's end
    length: Tensor  # tokens of the answer, full stop included


def negatives(
    questions: Questions, num_chunks: int, per_sequence: int, near: int, anonymous: Tensor
) -> Tensor:
    """What is wrong to choose [Q, num_chunks]: own past chunks and all of other sequences.

    Left out are the needle's own sentence, and for an ownerless question all `anonymous` [num_chunks] chunks.
    """
    place = torch.arange(num_chunks, device=questions.asking.device)
    own = (questions.asking // per_sequence)[:, None] == place // per_sequence
    past = place <= (questions.asking - near)[:, None]
    inside = (place >= questions.first[:, None]) & (place <= questions.last[:, None])
    unclear = questions.anonymous[:, None] & anonymous
    return (~own | past) & ~inside & ~unclear


class LandmarkBank:
    """The last `size` landmarks of earlier steps, detached, first in first out: negatives that cost no encoding."""

    def __init__(self, size: int, dim: int, device: torch.device) -> None:
        if size < 0:
            raise ValueError(f"bank: given {size}; allowed: 0 (none) or more landmarks")
        self.rows = torch.zeros(size, dim, device=device)
        self.anonymous = torch.zeros(size, dtype=torch.bool, device=device)
        self.written = 0

    def __len__(self) -> int:
        return min(self.written, self.rows.shape[0])

    def add(self, landmarks: Tensor, anonymous: Tensor) -> None:
        """Put landmarks [n, R] in place of the oldest; `anonymous` [n] marks chunks of ownerless needles."""
        size = self.rows.shape[0]
        if not size:
            return
        landmarks, anonymous = landmarks[-size:], anonymous[-size:]
        at = torch.arange(self.written, self.written + len(landmarks), device=self.rows.device) % size
        self.rows[at] = landmarks.detach().to(self.rows.dtype)
        self.anonymous[at] = anonymous
        self.written += len(landmarks)

    def negative(self, questions: Questions) -> Tensor:
        """[Q, len(bank)]: all, but ownerless needles for an ownerless question."""
        return ~(questions.anonymous[:, None] & self.anonymous[: len(self)])

    def state_dict(self) -> dict[str, Tensor | int]:
        """For a checkpoint."""
        return {"rows": self.rows, "anonymous": self.anonymous, "written": self.written}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """What `state_dict` gave."""
        rows, anonymous, written = state["rows"], state["anonymous"], state["written"]
        assert isinstance(rows, Tensor) and isinstance(anonymous, Tensor) and isinstance(written, int)
        if rows.shape != self.rows.shape:
            raise ValueError(f"bank of {tuple(rows.shape)} does not fit one of {tuple(self.rows.shape)}")
        self.rows.copy_(rows)
        self.anonymous.copy_(anonymous)
        self.written = written
