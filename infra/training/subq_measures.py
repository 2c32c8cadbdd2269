"""What a step of training says of its questions: how many were answered, and whether their chunks were read."""

from __future__ import annotations

import torch
from torch import Tensor

from models.subq.losses import Questions
from models.subq.model import Output, SubqModel


def questions_of(rows: Tensor) -> Questions:
    """The columns of a batch's questions [Q, 8] (NeedleBatch.questions)."""
    asking, gold_first, gold_last, first, last, anonymous, position, length = rows.T
    gold = torch.stack((gold_first, gold_last), 1)
    return Questions(asking, gold, first, last, anonymous.bool(), position, length)


def told_at(model: SubqModel, out: Output, ids: Tensor, at: Tensor) -> Tensor:
    """Logits [M, vocabulary] of what follows tokens `at` [M], counted over all sequences of ids [B, T] (whole
    chunks), with what is copied."""
    copied = model.copied(out, ids)
    hidden = out.hidden.flatten(0, 1).index_select(0, at)
    return model.next_logits(hidden[None], None if copied is None else copied.at(at))[0]


def measured(
    out: Output, questions: Questions, asking: Tensor, at: Tensor, right: Tensor, is_answer: Tensor, num: int
) -> dict[str, Tensor]:
    """Shares of answer tokens and answers that were right, of questions that read every gold chunk; its weight."""
    with torch.no_grad():
        told = (right & is_answer).sum() / is_answer.sum().clamp_min(1)
        if not len(asking):
            zero = told * 0
            return {"tokens_right": told, "exact": zero, "recall": zero, "gold_weight": zero}
        wrong = torch.zeros(num + 1, device=right.device)
        wrong[at + 1] = (~right & is_answer).float()
        before = wrong.cumsum(0)
        end = (questions.position + questions.length).clamp_max(num)
        exact = (before[end] - before[questions.position] == 0).float().mean()
        if out.routing is None:
            return {"tokens_right": told, "exact": exact, "recall": told * 0, "gold_weight": told * 0}
        indices = out.routing.indices.flatten(0, 1)[asking]
        weights = out.routing.weights.flatten(0, 1)[asking]
        is_gold = indices[:, :, None] == questions.gold[:, None]
        recall = is_gold.any(1).all(1).float().mean()
        return {
            "tokens_right": told, "exact": exact, "recall": recall,
            "gold_weight": (weights * is_gold.any(2)).sum(1).mean(),
        }  # fmt: skip
