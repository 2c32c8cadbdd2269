"""The card of a trained model: what it is, how it was made, how it learned; written by the command that made it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"
POLICY_SAYS = (
    "Chooses which sentences a reader is given for a question, one at a time, and when to stop (docs/policy.md). "
    "Its vectors come from the embedder named below, its features from `pipeline/candidate_features.py`."
)
WARM = ("loss", "right")
LEARNED = (
    "episode_return", "entropy", "stop_rate", "empty_rate", "budget_use", "tokens", "choices", "value_error",
)  # fmt: skip


def write_card(
    folder: Path,
    title: str,
    says: str,
    about: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
    command: str = "",
    points: int = 12,
) -> Path:
    """Write README.md into the model's folder: a sentence, a table of settings, the command, the curve."""
    text = card_text(title, says, about, {"Curve": curve}, command, points)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CARD
    path.write_text(text, encoding="utf-8")
    return path


def card_text(
    title: str,
    says: str,
    about: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    command: str = "",
    points: int = 12,
) -> str:
    """The card: a sentence, a table of settings, the command, and each curve by its name."""
    lines = [f"# {title}", "", says, "", "| what | value |", "| --- | --- |"]
    lines += [f"| {name} | {_shown(value)} |" for name, value in about.items()]
    if command:
        lines += ["", "Made by", "", f"    {command}"]
    for name, curve in curves.items():
        if curve:
            lines += ["", f"{name} (means over equal parts of the run):", "", *_table(curve, points)]
    return "\n".join(lines) + "\n"


def policy_card(
    about: Mapping[str, Any],
    warm: Sequence[Mapping[str, float]],
    learned: Sequence[Mapping[str, float]],
    command: str = "",
) -> str:
    """The card of a policy: how it was begun, how it learned by reward, each as far as there was any."""
    curves = {"Warm start": _numbered(warm, WARM), "Learning by reward": _numbered(learned, LEARNED)}
    return card_text("Retriever policy", POLICY_SAYS, about, curves, command)


def _numbered(curve: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[dict[str, float]]:
    """Some columns of a curve, its rows counted from 1; what is no number is left out."""
    return [
        {"step": float(at), **{name: row[name] for name in names if row.get(name) == row.get(name, math.nan)}}
        for at, row in enumerate(curve, 1)
    ]


def _table(curve: Sequence[Mapping[str, float]], points: int) -> list[str]:
    names = _columns(curve)
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
    for group in _groups(list(curve), points):
        cells = [_mean(group, name) if name != "step" else group[-1]["step"] for name in names]
        lines.append(f"| {' | '.join(_shown(cell) for cell in cells)} |")
    return lines


def _columns(curve: Sequence[Mapping[str, float]]) -> list[str]:
    """The step, then what ever differed from 0, in the order in which it was told."""
    names = list(dict.fromkeys(name for row in curve for name in row))
    return [name for name in names if name == "step" or any(row.get(name, 0) for row in curve)]


def _groups(curve: list[Mapping[str, float]], points: int) -> list[list[Mapping[str, float]]]:
    size = max(1, -(-len(curve) // points))
    return [curve[at : at + size] for at in range(0, len(curve), size)]


def _mean(group: Sequence[Mapping[str, float]], name: str) -> float:
    values = [row[name] for row in group if name in row]
    return sum(values) / len(values) if values else 0.0


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("\n", " ")
