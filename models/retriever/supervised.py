"""The warm start: a policy learns from labels which candidate to choose next, and when it has chosen enough.

States are drawn, not only the teacher's: some wrong choices of highly ranked candidates stand before the right
one, so that the policy knows where it is after an error. Targets: any needed candidate not chosen yet (their
probabilities added up), STOP once the chosen ones tell. Labels are relevance (`table.labels`) or minimal
sufficient sets mined from the reader (`rl/minimal_sets.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from models.retriever.choosing import Choosing, sufficient
from models.retriever.network import PolicyNetwork, as_tensors, log_probabilities
from models.retriever.table import Bools, Ints, TableBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedConfig:
    """One warm start."""

    steps: int = field(default=600, metadata={"help": "optimizer steps, at most"})
    batch: int = field(default=64, metadata={"help": "states of a step"})
    lr: float = field(default=1e-3, metadata={"help": "peak learning rate (AdamW)"})
    weight_decay: float = field(default=0.02, metadata={"help": "decoupled weight decay"})
    clip: float = field(default=1.0, metadata={"help": "largest norm of the gradient"})
    budget_low: int = field(default=48, metadata={"help": "least budget trained on, in tokens"})
    budget_high: int = field(default=384, metadata={"help": "largest budget trained on, in tokens"})
    wrong: float = field(default=0.5, metadata={"help": "share of states that begin with wrong choices"})
    stop_weight: float = field(default=1.0, metadata={"help": "weight of states whose target is STOP"})
    vector_noise: float = field(default=0.02, metadata={"help": "noise on the vectors, against overfitting"})
    seed: int = field(default=0, metadata={"help": "order and states"})
    limit_s: float = field(default=math.inf, metadata={"help": "seconds that the run may take"})

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "budget_low"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if self.budget_high < self.budget_low:
            raise ValueError(
                f"budget_high: given {self.budget_high}; allowed: budget_low ({self.budget_low}) or more"
            )
        for name in ("lr", "clip", "limit_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")
        if not 0 <= self.wrong <= 1:
            raise ValueError(f"wrong: given {self.wrong}; allowed: 0 to 1")


def train_supervised(
    network: PolicyNetwork,
    tables: TableBatch,
    config: SupervisedConfig,
    *,
    wanted: Bools | None = None,
    device: str = "cpu",
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train in place on the rows that have something to find; returns one record a step.

    `wanted` [N, K] are the candidates to choose, all of them needed where `tables.needs_all`; default: the best
    label of each row. Raises ValueError where no row has any.
    """
    targets = _wanted(tables) if wanted is None else wanted
    usable = np.flatnonzero(targets.any(1))
    if not len(usable):
        raise ValueError("tables: no row has a candidate to learn from; labels are all 0")
    chance = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    network.to(device).train()
    records: list[dict[str, float]] = []
    started = time.monotonic()
    for step in range(config.steps):
        used = max(step / config.steps, (time.monotonic() - started) / config.limit_s)
        if used >= 1:
            break
        rate = config.lr * min(1.0, (step + 1) / 20) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * used)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = chance.choice(usable, config.batch)
        state, goal = draw_states(tables, rows, targets, config, chance)
        observed = as_tensors(state.observe(), device)
        if config.vector_noise:
            observed["vectors"] = observed["vectors"] + config.vector_noise * torch.randn_like(
                observed["vectors"]
            )
        logits, _ = network(observed)
        loss, right = imitation_loss(logits, torch.from_numpy(goal).to(device), config.stop_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(
                f"the loss is {value} at step {step}; lower the learning rate (given {config.lr})"
            )
        records.append(
            {"step": step, "loss": value, "right": right.item(), "gradient": float(norm), "lr": rate}
        )
        if on_step is not None:
            on_step(records[-1])
    network.eval()
    return records


def imitation_loss(logits: Tensor, goal: Tensor, stop_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Minus the log of the probability of all right actions together, and the share of rows whose best is right.

    `goal` [B, K + 1] bool, STOP last; rows without any right action count nothing.
    """
    legal = goal & (logits > -1e8)
    some = legal.any(-1)
    gained = torch.logsumexp(torch.where(legal, log_probabilities(logits), -1e9), -1)
    weight = torch.where(goal[:, -1], stop_weight, 1.0) * some
    loss = -(gained * weight).sum() / weight.sum().clamp_min(1e-6)
    best = logits.argmax(-1)
    right = (legal.gather(1, best[:, None])[:, 0] & some).float().sum() / some.float().sum().clamp_min(1.0)
    return loss, right


def draw_states(
    tables: TableBatch,
    rows: Ints,
    wanted: Bools,
    config: SupervisedConfig,
    chance: np.random.Generator,
) -> tuple[Choosing, Bools]:
    """States on the way of a teacher that sometimes errs, and the right actions of each [B, K + 1]."""
    budgets = np.exp(
        chance.uniform(math.log(config.budget_low), math.log(config.budget_high + 1), len(rows))
    ).astype(np.int64)
    state = Choosing(tables, rows, np.maximum(1, budgets), max_choices=16)
    width = tables.num_candidates
    targets, needs = wanted[rows], tables.needs_all[rows]
    ranks = tables.features[rows].mean(2)  # a rough order is enough to draw likely errors from
    num_wrong = np.where(chance.random(len(rows)) < config.wrong, chance.integers(1, 5, len(rows)), 0)
    num_right = chance.integers(0, 3, len(rows))
    for turn in range(int((num_wrong + num_right).max(initial=0))):
        legal = state.legal()[:, :width]
        err = turn < num_wrong
        options = legal & np.where(err[:, None], ~targets, targets)
        act = (turn < num_wrong + num_right) & options.any(1) & ~state.ended
        score = np.where(options, 3 * ranks + chance.gumbel(size=ranks.shape), -np.inf)
        picks = np.where(act, score.argmax(1), width)
        _advance(state, picks, act)
    enough = sufficient(targets.astype(np.int8), state.chosen, needs)
    legal = state.legal()
    goal = legal.copy()
    goal[:, :width] &= targets & ~enough[:, None]
    goal[:, width] = enough | ~goal[:, :width].any(1)
    return state, goal


def _advance(state: Choosing, picks: Ints, act: Bools) -> None:
    """Let some episodes choose; the others keep their state (and are not ended by it)."""
    ended = state.ended.copy()
    state.ended = ~act
    state.choose(picks)
    state.ended = np.where(act, state.ended, ended)


def _wanted(tables: TableBatch) -> Bools:
    best = tables.labels.max(1, keepdims=True)
    wanted: Bools = (tables.labels == best) & (best > 0) & tables.present
    return wanted
