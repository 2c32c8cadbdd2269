"""The card of a trained model: what it is, how it was made, how it learned; written by the command that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"


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
    lines = [f"# {title}", "", says, "", "| what | value |", "| --- | --- |"]
    lines += [f"| {name} | {_shown(value)} |" for name, value in about.items()]
    if command:
        lines += ["", "Made by", "", f"    {command}"]
    if curve:
        names = _columns(curve)
        lines += ["", "Curve (means over equal parts of the run):", "", f"| {' | '.join(names)} |"]
        lines.append(f"| {' | '.join('---' for _ in names)} |")
        for group in _groups(list(curve), points):
            cells = [_mean(group, name) if name != "step" else group[-1]["step"] for name in names]
            lines.append(f"| {' | '.join(_shown(cell) for cell in cells)} |")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CARD
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


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
