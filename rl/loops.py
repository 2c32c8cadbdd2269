"""REINFORCE and PPO in plain PyTorch: the references, and what trains on hosts without Ray.

`T` steps of all episodes of an iteration in a row, `A` actions (candidates and STOP). A checkpoint holds weights,
optimizer and both random generators: a restored loop does the very steps that the undisturbed one would have done.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.formats import FORMAT, KEY, check_format, first_line
from models.retriever.network import PolicyNetwork, entropy, log_probabilities
from models.retriever.table import TableBatch
from rl.episodes import Outcome, Readings
from rl.health import AlarmConfig, run_watched
from rl.paying import EpisodeConfig
from rl.reference import advantages, discounted_returns, ppo_loss, reinforce_loss
from rl.rollout import Played, Rollout, Static, paid_for, play

ALGORITHMS = ("reinforce", "plain_ppo")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """One run."""

    algorithm: str = field(default="plain_ppo", metadata={"help": "reinforce or plain_ppo"})
    episode: EpisodeConfig = field(default_factory=EpisodeConfig, metadata={"help": "see EpisodeConfig"})
    questions: int = field(default=64, metadata={"help": "questions of an iteration"})
    group: int = field(
        default=4, metadata={"help": "episodes a question; REINFORCE's baseline is the others' mean"}
    )
    lr: float = field(default=2e-4, metadata={"help": "learning rate (AdamW)"})
    clip: float = field(default=0.2, metadata={"help": "PPO's clip"})
    epochs: int = field(default=4, metadata={"help": "PPO's passes over an iteration"})
    minibatch: int = field(default=512, metadata={"help": "steps of one PPO update"})
    discount: float = field(default=1.0, metadata={"help": "of later rewards"})
    trace: float = field(default=0.95, metadata={"help": "lambda of the advantage estimation"})
    value_weight: float = field(default=0.5, metadata={"help": "weight of the squared value error"})
    entropy_weight: float = field(default=0.01, metadata={"help": "weight of the entropy bonus"})
    anchor_weight: float = field(
        default=0.0, metadata={"help": "weight of the divergence from the policy that the run began with"}
    )
    max_norm: float = field(default=1.0, metadata={"help": "largest norm of the gradient"})
    seed: int = field(default=0, metadata={"help": "of questions, budgets and actions"})

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: given {self.algorithm!r}; allowed: {', '.join(ALGORITHMS)}")
        for name in ("questions", "epochs", "minibatch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if self.group < 2:
            raise ValueError(f"group: given {self.group}; allowed: 2 or more")
        for name in ("lr", "clip", "max_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")


class PolicyLoop:
    """Trains `network` in place over the rows of `tables`, paid by `readings`."""

    def __init__(
        self,
        network: PolicyNetwork,
        tables: TableBatch,
        readings: Readings,
        config: LoopConfig,
        device: str = "cpu",
    ) -> None:
        self.network, self.readings, self.config, self.device = network.to(device), readings, config, device
        self.tables = tables
        self.static = Static(tables, device)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=0.0)
        self.anchor = copy.deepcopy(network).eval() if config.anchor_weight else None
        self.chance = np.random.default_rng(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.iteration = 0

    def step(self) -> dict[str, float]:
        """One iteration: collect episodes, learn; returns its health and losses."""
        played = self.play()
        return self.learn(played, self.readings.read(played.requests))

    def play(self) -> Played:
        """An iteration's episodes, not paid yet: several loops may have theirs read in one call."""
        self.network.eval()  # no dropout: learner and sampler see the same policy
        config = self.config
        return play(
            self.network, self.static, config.episode, config.questions, config.group, self.chance,
            self.generator,
        )  # fmt: skip

    def learn(self, played: Played, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Learn from what `play` gave, paid by the outcomes of its requests; the iteration's health and losses."""
        config = self.config
        rollout = paid_for(played, outcomes, config.episode, self.device)
        losses = self._reinforce(rollout) if config.algorithm == "reinforce" else self._ppo(rollout)
        self.iteration += 1
        return {"iteration": self.iteration, **asdict(rollout.health), **losses}

    def run(
        self,
        iterations: int,
        *,
        limit_s: float = math.inf,
        alarm: AlarmConfig | None = None,
        on_step: Callable[[dict[str, float]], None] | None = None,
    ) -> tuple[list[dict[str, float]], list[str]]:
        """Iterations until the number, the time or an alarm ends it; their records, and the alarm's reasons."""
        return run_watched(self.step, iterations, limit_s=limit_s, alarm=alarm, on_step=on_step)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        body = {
            KEY: FORMAT,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "anchor": None if self.anchor is None else self.anchor.state_dict(),
            "chance": self.chance.bit_generator.state,
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
        }
        part = path.with_suffix(".part")
        torch.save(body, part)
        os.replace(part, path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same configuration; ValueError where it is damaged or a later one."""
        try:
            body: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} cannot be read ({first_line(error)}); begin again without it") from None
        check_format(body, path)
        self.network.load_state_dict(body["network"])
        self.optimizer.load_state_dict(body["optimizer"])
        if self.anchor is not None and body["anchor"] is not None:
            self.anchor.load_state_dict(body["anchor"])
        self.chance.bit_generator.state = body["chance"]
        self.generator.set_state(body["generator"].cpu())
        self.iteration = int(body["iteration"])

    def _reinforce(self, rollout: Rollout) -> dict[str, float]:
        """One step on all episodes; the baseline is the mean return of the question's other episodes."""
        config = self.config
        returns = discounted_returns(rollout.rewards, rollout.ends, config.discount)
        totals = rollout.totals
        group = totals.reshape(-1, config.group)
        others = (group.sum(1, keepdim=True) - group) / (config.group - 1)
        baseline = others.reshape(-1)[rollout.episode]
        # What was paid before a step is no merit of it: the return to go is compared with the others' whole return
        # less what this episode had already been paid.
        paid = totals[rollout.episode] - returns if config.discount == 1.0 else 0.0
        total, entropies, norm = 0.0, 0.0, 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for rows in torch.split(torch.arange(len(returns)), config.minibatch):
            share = len(rows) / len(returns)
            logits, values = self.network(rollout.observed(self.static, rows))
            chosen = _of(log_probabilities(logits), rollout.actions[rows])
            spread = entropy(logits)
            start = baseline - paid
            loss = reinforce_loss(chosen, returns[rows], start[rows])
            loss = loss - config.entropy_weight * spread.mean() + self._anchored(logits, rollout, rows)
            loss = loss + config.value_weight * (values - returns[rows]).square().mean()
            (loss * share).backward()  # type: ignore[no-untyped-call]
            total, entropies = total + loss.item() * share, entropies + spread.mean().item() * share
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), config.max_norm))
        self.optimizer.step()
        return {"loss": total, "gradient": norm, "divergence": 0.0}

    def _ppo(self, rollout: Rollout) -> dict[str, float]:
        config = self.config
        gains = advantages(
            rollout.rewards, rollout.values, rollout.next_values, rollout.ends,
            torch.zeros_like(rollout.ends), config.discount, config.trace,
        )  # fmt: skip
        returns = gains + rollout.values
        gains = (gains - gains.mean()) / (gains.std() + 1e-6)
        losses, norms, moved = [], [], []
        for _ in range(config.epochs):
            order = torch.randperm(len(returns), generator=self.generator)
            for rows in torch.split(order, config.minibatch):
                logits, values = self.network(rollout.observed(self.static, rows))
                chosen = _of(log_probabilities(logits), rollout.actions[rows])
                loss = ppo_loss(
                    chosen, rollout.log_probs[rows], gains[rows], values, returns[rows], entropy(logits),
                    clip=config.clip, value_weight=config.value_weight, entropy_weight=config.entropy_weight,
                )  # fmt: skip
                loss = loss + self._anchored(logits, rollout, rows)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                norms.append(float(nn.utils.clip_grad_norm_(self.network.parameters(), config.max_norm)))
                self.optimizer.step()
                losses.append(loss.item())
                moved.append(float((rollout.log_probs[rows] - chosen.detach()).mean()))
        return {
            "loss": float(np.mean(losses)),
            "gradient": float(np.mean(norms)),
            "divergence": float(np.mean(moved)),
        }

    def _anchored(self, logits: Tensor, rollout: Rollout, rows: Tensor) -> Tensor:
        """The divergence from the policy that the run began with, weighted."""
        if self.anchor is None:
            return logits.new_zeros(())
        with torch.no_grad():
            old, _ = self.anchor(rollout.observed(self.static, rows))
        ours, first = log_probabilities(logits), log_probabilities(old)
        return self.config.anchor_weight * (ours.exp() * (ours - first).clamp(-50, 50)).sum(-1).mean()


def _of(log_probs: Tensor, actions: Tensor) -> Tensor:
    return log_probs.gather(1, actions[:, None])[:, 0]
