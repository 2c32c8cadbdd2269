"""Episodes of the plain loops: collected in step, paid in one reading, kept as tensors without repeating tables.

`collect` does both; loops that share a reader `play`, are read together, and are `paid` each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.retriever.choosing import Choosing
from models.retriever.network import PolicyNetwork, entropy, log_probabilities
from models.retriever.table import TableBatch
from rl.episodes import Outcome, Readings, Request
from rl.health import Health, value_fit
from rl.paying import EpisodeConfig, draw_budgets, pay
from rl.reward import step_reward


class Static:
    """What of an observation never changes, once on the device for all rows."""

    def __init__(self, tables: TableBatch, device: str) -> None:
        self.tables, self.device = tables, device
        self.query = torch.from_numpy(tables.query).to(device)
        self.vectors = torch.from_numpy(tables.vectors).to(device)
        self.features = torch.from_numpy(tables.features).to(device)
        self.present = torch.from_numpy(tables.present.astype(np.float32)).to(device)
        self.words = torch.from_numpy(tables.words).to(device)

    def rows(self, rows: Tensor) -> dict[str, Tensor]:
        """The unchanging part of the observations of some rows."""
        return {
            "query": self.query[rows],
            "vectors": self.vectors[rows].float(),
            "features": self.features[rows],
            "present": self.present[rows],
            "words": self.words[rows],
        }


@dataclass(frozen=True, slots=True)
class Rollout:
    """`T` steps, the steps of an episode in a row; `episode` [T] numbers them, `totals` [E] are their returns."""

    rows: Tensor
    choice: Tensor
    state: Tensor
    legal: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    next_values: Tensor
    rewards: Tensor
    ends: Tensor
    episode: Tensor
    totals: Tensor
    health: Health

    def observed(self, static: Static, steps: Tensor) -> dict[str, Tensor]:
        """What the network saw at some steps."""
        at = steps.to(self.rows.device)
        moving = {"choice": self.choice[at], "state": self.state[at], "legal": self.legal[at]}
        return static.rows(self.rows[at]) | moving


@dataclass(frozen=True, slots=True)
class Played:
    """Episodes that have ended and are not paid yet; `requests` are their readings, one each."""

    turns: list[dict[str, Any]]
    rows: Any
    state: Choosing
    stopped: Any
    requests: list[Request]


def collect(
    network: PolicyNetwork,
    static: Static,
    readings: Readings,
    config: EpisodeConfig,
    num_questions: int,
    group: int,
    chance: np.random.Generator,
    generator: torch.Generator,
) -> Rollout:
    """`group` episodes of each of `num_questions` questions with one budget; one reading when all have ended."""
    played = play(network, static, config, num_questions, group, chance, generator)
    return paid_for(played, readings.read(played.requests), config, static.device)


@torch.no_grad()
def play(
    network: PolicyNetwork,
    static: Static,
    config: EpisodeConfig,
    num_questions: int,
    group: int,
    chance: np.random.Generator,
    generator: torch.Generator,
) -> Played:
    """`group` episodes of each of `num_questions` questions with one budget, to their end."""
    tables, device = static.tables, static.device
    drawn = chance.permutation(len(tables))[: min(num_questions, len(tables))]
    if len(drawn) < num_questions:
        drawn = np.concatenate([drawn, chance.integers(0, len(tables), num_questions - len(drawn))])
    rows = np.repeat(drawn, group)
    budgets = np.repeat(draw_budgets(config, chance, num_questions), group)
    state = Choosing(tables, rows, budgets, config.max_choices)
    turns: list[dict[str, Any]] = []
    stopped = np.zeros(len(rows), bool)
    while not state.ended.all():
        live = np.flatnonzero(~state.ended)
        observed = static.rows(torch.from_numpy(rows[live]).to(device))
        for name, array in state.moving().items():
            observed[name] = torch.from_numpy(array[live]).to(device)
        logits, values = network(observed)
        log_probs = log_probabilities(logits)
        actions = torch.multinomial(log_probs.exp().cpu(), 1, generator=generator)[:, 0]
        whole = np.full(len(rows), tables.num_candidates)
        whole[live] = actions.numpy()
        stopped |= ~state.ended & (whole == tables.num_candidates)
        added = state.choose(whole)
        paid = [step_reward(config.reward, int(added[at])) if added[at] else 0.0 for at in live]
        turns.append(
            {
                "at": torch.from_numpy(live),
                "choice": observed["choice"],
                "state": observed["state"],
                "legal": observed["legal"],
                "actions": actions.to(device),
                "log_probs": log_probs.gather(1, actions.to(device)[:, None])[:, 0],
                "values": values.float(),
                "entropy": entropy(logits),
                "rewards": torch.tensor(paid, dtype=torch.float32, device=device),
            }
        )
    requests: list[Request] = [(int(row), tuple(order)) for row, order in zip(rows, state.order, strict=True)]
    return Played(turns, rows, state, stopped, requests)


@torch.no_grad()
def paid_for(played: Played, outcomes: Sequence[Outcome], config: EpisodeConfig, device: str) -> Rollout:
    """The episodes with what their readings pay; `outcomes` are those of `played.requests`, in order."""
    state = played.state
    gold = state.holds_gold()
    final = torch.tensor(
        [
            pay(config, outcome, int(tokens), bool(holds))
            for outcome, tokens, holds in zip(outcomes, state.read, gold, strict=True)
        ],
        dtype=torch.float32,
        device=device,
    )
    return _in_order(played.turns, played.rows, final, state, played.stopped)


def _in_order(
    turns: list[dict[str, Any]], rows: Any, final: Tensor, state: Choosing, stopped: Any
) -> Rollout:
    """The turns of all episodes, put one episode after another."""
    episode = torch.cat([turn["at"] for turn in turns])
    turn_of = torch.cat([torch.full((len(turn["at"]),), at) for at, turn in enumerate(turns)])
    order = torch.argsort(episode * len(turns) + turn_of)
    device = final.device
    place = order.to(device)
    joined = {
        name: torch.cat([turn[name] for turn in turns])[place]
        for name in ("choice", "state", "legal", "actions", "log_probs", "values", "entropy", "rewards")
    }
    episode = episode[order].to(device)
    ends = torch.ones_like(episode, dtype=torch.bool)
    ends[:-1] = episode[1:] != episode[:-1]
    rewards = joined["rewards"].clone()
    rewards[ends] += final[episode[ends]]
    next_values = torch.cat([joined["values"][1:], joined["values"].new_zeros(1)])
    totals = torch.zeros_like(final).index_add_(0, episode, rewards)
    returns_to_go = _to_go(rewards, ends)
    error, explained = value_fit(
        joined["values"].double().cpu().numpy(), returns_to_go.double().cpu().numpy()
    )
    health = Health(
        episode_return=float(totals.mean()),
        entropy=float(joined["entropy"].mean()),
        stop_rate=float(stopped.mean()),
        empty_rate=float((state.chosen.sum(1) == 0).mean()),
        budget_use=float((state.read / state.budget).mean()),
        tokens=float(state.read.mean()),
        choices=float(state.chosen.sum(1).mean()),
        value_error=error,
        explained=explained,
    )
    return Rollout(
        rows=torch.from_numpy(np.asarray(rows)).to(device)[episode],
        choice=joined["choice"],
        state=joined["state"],
        legal=joined["legal"],
        actions=joined["actions"],
        log_probs=joined["log_probs"],
        values=joined["values"],
        next_values=next_values,
        rewards=rewards,
        ends=ends,
        episode=episode,
        totals=totals,
        health=health,
    )


def _to_go(rewards: Tensor, ends: Tensor) -> Tensor:
    from rl.reference import discounted_returns

    return discounted_returns(rewards.cpu(), ends.cpu(), 1.0)
