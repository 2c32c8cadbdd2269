"""The rules of choosing, for many questions at once: what each candidate costs now, what is legal, what was read.

An action is a candidate's index, or K for STOP. STOP is always legal. A candidate is legal if it is there, was not
chosen, and fits the budget with its text's head; choosing one that is not is an error, never a silent stop.
"""

from __future__ import annotations

import numpy as np

from models.retriever.table import Bools, Floats, Ints, TableBatch

STATE_SIZE = 5
CHOICE_SIZE = 3
_SCALE = 128.0  # tokens; keeps what the network sees near 1


class Choosing:
    """The state of `B` episodes over the rows of a batch of tables.

    `chosen` [B, K], `read` [B] tokens, `ended` [B]. An episode ends by STOP, or when nothing more is legal.
    """

    def __init__(
        self, tables: TableBatch, rows: Ints, budget: int | Ints, max_choices: int = 8, min_choices: int = 0
    ) -> None:
        self.tables = tables
        self.max_choices = max_choices
        self.min_choices = min_choices
        if max_choices < 1 or not 0 <= min_choices <= max_choices:
            raise ValueError(
                f"max_choices: given {max_choices} with min_choices {min_choices}; "
                "allowed: at least 1, and min_choices from 0 to it"
            )
        self.begin(rows, budget)

    def begin(self, rows: Ints, budget: int | Ints) -> None:
        """Start all episodes anew, on these rows of the tables and these budgets of tokens."""
        self.rows = np.asarray(rows, np.int64)
        count, width = len(self.rows), self.tables.num_candidates
        self.budget = np.broadcast_to(np.asarray(budget, np.int64), (count,)).copy()
        if count and self.budget.min() < 1:
            raise ValueError(f"budget: given {int(self.budget.min())}; allowed: 1 token or more")
        self.chosen = np.zeros((count, width), bool)
        self.paid = np.zeros((count, width), bool)
        self.read = np.zeros(count, np.int64)
        self.ended = np.zeros(count, bool)
        self.order: list[list[int]] = [[] for _ in range(count)]

    def restart(self, at: int, row: int, budget: int) -> None:
        """Start one episode anew."""
        self.rows[at], self.budget[at] = row, budget
        self.chosen[at] = self.paid[at] = False
        self.read[at], self.ended[at], self.order[at] = 0, False, []

    def costs(self) -> Ints:
        """Tokens that each candidate would add now, its text's head included if not paid yet. [B, K]"""
        groups = self.tables.groups[self.rows]
        unpaid = ~np.take_along_axis(self.paid, groups, 1)
        total: Ints = self.tables.tokens[self.rows] + self.tables.heads[self.rows] * unpaid
        return total

    def legal(self) -> Bools:
        """Which actions are legal, STOP last. [B, K + 1]

        Before `min_choices` are chosen STOP is illegal while another choice fits.
        """
        left = (self.budget - self.read)[:, None]
        room = (self.chosen.sum(1) < self.max_choices) & ~self.ended
        fits = self.tables.present[self.rows] & ~self.chosen & (self.costs() <= left) & room[:, None]
        stop = (self.chosen.sum(1) >= self.min_choices) | ~fits.any(1)
        return np.concatenate([fits, stop[:, None]], 1)

    def choose(self, actions: Ints) -> Ints:
        """Take one action an episode; ended episodes stay as they are. Returns tokens added. [B]

        Raises ValueError for an illegal action.
        """
        width = self.tables.num_candidates
        taken = np.asarray(actions, np.int64)
        legal = self.legal()
        live = ~self.ended
        inside = (taken >= 0) & (taken <= width)
        wrong = live & ~(inside & legal[np.arange(len(taken)), np.clip(taken, 0, width)])
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(
                f"action: given {int(taken[at])} in episode {at}; allowed: {np.flatnonzero(legal[at]).tolist()} "
                f"({width} is STOP)"
            )
        added = np.zeros(len(taken), np.int64)
        picks = np.flatnonzero(live & (taken < width))
        if len(picks):
            added[picks] = self.costs()[picks, taken[picks]]
            self.chosen[picks, taken[picks]] = True
            self.paid[picks, self.tables.groups[self.rows[picks], taken[picks]]] = True
            self.read += added
            for at in picks.tolist():
                self.order[at].append(int(taken[at]))
        self.ended |= live & (taken == width)
        self.ended |= ~self.legal()[:, :width].any(1)
        return added

    def observe(self) -> dict[str, Floats | Ints]:
        """What the network sees, all arrays of fixed shape, see `PolicyNetwork.forward`."""
        tables, rows = self.tables, self.rows
        return {
            "query": tables.query[rows],
            "vectors": tables.vectors[rows].astype(np.float32),
            "features": tables.features[rows],
            "present": tables.present[rows].astype(np.float32),
            "words": tables.words[rows],
            **self.moving(),
        }

    def moving(self) -> dict[str, Floats]:
        """What of an observation changes from step to step: choice, state and legal."""
        costs = self.costs()
        left = self.budget - self.read
        paid = np.take_along_axis(self.paid, self.tables.groups[self.rows], 1)
        number = self.chosen.sum(1)
        return {
            "choice": np.stack([self.chosen, paid, costs / _SCALE], 2).astype(np.float32),
            "state": np.stack(
                [
                    left / _SCALE,
                    self.read / _SCALE,
                    number / self.max_choices,
                    np.log2(self.budget) / 8.0,
                    number == 0,
                ],
                1,
            ).astype(np.float32),
            "legal": self.legal().astype(np.float32),
        }

    def holds_gold(self) -> Bools:
        """Whether what was chosen tells: all GOLD candidates where all are needed, else one. [B]

        Where a question has no GOLD candidate, one that holds an answer string counts.
        """
        labels = self.tables.labels[self.rows]
        return sufficient(labels, self.chosen, self.tables.needs_all[self.rows])


def sufficient(labels: np.ndarray, chosen: Bools, needs_all: Bools) -> Bools:  # type: ignore[type-arg]
    """Whether the chosen candidates tell, by their labels. Labels and chosen [B, K], needs_all [B]."""
    best = labels.max(1, initial=0)
    wanted = (labels == best[:, None]) & (best[:, None] > 0)
    found = wanted & chosen
    whole: Bools = np.where(needs_all, (found == wanted).all(1), found.any(1)) & (best > 0)
    return whole
