"""Choosing with a trained policy: many questions at once, greedily or by sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.retriever.choosing import Choosing
from models.retriever.network import ILLEGAL, PolicyNetwork, as_tensors
from models.retriever.table import Ints, TableBatch


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen for one question, in the order of choosing, and the tokens that it costs."""

    picks: tuple[int, ...]
    tokens: int


@torch.inference_mode()
def select(
    network: PolicyNetwork,
    tables: TableBatch,
    budget: int,
    *,
    stop_bias: float = 0.0,
    may_stop: bool = True,
    max_choices: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 256,
    device: str = "cpu",
) -> list[Chosen]:
    """What the policy reads for every row, within `budget` tokens.

    `stop_bias` is added to STOP's logit: above 0 reads less, below 0 more. With `may_stop` False it fills the
    budget, for comparison with methods that always do. At least one candidate is chosen where one fits.
    Temperature 0 takes the best action, above 0 samples.
    """
    network.eval()
    tables = tables.seen_with(network.config.num_features)
    generator = torch.Generator().manual_seed(seed)
    found: list[Chosen] = []
    for start in range(0, len(tables), batch):
        rows = np.arange(start, min(start + batch, len(tables)))
        # Only a policy that may not stop is held to choose on; the limit of choices ends it in either case.
        fewest = 1 if may_stop else max_choices
        state = Choosing(tables, rows, budget, max_choices, min_choices=fewest)
        while not state.ended.all():
            logits, _ = network(as_tensors(state.observe(), device))
            state.choose(_actions(logits.float().cpu(), stop_bias, temperature, generator))
        found += [
            Chosen(tuple(order), int(read)) for order, read in zip(state.order, state.read, strict=True)
        ]
    return found


@dataclass(frozen=True, slots=True)
class Trail:
    """What a policy that does not stop chooses, and by how much it would rather have stopped before each choice."""

    picks: tuple[int, ...]
    stops: tuple[float, ...]

    def until(self, stop_bias: float) -> tuple[int, ...]:
        """What `select` with this bias of STOP chooses: at least one, up to where STOP would have won."""
        for at, stop in enumerate(self.stops[1:], 1):
            if stop + stop_bias > 0:
                return self.picks[:at]
        return self.picks


@torch.inference_mode()
def trails(
    network: PolicyNetwork,
    tables: TableBatch,
    budget: int | Ints,
    *,
    max_choices: int = 16,
    batch: int = 1024,
    device: str = "cpu",
) -> list[Trail]:
    """One walk a row within its budget that gives what `select` chooses with any bias of STOP (`Trail.until`)."""
    network.eval()
    tables = tables.seen_with(network.config.num_features)
    budgets = np.broadcast_to(np.asarray(budget, np.int64), (len(tables),))
    found: list[Trail] = []
    for start in range(0, len(tables), batch):
        rows = np.arange(start, min(start + batch, len(tables)))
        state = Choosing(tables, rows, budgets[rows], max_choices)
        still = as_tensors(state.observe(), device)
        stops: list[list[float]] = [[] for _ in rows]
        while not state.ended.all():
            moving = {name: torch.as_tensor(array).to(device) for name, array in state.moving().items()}
            logits = network(still | moving)[0].float()
            best, action = logits[:, :-1].max(1)
            # where nothing fits the budget any more STOP alone is legal
            action = torch.where(best > ILLEGAL / 2, action, logits.shape[1] - 1)
            stop = (logits[:, -1] - best).cpu().numpy()
            for at in np.flatnonzero(~state.ended):
                stops[at].append(float(stop[at]))
            state.choose(np.asarray(action.cpu().numpy(), np.int64))
        found += [Trail(tuple(order), tuple(stop)) for order, stop in zip(state.order, stops, strict=True)]
    return found


def fill(
    tables: TableBatch, scores: np.ndarray[Any, Any], budget: int | Ints, max_choices: int = 64
) -> list[Chosen]:
    """The best candidates by fixed `scores` [N, K] that fit the budget: what any ranking chooses, same rules."""
    state = Choosing(tables, np.arange(len(tables)), budget, max_choices, min_choices=max_choices)
    while not state.ended.all():
        legal = state.legal()
        ranked = np.where(legal[:, :-1], scores, -np.inf)
        best: Ints = np.where(legal[:, :-1].any(1), ranked.argmax(1), tables.num_candidates)
        state.choose(best)
    return [Chosen(tuple(order), int(read)) for order, read in zip(state.order, state.read, strict=True)]


def _actions(logits: Tensor, stop_bias: float, temperature: float, generator: torch.Generator) -> Ints:
    logits[:, -1] += stop_bias
    if temperature <= 0:
        return np.asarray(logits.argmax(-1).numpy(), np.int64)
    drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
    return np.asarray(drawn.numpy(), np.int64)
