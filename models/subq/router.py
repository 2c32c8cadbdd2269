"""Which chunks each query reads: what is offered, what is chosen, and with which weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.subq.config import SubqConfig

NEVER = float("-inf")


class Routing(NamedTuple):
    """indices [B, U, k] into all chunks of the batch (-1: empty), weights [B, U, k], both neighbours included."""

    indices: Tensor
    weights: Tensor


class Forced(NamedTuple):
    """Questions whose gold chunks are read whatever the scores: rows [F] of all flat queries, gold [F, 2]."""

    rows: Tensor
    gold: Tensor


def limits(units: Tensor, near: int) -> Tensor:
    """The newest chunk that a query in chunk `units` may be offered; below 0 there is none."""
    return units - near


def weigh(
    scores: Tensor, indices: Tensor, past: Tensor, config: SubqConfig, scale: Tensor | float
) -> Routing:
    """Weights of the chosen: softmax(scale * cosine) over the slots that count, best first.

    scores, indices [..., top_k] (-inf: nothing found), past [...]: chunks on offer, which with top_k_log says how
    many slots count. Differentiable in scores and scale.
    """
    counts = scores > NEVER
    if config.top_k_log > 0:
        allowed = torch.round(config.top_k_log * past.clamp_min(2).double().log2()).clamp(1, config.top_k)
        counts = counts & (torch.arange(scores.shape[-1], device=scores.device) < allowed[..., None])
    # an empty slot's infinity must not meet the scale: its gradient would be no number
    logits = (scores.masked_fill(~counts, 0.0) * scale).masked_fill(~counts, -1e9)
    return Routing(indices.masked_fill(~counts, -1), logits.softmax(-1) * counts)


def with_neighbours(routing: Routing, config: SubqConfig, last: Tensor | int) -> Routing:
    """Beside every chunk j also j + 1 with j's weight, unless j is the `last` that may be read."""
    if not config.neighbours:
        return routing
    indices, weights = routing
    follows = (indices >= 0) & (indices < last)
    return Routing(
        torch.cat((indices, torch.where(follows, indices + 1, -1)), -1),
        torch.cat((weights, weights * follows), -1),
    )


def shifted(queries: Tensor, units: int) -> Tensor:
    """Queries of chunks [B, n, R] -> of the chunks that use them [B, units, R]: c - 1 asks for c."""
    zero = queries.new_zeros(queries.shape[0], 1, queries.shape[2])
    return torch.cat((zero, queries), 1)[:, :units]


def route(
    queries: Tensor,
    landmarks: Tensor,
    unit_chunks: Tensor,
    config: SubqConfig,
    scale: Tensor | float,
    *,
    cross: Tensor | None = None,
    hidden_from_others: Tensor | None = None,
    forced: Forced | None = None,
    noise: Tensor | None = None,
) -> Routing:
    """Choose for every query of a batch of sequences, by all scores; differentiable in queries and landmarks.

    queries [B, U, R], landmarks [B, n, R], unit_chunks [U]: the chunk that each query stands in. A query is offered
    its own sequence's chunks up to `limits`. Sequences in `cross` (bool [B]) may also be offered chunks of
    others, except those in `hidden_from_others` (bool [B * n]): reading then meets hard distractors. `noise`
    [B, U, B * n] is added for the choice only, never to the weights (GCA's way of exploring).
    """
    batch = queries.shape[0]
    num = landmarks.shape[1]
    flat = landmarks.flatten(0, 1)
    scores = torch.einsum("bur,nr->bun", queries, flat)
    owner = torch.arange(batch, device=flat.device).repeat_interleave(num)
    place = torch.arange(num, device=flat.device).repeat(batch)
    own = owner == torch.arange(batch, device=flat.device)[:, None]  # [B, B * n]
    offered = own[:, None] & (place <= limits(unit_chunks, config.near)[:, None])
    if cross is not None:
        others = ~own & cross[:, None]
        if hidden_from_others is not None:
            others = others & ~hidden_from_others
        offered = offered | others[:, None]
    with torch.no_grad():
        by = scores if noise is None else scores + noise
        by = by.masked_fill(~offered, NEVER)
        if forced is not None and len(forced.rows):
            by = by.flatten(0, 1)
            by[forced.rows[:, None], forced.gold] = 9.0  # above every cosine
            by = by.view_as(scores)
        found, indices = by.topk(min(config.top_k, by.shape[-1]), -1)
    chosen = scores.gather(-1, indices).masked_fill(found == NEVER, NEVER)
    past = offered.sum(-1)
    routing = weigh(chosen, indices, past, config, scale)
    if forced is not None and len(forced.rows):
        routing = _all_weight_on_gold(routing, forced)
    # a neighbour past the sequence's end or too near is not read
    last = torch.where(
        indices // max(num, 1) == torch.arange(batch, device=flat.device)[:, None, None],
        (limits(unit_chunks, config.near) + 1)[:, None]
        + num * torch.arange(batch, device=flat.device)[:, None, None],
        (indices // max(num, 1) + 1) * num - 1,
    )
    return with_neighbours(routing, config, last.clamp_max(batch * num - 1))


def _all_weight_on_gold(routing: Routing, forced: Forced) -> Routing:
    indices, weights = (each.flatten(0, 1) for each in routing)
    gold = (indices[forced.rows][:, :, None] == forced.gold[:, None]).any(-1)
    even = gold / gold.sum(-1, keepdim=True).clamp_min(1)
    weights = weights.index_copy(0, forced.rows, even.to(weights.dtype))
    return Routing(routing.indices, weights.view_as(routing.weights))
