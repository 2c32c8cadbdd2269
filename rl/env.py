"""The environment: a vector of questions, each choosing what is read, and one reading for all that end together.

A step chooses a candidate or STOP in every episode. Episodes end by STOP, or when nothing more fits their budget.
Rewards are `rl/reward.py`'s. As RLlib's runners want it, an episode that ended is reset by the step after (its
action is ignored there, its reward 0).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from models.retriever.choosing import CHOICE_SIZE, STATE_SIZE, Choosing
from models.retriever.table import TableBatch
from rl.episodes import Readings, Request
from rl.paying import EpisodeConfig, draw_budgets, pay
from rl.reward import step_reward


def observation_space(tables: TableBatch) -> gym.spaces.Dict:
    """The space of one episode's observation, `Choosing.observe` without its batch dimension."""
    width, far = tables.num_candidates, np.inf

    def floats(*shape: int) -> gym.spaces.Box:
        return gym.spaces.Box(-far, far, shape, np.float32)

    return gym.spaces.Dict(
        {
            "query": floats(tables.dim),
            "vectors": floats(width, tables.dim),
            "features": floats(width, tables.num_features),
            "choice": floats(width, CHOICE_SIZE),
            "state": floats(STATE_SIZE),
            "present": gym.spaces.Box(0.0, 1.0, (width,), np.float32),
            "legal": gym.spaces.Box(0.0, 1.0, (width + 1,), np.float32),
            "words": gym.spaces.Box(0, 1 << 30, (width + 1, tables.words.shape[2]), np.int64),
        }
    )


class ChoosingEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` episodes at once over the rows of `tables`; `readings` answers for those that end.

    If the reader cannot be reached (LookupError, TimeoutError, ConnectionError), the episodes that ended in this
    step are truncated without a final reward and counted in `num_unread`.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  # gymnasium's own form

    def __init__(
        self, tables: TableBatch, readings: Readings, config: EpisodeConfig, num_envs: int, seed: int = 0
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: given {num_envs}; allowed: 1 or more")
        self.tables, self.readings, self.config = tables, readings, config
        self.num_envs = num_envs
        self.single_observation_space = observation_space(tables)
        self.single_action_space = gym.spaces.Discrete(tables.num_candidates + 1)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.num_unread = 0
        self._chance = np.random.default_rng(seed)
        self._order = np.zeros(0, np.int64)
        self._state = Choosing(tables, self._rows(num_envs), self._budgets(num_envs), config.max_choices)
        self._to_reset = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start all episodes anew; the same seed gives the same questions and budgets."""
        del options
        first = seed[0] if isinstance(seed, list) else seed
        if first is not None:
            self._chance = np.random.default_rng(first)
            self._order = np.zeros(0, np.int64)
        self._state.begin(self._rows(self.num_envs), self._budgets(self.num_envs))
        self._to_reset[:] = False
        return self._state.observe(), {}

    def step(
        self, actions: Any
    ) -> tuple[
        dict[str, Any], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]
    ]:
        """Take one action an episode; raises ValueError for an illegal one."""
        state, config = self._state, self.config
        fresh = np.flatnonzero(self._to_reset)
        rewards = np.zeros(self.num_envs)
        before = state.ended.copy()
        before[fresh] = True
        taken = np.where(before, self.tables.num_candidates, np.asarray(actions, np.int64))
        added = state.choose(taken)
        ended = state.ended & ~before
        for at in np.flatnonzero(added):
            rewards[at] += step_reward(config.reward, int(added[at]))
        truncated = np.zeros(self.num_envs, bool)
        done = np.flatnonzero(ended)
        if len(done):
            requests: list[Request] = [(int(state.rows[at]), tuple(state.order[at])) for at in done]
            gold = state.holds_gold()
            try:
                outcomes = self.readings.read(requests)
            except (LookupError, TimeoutError, ConnectionError):
                self.num_unread += len(done)
                truncated[done] = True
            else:
                for at, outcome in zip(done, outcomes, strict=True):
                    rewards[at] += pay(config, outcome, int(state.read[at]), bool(gold[at]))
        for at, row, budget in zip(fresh, self._rows(len(fresh)), self._budgets(len(fresh)), strict=True):
            state.restart(int(at), int(row), int(budget))
        self._to_reset = ended.copy()
        terminated = ended & ~truncated
        info = {"tokens": state.read.copy(), "choices": state.chosen.sum(1)}
        return state.observe(), rewards, terminated, truncated, info

    def close(self, **kwargs: Any) -> None:
        """Nothing is held open."""

    def _rows(self, count: int) -> npt.NDArray[np.int64]:
        """The next rows, every question once before any comes again."""
        while len(self._order) < count:
            self._order = np.concatenate([self._order, self._chance.permutation(len(self.tables))])
        taken, self._order = self._order[:count], self._order[count:]
        return taken

    def _budgets(self, count: int) -> npt.NDArray[np.int64]:
        return draw_budgets(self.config, self._chance, count)
