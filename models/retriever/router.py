"""A differentiable softmax router, the comparison that learns without sampling (as GCA routes, arXiv 2410.01651).

Each candidate is read alone once; the router's weights over the best k mix those readings, and the loss of the
mixture trains the scores: -log sum_c w_c exp(-loss_c). It has no state, no STOP and no notion of what two
candidates bring together, which is what the pointer policy adds.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from models.retriever.choosing import Choosing
from models.retriever.network import PolicyNetwork, as_tensors
from models.retriever.table import Ints, TableBatch


def router_loss(scores: Tensor, losses: Tensor, present: Tensor, top: int = 8, noise: float = 0.0) -> Tensor:
    """Mean loss of the mixture of the best `top` candidates by score. All [B, K]; `losses` in nats.

    `noise` scales Gumbel noise on the choice of the best alone: weights come from the noise-free scores.
    """
    masked = torch.where(present, scores, -1e9)
    drawn = masked - noise * torch.log(-torch.log(torch.rand_like(masked).clamp(1e-9, 1 - 1e-7)))
    best = torch.where(present, drawn, -1e9).topk(min(top, scores.shape[1]), dim=1).indices
    weights = F.log_softmax(masked.gather(1, best), 1)
    return -torch.logsumexp(weights - losses.gather(1, best), 1).mean()


def train_router(
    network: PolicyNetwork,
    tables: TableBatch,
    losses: npt.NDArray[np.float32],
    *,
    steps: int = 600,
    batch: int = 64,
    lr: float = 1e-3,
    top: int = 48,
    noise: float = 0.5,
    held: float = 0.01,
    seed: int = 0,
    device: str = "cpu",
) -> list[float]:
    """Train the scores of `network` in place on the reader's loss of each candidate alone [N, K]; a loss a step.

    `held` weighs the mean square of the scores, as ST-MoE's router z-loss holds its logits (arXiv 2202.08906); the
    rate rises over twenty updates and falls along a cosine. Without them scores run off before their order is
    right: where one weight is 1, the share of the loss is 1 too and nothing turns back (docs/log.md, 2026-12-01).
    `top` under all candidates slows it: in most questions what tells is not among the best of a new network.
    """
    if losses.shape != tables.present.shape:
        raise ValueError(f"losses: given {losses.shape}; allowed: one a candidate, {tables.present.shape}")
    chance = np.random.default_rng(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.02)
    network.to(device).train()
    curve = []
    for step in range(steps):
        rate = lr * min(1.0, (step + 1) / 20) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = chance.integers(0, len(tables), batch)
        scores = _scores(network, tables, rows, device)
        present = torch.from_numpy(tables.present[rows]).to(device)
        known = torch.from_numpy(np.ascontiguousarray(losses[rows], np.float32)).to(device)
        loss = router_loss(scores, known, present, top, noise)
        drawn_in = held * (scores.square() * present).sum() / present.sum().clamp_min(1)
        optimizer.zero_grad(set_to_none=True)
        (loss + drawn_in).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    network.eval()
    return curve


@torch.inference_mode()
def router_scores(
    network: PolicyNetwork, tables: TableBatch, device: str = "cpu", batch: int = 256
) -> npt.NDArray[np.float32]:
    """The router's score of every candidate [N, K], for `selecting.fill`."""
    network.eval()
    tables = tables.seen_with(network.config.num_features)
    parts = [
        _scores(network, tables, np.arange(at, min(at + batch, len(tables))), device).float().cpu().numpy()
        for at in range(0, len(tables), batch)
    ]
    return np.concatenate(parts)


def _scores(network: PolicyNetwork, tables: TableBatch, rows: Ints, device: str) -> Tensor:
    """Scores as if nothing were chosen and every candidate fitted."""
    state = Choosing(tables, rows, budget=1 << 20)
    logits: Tensor = network(as_tensors(state.observe(), device))[0]
    return logits[:, :-1]
