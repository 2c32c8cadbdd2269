"""The plain algorithms: exact against their definitions, and able to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rl.reference import advantages, discounted_returns, masked_log_probs, ppo_loss, reinforce_loss


def _episodes(steps: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(steps)
    rewards, values, after = (torch.randn(steps, generator=generator, dtype=torch.float64) for _ in range(3))
    ends = torch.rand(steps, generator=generator) < 0.3
    ends[-1] = True
    truncated = ends & (torch.rand(steps, generator=generator) < 0.5)
    return rewards, values, after, ends, truncated


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize(("discount", "trace"), [(0.9, 0.8), (1.0, 1.0), (0.5, 0.0)])
def test_advantages_equal_the_sum_that_defines_them(steps: int, discount: float, trace: float) -> None:
    """Each advantage is the (discount * lambda)-weighted sum of later errors of its own episode."""
    rewards, values, after, ends, truncated = _episodes(steps)
    terminated = ends & ~truncated
    errors = rewards + discount * after * (~terminated) - values
    expected = torch.zeros(steps, dtype=torch.float64)
    for start in range(steps):
        for step in range(start, steps):
            expected[start] += (discount * trace) ** (step - start) * errors[step]
            if ends[step]:
                break
    given = advantages(rewards, values, after, ends, truncated, discount, trace)
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)


def test_returns_stop_at_the_end_of_an_episode() -> None:
    """A reward never reaches back over an episode's end."""
    rewards = torch.tensor([1.0, 2.0, 4.0])
    returns = discounted_returns(rewards, torch.tensor([False, True, True]), 0.5)
    assert returns.tolist() == [2.0, 2.0, 4.0]


def test_masked_actions_have_no_probability_and_stop_must_be_legal() -> None:
    """Illegal actions are never drawn; a row without a legal one is an error, not a uniform draw."""
    legal = torch.tensor([[True, False, True]])
    probabilities = masked_log_probs(torch.tensor([[0.0, 50.0, 0.0]]), legal).exp()
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.0, 0.5]]))
    with pytest.raises(ValueError, match="rows \\[0\\]"):
        masked_log_probs(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))


def test_ppo_gradient_equals_reinforce_where_nothing_is_clipped() -> None:
    """At the old policy the surrogate's gradient is that of REINFORCE."""
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    actions, gains = torch.tensor([0, 1, 2, 3, 0, 1]), torch.randn(6, dtype=torch.float64)
    chosen = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
    zeros = torch.zeros(6, dtype=torch.float64)
    surrogate = ppo_loss(
        chosen, chosen.detach(), gains, zeros, zeros, zeros, clip=0.2, value_weight=0.0, entropy_weight=0.0
    )
    (by_ppo,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    (by_reinforce,) = torch.autograd.grad(reinforce_loss(chosen, gains), logits)
    torch.testing.assert_close(by_ppo, by_reinforce)


def test_clipping_stops_the_gradient_of_a_ratio_that_went_too_far() -> None:
    """A step that already moved beyond the clip in the paid direction moves no further."""
    old = torch.zeros(1)
    zeros = torch.zeros(1)
    for shift, gain, moves in ((0.5, 1.0, False), (0.5, -1.0, True), (-0.5, -1.0, False), (0.1, 1.0, True)):
        new = torch.tensor([shift], requires_grad=True)
        loss = ppo_loss(
            new,
            old,
            torch.tensor([gain]),
            zeros,
            zeros,
            zeros,
            clip=0.2,
            value_weight=0.0,
            entropy_weight=0.0,
        )
        loss.backward()
        assert bool(new.grad != 0) is moves


def test_reinforce_learns_to_stop_before_the_costly_candidate() -> None:
    """On a bandit of three choices the policy finds the best one, which chance takes a third of the time."""
    logits = torch.zeros(3, requires_grad=True)
    pay = torch.tensor([0.1, 1.0, 0.3])
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        actions = torch.distributions.Categorical(logits=logits).sample((32,))
        log_probs = logits.log_softmax(-1)[actions]
        loss = reinforce_loss(log_probs, pay[actions], pay[actions].mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits.softmax(-1)[1] > 0.9


@pytest.mark.parametrize(("discount", "trace"), [(0.9, 0.8), (1.0, 0.95)])
def test_rllibs_advantages_are_these(discount: float, trace: float) -> None:
    """What `ppo` learns from is exact too: RLlib's, over episodes with a step more, as its connector makes them."""
    from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

    rewards, values, bootstrap, ends, truncated = _episodes(40)
    after = torch.where(ends, bootstrap, values.roll(-1))
    longer: list[tuple[float, float, float, float]] = []  # value, reward, terminated, truncated
    for step in range(40):
        end = bool(ends[step])
        cut = end and bool(truncated[step])
        longer.append((float(values[step]), float(rewards[step]), float(end and not cut), float(cut)))
        if end:
            longer.append((float(bootstrap[step]), 0.0, 1.0, 0.0))
    columns = [np.array(column, np.float64) for column in zip(*longer, strict=True)]
    targets = compute_value_targets(*columns, gamma=discount, lambda_=trace)
    own = np.cumsum(1 + np.concatenate([[0], ends[:-1].numpy().astype(int)])) - 1
    given = advantages(rewards, values, after, ends, truncated, discount, trace)
    np.testing.assert_allclose((targets - columns[0])[own], given.numpy(), rtol=1e-4, atol=1e-5)
    assert truncated.any() and (ends & ~truncated).any()
