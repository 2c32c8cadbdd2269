"""REINFORCE, PPO's loss and generalised advantage estimation in plain PyTorch: what RLlib is compared with.

Shapes: `T` steps of all episodes in a row, `A` actions. An episode ends where `ends` is true; `truncated` ends
are bootstrapped with the value of the state after them, terminated ones are not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def discounted_returns(rewards: Tensor, ends: Tensor, discount: float) -> Tensor:
    """The discounted sum of rewards from each step to its episode's end. All [T]."""
    # plain numbers on the host, in double: a loop over tensors is a launch a step
    paid, last = rewards.tolist(), ends.tolist()
    returns = [0.0] * len(paid)
    running = 0.0
    for step in range(len(paid) - 1, -1, -1):
        running = paid[step] + (0.0 if last[step] else discount * running)
        returns[step] = running
    return torch.tensor(returns, dtype=rewards.dtype, device=rewards.device)


def advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    ends: Tensor,
    truncated: Tensor,
    discount: float,
    trace: float,
) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438) of each step, all [T].

    `next_values` are the values of the states after each step; they count unless the episode terminated there;
    `trace` is lambda.
    """
    paid, last, cut = rewards.tolist(), ends.tolist(), truncated.tolist()
    now, after = values.tolist(), next_values.tolist()
    out = [0.0] * len(paid)
    running = 0.0
    for step in range(len(paid) - 1, -1, -1):
        terminated = last[step] and not cut[step]
        delta = paid[step] + (0.0 if terminated else discount * after[step]) - now[step]
        running = delta + (0.0 if last[step] else discount * trace * running)
        out[step] = running
    return torch.tensor(out, dtype=rewards.dtype, device=rewards.device)


def masked_log_probs(logits: Tensor, legal: Tensor) -> Tensor:
    """Log-probabilities [T, A] over the legal actions; at least one (STOP) must be legal in each row."""
    if not bool(legal.any(dim=-1).all()):
        rows = (~legal.any(dim=-1)).nonzero().flatten().tolist()
        raise ValueError(f"rows {rows[:5]} have no legal action; STOP must always be legal")
    return F.log_softmax(torch.where(legal, logits, -1e9), dim=-1)


def reinforce_loss(log_probs: Tensor, returns: Tensor, baseline: Tensor | None = None) -> Tensor:
    """REINFORCE (Williams 1992): -mean(log pi(a) * (return - baseline)); all [T], no gradient to the baseline."""
    gain = returns if baseline is None else returns - baseline.detach()
    return -(log_probs * gain.detach()).mean()


def ppo_loss(
    new_log_probs: Tensor,
    old_log_probs: Tensor,
    gains: Tensor,
    values: Tensor,
    returns: Tensor,
    entropy: Tensor,
    *,
    clip: float,
    value_weight: float,
    entropy_weight: float,
) -> Tensor:
    """PPO's clipped surrogate (arXiv 1707.06347), squared value error and entropy bonus. All [T]."""
    ratio = (new_log_probs - old_log_probs).exp()
    surrogate = torch.minimum(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains)
    value_error = (values - returns).square()
    return -surrogate.mean() + value_weight * value_error.mean() - entropy_weight * entropy.mean()
