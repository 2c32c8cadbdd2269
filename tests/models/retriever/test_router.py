"""models/retriever/router.py: the scores stay where the mixture has a gradient, so the seed does not decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.retriever import CandidateTable, PolicyNetwork, RetrieverConfig, TableBatch
from models.retriever.choosing import Choosing
from models.retriever.network import as_tensors
from models.retriever.router import router_loss, router_scores, train_router
from models.retriever.table import GOLD

Losses = np.ndarray


def asked(count: int = 96, width: int = 16, seed: int = 0) -> tuple[TableBatch, Losses]:
    """Questions with one candidate that tells, a feature that nearly says which, and what a reader would lose.

    Losses as read on 2026-11-30: about one nat with what tells, six without, as far apart as chance has them.
    """
    chance = np.random.default_rng(seed)
    made, losses = [], np.zeros((count, width), np.float32)
    for row in range(count):
        gold = int(chance.integers(width))
        features = chance.random((width, 4)).astype(np.float32)
        features[:, 0] = chance.normal(-0.5, 0.2, width)
        features[gold, 0] += 0.8
        made.append(
            CandidateTable(
                query=chance.normal(size=8).astype(np.float16),
                vectors=chance.normal(size=(width, 8)).astype(np.float16),
                features=features,
                tokens=np.full(width, 20),
                groups=np.arange(width) // 4,
                heads=np.full(width, 5),
                labels=np.where(np.arange(width) == gold, GOLD, 0).astype(np.int8),
            )
        )
        losses[row] = np.maximum(0.05, chance.normal(6, 2.5) + 1.5 * chance.normal(size=width))
        losses[row, gold] = max(0.02, chance.normal(0.8, 0.8))
    return TableBatch.stack(made, width), losses


def network(seed: int) -> PolicyNetwork:
    """A small policy network of the served form: two layers, dropout."""
    torch.manual_seed(seed)
    return PolicyNetwork(RetrieverConfig(dim=8, num_features=4, width=32, layers=2, heads=2, dropout=0.2))


def firsts(trained: PolicyNetwork, tables: TableBatch) -> float:
    """Share of questions whose best candidate tells."""
    best = router_scores(trained, tables).argmax(1)
    return float((tables.labels[np.arange(len(tables)), best] == GOLD).mean())


LR = 3e-3
"""Three times the rate in use: so small a network then runs off in eighty updates, a whole one in twenty."""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_seed_of_a_router_collapses(seed: int) -> None:
    """Its scores stay within a few nats of each other, and on new questions what tells stands first."""
    tables, losses = asked()
    trained = network(seed)
    curve = train_router(trained, tables, losses, steps=80, batch=32, lr=LR, seed=seed)
    fresh, _ = asked(seed=9)
    assert router_scores(trained, fresh).std(1).mean() < 5
    assert np.mean(curve[-20:]) < 1.5
    assert firsts(trained, fresh) > 0.9


def test_scores_that_nothing_holds_run_off_and_the_order_stays_what_chance_made_it() -> None:
    """How seed 2 collapsed in 2026-11: the whole rate at once, the best few alone, nothing that holds the scores.

    One weight is 1 before the order is right. Whatever the readings lose, the share of it is then 1 too.
    """
    tables, losses = asked()
    trained, chance = network(2).train(), np.random.default_rng(2)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LR, weight_decay=0.02)
    curve = []
    for _ in range(80):
        rows = chance.integers(0, len(tables), 32)
        scores = trained(as_tensors(Choosing(tables, rows, budget=1 << 20).observe()))[0][:, :-1]
        known = torch.from_numpy(losses[rows])
        loss = router_loss(scores, known, torch.ones_like(scores, dtype=torch.bool), 5, 0.5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    assert router_scores(trained, tables).std(1).mean() > 50
    assert np.mean(curve[-20:]) > 4
    assert firsts(trained, tables) < 0.5
