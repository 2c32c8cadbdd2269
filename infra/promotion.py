"""The contest before a promotion: challenger against champion on held-back questions, at equal cost."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.evaluation.policy_judge import choose, judge, paired, stop_bias_for
from infra.registry import CHAMPION, Registry
from models.hf.config import HfConfig
from models.retriever.choosing import sufficient
from models.retriever.network import PolicyNetwork
from models.retriever.selecting import Chosen
from models.retriever.storage import load_policy
from pipeline.errors import BadData, UsageError
from pipeline.tasks.material import Material
from rl.episodes import OutcomeReader, Readings

EQUAL_COST = 1.02
"""A challenger may read this many times the champion's tokens, no more."""
LEAST_QUESTIONS = 20
WEEK = 7
"""Days of news that a contest is held over where nothing else is asked for."""


class NotBetter(BadData):
    """The challenger does not beat what serves now; nothing was changed."""


def contest(
    registry: Registry, version: int, data: Path, *,
    budget: int = 128, by: str = "f1", limit: int = 0, days: int | None = None,
    backbone: HfConfig | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The figures of a won contest; raises NotBetter (with them) where the challenger does not win.

    It is held over the questions told by the newest `days` days of the material's news (0: over all); None: over
    the freshest week where anything is dated, else over all. The challenger's STOP is moved until it reads as much
    as the champion, and serves with that (`stop_bias`).
    """
    if by not in ("f1", "recall"):
        raise UsageError(f"--by {by!r}; allowed: f1, recall")
    material = Material.load(data)
    rows = material.rows(answerable=True)
    held = np.array([at for at in rows if material.questions[at].split != "train"], np.int64)
    dates = [_told_on(material, int(row)) for row in held]
    if days is None:
        days = WEEK if any(dates) else 0
    if days:
        held = held[freshest(dates, days, data)]
    held = held[: limit or None]
    if len(held) < min(LEAST_QUESTIONS, limit or LEAST_QUESTIONS):
        told = f" of its last {days} days; take more (--days {2 * days}), or all (--days 0)" if days else ""
        raise UsageError(
            f"{data}: at least {LEAST_QUESTIONS} held-back questions with answers are needed, there are "
            f"{len(held)}{told}"
        )
    part = material.take(held)
    champion = registry.version_of(CHAMPION)
    with tempfile.TemporaryDirectory() as folder:
        ours = _network(registry.fetch(version, Path(folder) / "challenger"), part)
        theirs = (
            None if champion is None else _network(registry.fetch(champion, Path(folder) / "champion"), part)
        )
    served = registry.stop_bias if theirs is not None else 0.0
    before = choose(part, "hybrid" if theirs is None else "policy", budget, network=theirs, stop_bias=served)
    bias = stop_bias_for(ours, part, budget, _tokens(before))
    after = choose(part, "policy", budget, network=ours, stop_bias=bias)
    old, new = _scores(part, before, after, by, backbone)
    figures: dict[str, Any] = paired(new, old) | {
        "by": by,
        "n": len(part),
        "days": days,
        "stop_bias": bias,
        "against": "hybrid" if champion is None else f"version {champion}",
        "tokens": round(_tokens(after), 1),
        "tokens_before": round(_tokens(before), 1),
        "score": round(100 * float(new.mean()), 2),
        "score_before": round(100 * float(old.mean()), 2),
    }
    if figures["gain"] <= 0 or _tokens(after) > EQUAL_COST * _tokens(before):
        error = NotBetter(
            f"version {version} does not beat {figures['against']} at equal cost: {by} {figures['score']} at "
            f"{figures['tokens']} tokens against {figures['score_before']} at {figures['tokens_before']} over "
            f"{len(part)} questions{f' of the newest {days} days' if days else ''}; nothing was changed"
        )
        error.figures = figures  # type: ignore[attr-defined]
        raise error
    return figures


def freshest(dates: Sequence[str], days: int, data: Path) -> npt.NDArray[np.int64]:
    """The places of those dates (YYYY-MM-DD…, empty: unknown) that lie within the last `days` days of them."""
    if days < 1:
        raise UsageError(f"--days: given {days}; allowed: 1 or more, or 0 for all questions")
    known = {at: date.fromisoformat(day[:10]) for at, day in enumerate(dates) if day}
    if not known:
        raise UsageError(f"{data}: no held-back question is told by dated news; leave --days out")
    first = max(known.values()) - timedelta(days=days - 1)
    return np.array([at for at, day in known.items() if day >= first], np.int64)


def _told_on(material: Material, row: int) -> str:
    """The newest date among the sentences that tell; empty where they have none."""
    labels = material.tables.labels[row]
    sentences = material.questions[row].sentences
    return max((sentences[at][1] for at in np.flatnonzero(labels > 0) if at < len(sentences)), default="")


def _network(folder: Path, part: Material) -> PolicyNetwork:
    try:
        network, _ = load_policy(folder)
    except ValueError as error:
        raise BadData(str(error)) from None
    if network.config.dim != part.tables.dim or network.config.num_features > part.tables.num_features:
        raise UsageError(
            f"{folder}: made for {network.config.num_features} features and vectors of {network.config.dim}; the "
            f"material has {part.tables.num_features} and {part.tables.dim}"
        )
    return network


def _scores(
    part: Material, before: list[Chosen], after: list[Chosen], by: str, backbone: HfConfig | None
) -> tuple[Any, Any]:
    """Scores question by question, of the choice before and after."""
    if by == "recall":
        return tuple(_tells(part, chosen) for chosen in (before, after))  # type: ignore[return-value]
    from models.hf import HfBackbone
    from models.hf.adapter import adapter_folder
    from pipeline.tasks.reading import MaterialReader, voice_of

    config = backbone or HfConfig()
    voice = voice_of(HfBackbone.load(config), adapter_folder(config) is not None)
    readings = Readings(OutcomeReader(MaterialReader(part, voice, want_loss=False)))
    every = np.arange(len(part))
    return judge(part, every, before, readings)[1], judge(part, every, after, readings)[1]


def _tells(part: Material, chosen: list[Chosen]) -> Any:
    picked = np.zeros(part.tables.present.shape, bool)
    for row, choice in enumerate(chosen):
        picked[row, list(choice.picks)] = True
    return sufficient(part.tables.labels, picked, part.tables.needs_all).astype(float)


def _tokens(chosen: list[Chosen]) -> float:
    return float(np.mean([choice.tokens for choice in chosen]))
