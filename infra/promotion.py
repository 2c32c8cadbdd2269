"""The contest before a promotion: challenger against champion on held-back questions, at equal cost."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.evaluation.policy_judge import paired
from infra.promotion_contenders import Reader, bias_for, contender, reading_of
from infra.registry import CHAMPION, Registry
from models.hf.config import HfConfig
from pipeline.errors import BadData, UsageError
from pipeline.tasks.material import Material

EQUAL_COST = 1.02
"""A challenger may read this many times the champion's tokens, no more."""
LEAST_QUESTIONS = 20
LEAST_BUDGET = 8
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
    as the champion, and serves with that (`stop_bias`). Each is read as it serves: the challenger as it was paid
    for (`reading`: together or apart), the champion as it was promoted; prompts of readings apart count as tokens.
    """
    if by not in ("f1", "recall"):
        raise UsageError(f"--by {by!r}; allowed: f1, recall")
    if budget < LEAST_BUDGET:
        raise UsageError(f"--budget: given {budget}; allowed: {LEAST_BUDGET} tokens or more")
    if limit < 0:
        raise UsageError(f"--limit: given {limit}; allowed: 0 (all) or more")
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
    reader = Reader(part, backbone)
    with tempfile.TemporaryDirectory() as folder:
        new = registry.fetch(version, Path(folder) / "challenger")
        reads = reading_of(new)
        ours = contender(new, reads, part, budget, by, reader, f"version {version}")
        old = None if champion is None else registry.fetch(champion, Path(folder) / "champion")
        theirs = contender(
            old, "together" if old is None else registry.reading, part, budget, by, reader, f"version {champion}"
        )  # fmt: skip
    served = registry.stop_bias if champion is not None else 0.0
    before = float(theirs.tokens(served).mean())
    bias = bias_for(lambda bias: float(ours.tokens(bias).mean()), before)
    after = float(ours.tokens(bias).mean())
    scores, scores_before = ours.scores(bias), theirs.scores(served)
    figures: dict[str, Any] = paired(scores, scores_before) | {
        "by": by,
        "n": len(part),
        "days": days,
        "stop_bias": bias,
        "reading": ours.reading,
        "reading_before": theirs.reading,
        "against": "hybrid" if champion is None else f"version {champion}",
        "tokens": round(after, 1),
        "tokens_before": round(before, 1),
        "score": round(100 * float(scores.mean()), 2),
        "score_before": round(100 * float(scores_before.mean()), 2),
    }
    if figures["gain"] <= 0 or after > EQUAL_COST * before:
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
