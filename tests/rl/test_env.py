"""rl/env.py and the rules of choosing: budgets, masks, one reading a step, rewards of both forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retriever import Choosing
from rl.env import ChoosingEnv
from rl.episodes import Readings
from rl.paying import EpisodeConfig
from rl.reward import RewardConfig
from tests.rl.toy import KnowingReader, tables

TABLES = tables(16)


def legal_actions(observed: dict[str, np.ndarray], chance: np.random.Generator) -> np.ndarray:
    """One legal action a row, drawn evenly."""
    drawn = np.where(observed["legal"] > 0.5, chance.random(observed["legal"].shape), -1.0)
    return drawn.argmax(1)


def spelled_out(state: Choosing) -> list[int]:
    """What each choice costs, counted from the tables: every sentence, and every text's head once."""
    found = []
    for row, chosen in zip(state.rows, state.chosen, strict=True):
        picks = np.flatnonzero(chosen)
        heads = {int(TABLES.groups[row, at]): int(TABLES.heads[row, at]) for at in picks}
        found.append(int(TABLES.tokens[row, picks].sum()) + sum(heads.values()))
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 90),
    st.integers(1, 6),
    st.sampled_from(["terminal", "stepwise"]),
)
def test_budget_is_kept_and_nothing_is_chosen_twice(seed: int, budget: int, most: int, form: str) -> None:
    """Over any legal play: no more tokens than the budget, no candidate twice, one reader call a step at most."""
    reader = KnowingReader(TABLES)
    config = EpisodeConfig(
        budget_low=budget, budget_high=budget, max_choices=most, reward=RewardConfig(form=form)
    )
    env = ChoosingEnv(TABLES, Readings(reader), config, num_envs=5, seed=seed)
    observed, _ = env.reset(seed=seed)
    chance = np.random.default_rng(seed)
    for _ in range(12):
        calls = reader.calls
        observed, rewards, terminated, truncated, info = env.step(legal_actions(observed, chance))
        assert reader.calls <= calls + 1
        assert (info["tokens"] <= budget).all()
        assert (info["tokens"] == spelled_out(env._state)).all()
        assert (info["choices"] <= most).all()
        assert not truncated.any()
        assert np.isfinite(rewards).all()
        assert (observed["legal"][:, -1] == 1).all()
        assert (observed["legal"][:, :-1] * observed["choice"][..., 0] == 0).all()
        assert terminated.dtype == bool


def test_an_illegal_action_is_an_error_that_names_the_legal_ones() -> None:
    """Choosing what was chosen already, or padding, never passes in silence."""
    state = Choosing(TABLES, np.array([0]), 200)
    state.choose(np.array([0]))
    with pytest.raises(ValueError, match=r"action: given 0 in episode 0; allowed: .*is STOP"):
        state.choose(np.array([0]))


def test_the_head_of_a_text_is_paid_once() -> None:
    """The second sentence of a text costs its own tokens only."""
    state = Choosing(TABLES, np.array([0]), 500)
    first = int(state.choose(np.array([0]))[0])
    second = int(state.choose(np.array([1]))[0])
    tokens, heads = TABLES.tokens[0], TABLES.heads[0]
    assert (first, second) == (tokens[0] + heads[0], tokens[1])
    assert state.read[0] == first + second


def test_rewards_are_those_of_the_configured_form() -> None:
    """Terminal: quality less the tokens' price, at the end. Stepwise: tokens at once, alpha / loss at the end."""
    row = 3
    gold = int(TABLES.labels[row].argmax())
    one = TABLES.take([row])
    cost = int(one.tokens[0, gold] + one.heads[0, gold])
    for form, want in (
        ("terminal", [0.0, 1.0 - 0.002 * cost + 0.5]),
        ("stepwise", [-0.002 * cost, 0.1 / 0.1 + 0.5]),
    ):
        reward = RewardConfig(form=form, gamma=0.002, beta=0.002, gold_weight=0.5)
        config = EpisodeConfig(budget_low=400, budget_high=400, reward=reward)
        env = ChoosingEnv(one, Readings(KnowingReader(one)), config, num_envs=1)
        env.reset(seed=0)
        paid = [env.step(np.array([action]))[1][0] for action in (gold, one.num_candidates)]
        assert paid == pytest.approx(want)


def test_an_ended_episode_is_reset_by_the_next_step() -> None:
    """NEXT_STEP: after the end one step is ignored, pays nothing, and shows a new question with nothing chosen."""
    env = ChoosingEnv(TABLES, Readings(KnowingReader(TABLES)), EpisodeConfig(), num_envs=2, seed=1)
    env.reset(seed=1)
    stop = TABLES.num_candidates
    _, _, ended, _, _ = env.step(np.array([stop, 0]))
    assert ended.tolist() == [True, False]
    observed, rewards, ended, _, info = env.step(np.array([0, stop]))
    assert rewards[0] == 0.0
    assert ended.tolist() == [False, True]
    assert info["tokens"][0] == 0
    assert observed["choice"][0, :, 0].sum() == 0


def test_a_reader_out_of_reach_truncates_and_pays_nothing() -> None:
    """Episodes that could not be read end as truncated, and are counted."""
    env = ChoosingEnv(TABLES, Readings(None), EpisodeConfig(), num_envs=3)
    env.reset(seed=0)
    _, rewards, terminated, truncated, _ = env.step(np.full(3, TABLES.num_candidates))
    assert truncated.all() and not terminated.any()
    assert (rewards == 0).all()
    assert env.num_unread == 3


def test_every_question_comes_once_before_any_comes_again() -> None:
    """A pass over the questions leaves none out."""
    env = ChoosingEnv(TABLES, Readings(KnowingReader(TABLES)), EpisodeConfig(), num_envs=4)
    env.reset(seed=3)
    seen = list(env._state.rows)
    stop = np.full(4, TABLES.num_candidates)
    while len(seen) < len(TABLES):
        env.step(stop)
        env.step(stop)
        seen += list(env._state.rows)
    assert sorted(seen) == list(range(len(TABLES)))
