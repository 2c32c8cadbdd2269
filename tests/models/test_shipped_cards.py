"""What ships is small, and its cards tell how it came about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "models" / "weights"
SHIPPED = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__")
MOST_BYTES = 100_000_000


def test_all_weights_together_are_small() -> None:
    """Under 100 MB: the repository carries them."""
    assert {"subq", "reader-lora", "retriever"} <= set(SHIPPED)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < MOST_BYTES


@pytest.mark.parametrize("name", SHIPPED)
def test_each_card_tells_command_data_seeds_curve_and_terms(name: str) -> None:
    """So that another could make it again, and knows what it stands under."""
    told = (FOLDER / name / "README.md").read_text(encoding="utf-8").lower()
    assert "python -m infra.training" in told or "python3 -m infra.training" in told
    assert all(word in told for word in ("seed", "curve", "trained"))
    assert "terms" in told or "licence" in told


@pytest.mark.parametrize("card", sorted(FOLDER.rglob("README.md")), ids=lambda path: path.parent.name)
def test_each_command_of_a_card_can_still_be_given(card: Path) -> None:
    """Its module is there and knows every option: who wants to make the weights again need not search."""
    told = card.read_text(encoding="utf-8")
    for module, given in re.findall(r"-m (infra\.[\w.]+)((?:(?!`| -m |\n\n).)*)", told, re.DOTALL):
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert path.is_file(), f"{card}: {module} is no module"
        known = set(re.findall(r'"(--[a-z][\w-]*)"', path.read_text(encoding="utf-8")))
        options = set(re.findall(r"(?<!\S)--[a-z][\w-]*", given))
        assert options <= known, f"{card}: {module} does not know {sorted(options - known)}"
