"""Contests: each policy is read as it serves, and pays for what is read of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infra import promotion_contenders as contenders
from infra.promotion import NotBetter, contest
from models.retriever import load_policy, save_policy
from models.retriever.table import GOLD
from models.retriever.trust import Combination
from models.retriever.trust_files import put_trust
from pipeline.errors import BadData, UsageError
from pipeline.tasks.material import Material
from pipeline.tasks.reading import Spoken
from tests.infra.training.learning_case import material
from tests.pipeline.session.test_policy_chooser import policy

QUESTIONS = 40
BY_MARGIN = Combination(("margin",), (4.0,), 0.0)
"""It trusts the reading that would rather not give up."""


class _Misled:
    """A reader that is right where it reads the telling sentence alone, and by whatever stands beside it misled."""

    voice = SimpleNamespace(encode=lambda text: [0] * len(text), begin=(0,))

    def __init__(self, part: Material) -> None:
        self._part = part
        self.alone: list[tuple[int, int]] = []

    def _tells(self, row: int, pick: int) -> bool:
        return bool(self._part.tables.labels[row, pick] == GOLD)

    def outcomes(self, requests: Sequence[tuple[int, tuple[int, ...]]]) -> list[tuple[float, float, float]]:
        """F1, loss, margin of choices read together."""
        right = [len(picks) == 1 and self._tells(row, picks[0]) for row, picks in requests]
        return [(float(each), 0.0, -1.0) for each in right]

    def spoken(self, requests: Sequence[tuple[int, tuple[int, ...]]]) -> list[Spoken]:
        """What is said over each sentence alone: it would give up over all but the telling one."""
        found = []
        for row, (pick,) in requests:
            self.alone.append((row, pick))
            right = self._tells(row, pick)
            text = self._part.questions[row].answers[0] if right else f"other {pick}"
            found.append(Spoken(float(right), 0.0, -4.0 if right else 4.0, -0.1, 2, text))
        return found


class _Shelf:
    """Versions by number, one of which may be the champion."""

    def __init__(
        self, folders: dict[int, Path], champion: int | None = None, reading: str = "together"
    ) -> None:
        self._folders, self._champion, self.reading = folders, champion, reading
        self.stop_bias = 0.0

    def version_of(self, alias: str) -> int | None:
        """The champion."""
        return self._champion

    def fetch(self, version: int, target: Path) -> Path:
        """A version's folder."""
        return self._folders[version]


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Held-back questions, and the reader that is easily misled in the place of the real one."""
    made = Material.load(material(tmp_path / "made", count=QUESTIONS))
    questions = tuple(replace(question, split="test") for question in made.questions)
    Material(questions, made.tables).save(tmp_path / "held", {})
    monkeypatch.setattr(
        contenders.Reader,
        "material_reader",
        property(lambda self: self.__dict__.setdefault("_misled", _Misled(self.part))),
    )
    return tmp_path / "held"


def paid(folder: Path, seed: int, dim: int, reading: str, enough: float = 1.0) -> Path:
    """A policy that was paid for being read so, with the trust that goes with it."""
    made = policy(folder, seed, dim=dim)
    network, about = load_policy(made)
    with np.errstate(all="ignore"):
        network.stop[-1].bias.data.fill_(0.0)  # low enough that STOP can be moved beyond it
        network.prior.weight.data.mul_(0.1)
    save_policy(network, made, {**about, "reading": reading})
    if reading == "apart":
        put_trust(made, BY_MARGIN, enough, None, network.config.num_features)
    return made


def test_a_policy_is_read_as_it_was_paid_for(held: Path, tmp_path: Path) -> None:
    """The same weights win where they are read apart, as they were paid for, and lose where they are not."""
    dim = Material.load(held).tables.dim
    apart = paid(tmp_path / "apart", 3, dim, "apart")
    together = paid(tmp_path / "together", 3, dim, "together")
    # prompts count by the letter here: room for several of them
    won = contest(_shelf({1: apart}), 1, held, budget=900, days=0)
    assert (won["reading"], won["reading_before"]) == ("apart", "together")
    assert won["gain"] > 20 and won["tokens"] <= 1.02 * won["tokens_before"]
    with pytest.raises(NotBetter, match="does not beat hybrid"):
        contest(_shelf({1: together}), 1, held, budget=900, days=0)


def test_a_champion_contends_as_it_was_promoted(held: Path, tmp_path: Path) -> None:
    """Promoted to be read apart it is as good as itself; promoted to be read together it is beaten by itself."""
    dim = Material.load(held).tables.dim
    apart = paid(tmp_path / "apart", 3, dim, "apart")
    shelf = {1: apart, 2: apart}
    won = contest(_shelf(shelf, champion=1, reading="together"), 2, held, budget=900, days=0)
    assert won["reading_before"] == "together" and won["gain"] > 20
    with pytest.raises(NotBetter, match="does not beat version 1"):
        contest(_shelf(shelf, champion=1, reading="apart"), 2, held, budget=900, days=0)


def test_reading_apart_pays_its_prompts_and_ends_when_it_is_trusted(held: Path, tmp_path: Path) -> None:
    """Every further prompt and head counts; once an answer is trusted enough nothing more is read or paid."""
    part = Material.load(held)
    rows = np.arange(len(part))
    reader = contenders.Reader(part, None)
    all_of_it: Any = contenders.Apart(
        part, 2000, *_opened(paid(tmp_path / "all", 3, part.tables.dim, "apart")), reader
    )
    prompts = reader.prompts()
    whole = all_of_it.tokens(-1000.0)
    for row in rows:
        picks = all_of_it._walks[row].picks
        assert set(picks) == set(
            np.flatnonzero(part.tables.present[row])
        )  # room for all, and STOP moved away
        text = part.tables.tokens[row, list(picks)].sum() + part.tables.heads[row, list(picks)].sum()
        assert whole[row] == text + (len(picks) - 1) * prompts[row]
    assert all_of_it.scores(-1000.0).mean() == 1.0
    ended: Any = contenders.Apart(
        part, 2000, *_opened(paid(tmp_path / "ended", 3, part.tables.dim, "apart", enough=0.6)), reader
    )
    shorter = ended.tokens(-1000.0)
    assert (shorter <= whole).all() and shorter.sum() < whole.sum()
    assert ended.scores(-1000.0).mean() == 1.0
    assert (all_of_it.tokens(1000.0) < whole).all()  # STOP at once: one sentence
    assert (
        len(set(reader.material_reader.alone)) == len(reader.material_reader.alone) // 2
    )  # each once a contender


def test_what_reading_apart_cannot_be_judged_by_is_refused(held: Path, tmp_path: Path) -> None:
    """Recall does not see which answer is trusted; a reading that is none, and a broken trust, are named."""
    dim = Material.load(held).tables.dim
    apart = paid(tmp_path / "apart", 3, dim, "apart")
    with pytest.raises(UsageError, match="leave --by out"):
        contest(_shelf({1: apart}), 1, held, by="recall", days=0)
    (apart / "trust.json").write_text(json.dumps({"names": ["pair"], "weights": [1.0], "constant": 0.0}))
    with pytest.raises(BadData, match="weighs pair"):
        contest(_shelf({1: apart}), 1, held, days=0)
    network, about = load_policy(apart)
    save_policy(network, apart, {**about, "reading": "aloud"})
    with pytest.raises(BadData, match="'aloud'; allowed: together, apart"):
        contest(_shelf({1: apart}), 1, held, days=0)


def _shelf(*given: Any, **more: Any) -> Any:
    return _Shelf(*given, **more)


def _opened(folder: Path) -> tuple[Any, Path]:
    return load_policy(folder)[0], folder
