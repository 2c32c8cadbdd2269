"""What a chunk would have liked to read, told afterwards: earlier chunks that hold the rare words it brings up.

Ordinary text has no questions, but it repeats itself: names, terms and numbers come back after thousands of tokens.
The label of a query is made from the chunk that it asks for, which lies in its future, so nothing is needed beside
the text, and nothing of it is seen when the model is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

COMMON = 8.0  # nats: tokens likelier than e^-8 say nothing about a chunk


def rarity(counts: Tensor, common: float = COMMON) -> Tensor:
    """How much a token tells about a text [V], by its counts [V]: nats above `common`, 0 for what never occurs."""
    total = counts.sum().clamp_min(1)
    nats = -(counts.clamp_min(1).float() / total).log() - common
    return nats.clamp_min(0) * (counts > 0)


def overlap(ids: Tensor, rare: Tensor, chunk: int, near: int) -> Tensor:
    """[B, n, n]: rarity of the tokens of chunk c that chunk g holds and the `near` - 1 chunks before c do not.

    ids [B, T] of whole chunks. Only chunks g <= c - near count, as in the router; all else is 0.
    """
    rows, length = ids.shape
    count = length // chunk
    holds = torch.zeros(rows, count, len(rare), device=ids.device)
    holds.scatter_(2, ids.view(rows, count, chunk), 1.0)
    seen = torch.zeros_like(holds)
    for back in range(1, near):
        seen[:, back:] += holds[:, : count - back]
    new = holds * (seen == 0) * rare
    found = new @ holds.transpose(1, 2)
    place = torch.arange(count, device=ids.device)
    return found * (place[None, :] <= place[:, None] - near)


def hindsight_loss(
    queries: Tensor, landmarks: Tensor, wanted: Tensor, near: int, scale: Tensor | float, least: float = 2.0
) -> Tensor:
    """Cross entropy of the choice with what was wanted.

    queries [B, n, R] of the chunks that ask (c - 1 for c), landmarks [B, n, R], wanted [B, n, n] as `overlap`
    gives it. Rows whose best is below `least` nats do not count.
    """
    scores = queries @ landmarks.transpose(1, 2) * scale
    place = torch.arange(scores.shape[1], device=scores.device)
    # finite, so that a row without any choice has a loss and a gradient of zero
    scores = scores.masked_fill(place[None, :] > place[:, None] - near, -1e9)
    target = wanted.square()  # the best few matter
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-9)
    losses = -(target * scores.log_softmax(-1)).sum(-1)
    counts = (wanted.amax(-1) >= least).to(losses.dtype)
    return (losses * counts).sum() / counts.sum().clamp_min(1)
