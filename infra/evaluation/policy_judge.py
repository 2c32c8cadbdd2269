"""Methods judged over material with recorded readings: F1 over tokens, paired, without loading anything else.

Imports nothing that a GPU host lacks. All methods choose among the same candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.evaluation.choice_recall import recall, simple_choices
from models.retriever.network import PolicyNetwork
from models.retriever.router import router_scores
from models.retriever.selecting import Chosen, fill, select
from pipeline.tasks.material import Material
from rl.episodes import Readings, Request

GIVE_UP_MARGIN = 1.5


def choose(
    material: Material,
    method: str,
    budget: int,
    *,
    network: PolicyNetwork | None = None,
    stop_bias: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
) -> list[Chosen]:
    """What a method chooses for every question: bm25, dense, hybrid, random, oracle, policy, filled, router.

    `filled` is the policy without STOP. The last three need `network`.
    """
    tables = material.tables
    if method not in ("policy", "filled", "router"):
        return simple_choices(tables, method, budget, seed)
    if network is None:
        raise ValueError(f"network: given none; method {method} needs one")
    if method == "router":
        return fill(tables, router_scores(network, tables, device), budget)
    return select(network, tables, budget, stop_bias=stop_bias, may_stop=method == "policy", device=device)


def judge(
    material: Material,
    rows: npt.NDArray[np.int64],
    chosen: Sequence[Chosen],
    readings: Readings,
    give_up_margin: float = GIVE_UP_MARGIN,
) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    """Figures of a choice (one for each of `rows`, which are rows of the readings), and F1 question by question.

    `f1`: what a session would answer, giving up beyond the margin counted 0; `forced_f1`: made to answer. Percent.
    """
    requests: list[Request] = [
        (int(row), tuple(choice.picks)) for row, choice in zip(rows, chosen, strict=True)
    ]
    outcomes = readings.read(requests)
    f1 = np.array([outcome.quality(give_up_margin) for outcome in outcomes])
    forced = np.array([outcome.f1 for outcome in outcomes])
    figures = recall(material.tables, chosen) | {
        "f1": round(100 * float(f1.mean()), 2),
        "f1_half_width": round(196 * float(f1.std() / max(1, len(f1)) ** 0.5), 2),
        "forced_f1": round(100 * float(forced.mean()), 2),
        "gave_up": round(100 * float(np.mean([outcome.margin > give_up_margin for outcome in outcomes])), 2),
    }
    return figures, forced


def paired(
    ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64], seed: int = 0, draws: int = 2000
) -> dict[str, float]:
    """Mean difference question by question, in points, with its 95% bootstrap interval."""
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(
            f"ours: given {len(ours)} figures with {len(theirs)}; allowed: as many, at least one"
        )
    gap = 100 * (ours - theirs)
    chance = np.random.default_rng(seed)
    means = np.sort(gap[chance.integers(0, len(gap), (draws, len(gap)))].mean(1))
    return {
        "gain": round(float(gap.mean()), 2),
        "low": round(float(means[int(0.025 * draws)]), 2),
        "high": round(float(means[int(0.975 * draws) - 1]), 2),
    }


def stop_bias_for(
    network: PolicyNetwork, material: Material, budget: int, tokens: float, device: str = "cpu"
) -> float:
    """The bias of STOP at which the policy reads at most `tokens` a question on average, and nearly as many.

    Choose it on training questions: on test questions it would be fitted to them.
    """
    low, high = -12.0, 12.0
    for _ in range(9):
        middle = round((low + high) / 2, 3)
        found = select(network, material.tables, budget, stop_bias=middle, device=device)
        mean = float(np.mean([choice.tokens for choice in found]))
        low, high = (middle, high) if mean > tokens else (low, middle)
    return round(high, 3)


def gap_closed(ours: float, simple: float, oracle: float) -> float | None:
    """The share of the way from the best simple method to the oracle; None where there is no way to go."""
    return round((ours - simple) / (oracle - simple), 4) if oracle - simple > 1e-9 else None
