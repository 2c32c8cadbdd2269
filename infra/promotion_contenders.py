"""Who contends for a promotion, each read as a session would read it: together in one prompt, or apart.

A policy says by `reading` in its folder what it was paid for. Read apart, a choice costs every text's head and
every prompt but the first, only what was read before an answer was trusted enough counts, and the answer is that of
the most trusted readings (`models/retriever/trust.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from infra.evaluation.policy_judge import choose, judge
from infra.training.policy_apart import claims_of, prompt_tokens, verified_scores
from models.hf.config import HfConfig
from models.retriever.apart_costs import apart_tables
from models.retriever.choosing import sufficient
from models.retriever.network import PolicyNetwork
from models.retriever.pair_reader import load_pair_reader
from models.retriever.pair_training import PairTexts
from models.retriever.selecting import Chosen, Trail, trails
from models.retriever.storage import load_policy
from models.retriever.trust import most_trusted
from models.retriever.trust_files import trust_beside
from pipeline.errors import BadData, UsageError
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader
from rl.apart import SpokenTable
from rl.episodes import OutcomeReader, Readings

READINGS = ("together", "apart")
Scores = npt.NDArray[np.float64]
APART_READINGS = 8
"""Sentences read alone for a question, at most: `session.apart_readings`."""


class Contender(Protocol):
    """One side of a contest, question by question, for any bias of its STOP."""

    reading: str

    def tokens(self, bias: float) -> Scores:
        """What is read for each question. [N]"""

    def scores(self, bias: float) -> Scores:
        """What comes of it, 0 to 1. [N]"""


class Reader:
    """The reader of both sides, loaded when it is first asked, with what it has read."""

    def __init__(self, part: Material, backbone: HfConfig | None) -> None:
        self.part, self._backbone = part, backbone or HfConfig()

    @cached_property
    def material_reader(self) -> MaterialReader:
        """Reads any choice of the part."""
        from models.hf import HfBackbone
        from models.hf.adapter import adapter_folder
        from pipeline.tasks.reading import voice_of

        voice = voice_of(HfBackbone.load(self._backbone), adapter_folder(self._backbone) is not None)
        return MaterialReader(self.part, voice, want_loss=False)

    @cached_property
    def readings(self) -> Readings:
        """Choices read together, each once."""
        return Readings(OutcomeReader(self.material_reader))

    def prompts(self) -> Any:
        """Tokens of each question's prompt without any text. [N]"""
        voice = self.material_reader.voice
        return prompt_tokens(self.part, lambda text: len(voice.encode(text)), len(voice.begin))


class Together:
    """A policy, or hybrid ranking (`network` None), whose choice is read in one prompt."""

    reading = "together"

    def __init__(
        self, part: Material, budget: int, network: PolicyNetwork | None, reader: Reader, by: str
    ) -> None:
        self._part, self._budget, self._network, self._reader, self._by = part, budget, network, reader, by
        self._chosen: dict[float, list[Chosen]] = {}

    def tokens(self, bias: float) -> Scores:
        """See Contender."""
        return np.array([choice.tokens for choice in self._choices(bias)], np.float64)

    def scores(self, bias: float) -> Scores:
        """See Contender."""
        chosen = self._choices(bias)
        if self._by == "recall":
            return _tells(self._part, [choice.picks for choice in chosen])
        return judge(self._part, np.arange(len(self._part)), chosen, self._reader.readings)[1]

    def _choices(self, bias: float) -> list[Chosen]:
        if bias not in self._chosen:
            method = "hybrid" if self._network is None else "policy"
            self._chosen[bias] = choose(
                self._part, method, self._budget, network=self._network, stop_bias=bias
            )
        return self._chosen[bias]


@dataclass(frozen=True, slots=True)
class _Told:
    """What reading the picks of a walk one by one came to: tokens and F1 of the trusted answer after each.

    `ends` is how many are read before the answer is trusted enough.
    """

    tokens: tuple[int, ...]
    f1: tuple[float, ...]
    ends: int


class Apart:
    """A policy whose choices are read each alone. The whole walk is read once; every bias of STOP is then known."""

    reading = "apart"

    def __init__(
        self, part: Material, budget: int, network: PolicyNetwork, folder: Path, reader: Reader
    ) -> None:
        self._part, self._network, self._reader = part, network, reader
        try:
            self._trust = trust_beside(folder, network.config.num_features)
        except ValueError as error:
            raise BadData(str(error)) from None
        self._prompts = reader.prompts()
        costly = apart_tables(part.tables, part.tables.present, self._prompts)
        self._costs = costly.tokens
        self._walks = trails(network, costly, budget + self._prompts, max_choices=APART_READINGS)
        self._told = self._read()

    def tokens(self, bias: float) -> Scores:
        """See Contender."""
        return np.array([told.tokens[at - 1] if at else 0 for told, at in self._read_until(bias)], np.float64)

    def scores(self, bias: float) -> Scores:
        """See Contender."""
        return np.array([told.f1[at - 1] if at else 0.0 for told, at in self._read_until(bias)], np.float64)

    def _read_until(self, bias: float) -> list[tuple[_Told, int]]:
        """What is known of each question's walk, and how many of its picks are read."""
        return [
            (told, min(len(walk.until(bias)), told.ends))
            for told, walk in zip(self._told, self._walks, strict=True)
        ]

    def _read(self) -> list[_Told]:
        requests = [(row, (pick,)) for row, walk in enumerate(self._walks) for pick in walk.picks]
        spoken = SpokenTable()
        spoken.add(requests, self._reader.material_reader.spoken(requests))
        singles = spoken.singles(len(self._part), self._part.tables.num_candidates)
        verified = None
        if self._trust.verifier is not None:
            verifier, _ = load_pair_reader(self._trust.verifier)
            texts = PairTexts.of(
                verifier,
                [question.text for question in self._part.questions],
                claims_of(self._part, spoken, singles.read),
            )
            every = np.arange(len(self._part))
            verified = np.nan_to_num(verified_scores(verifier, texts, singles, every))
        logits = self._trust.combination.logits(self._part.tables, singles, verified)
        return [
            self._told_by(row, walk, logits[row], singles.groups[row], singles.f1[row])
            for row, walk in enumerate(self._walks)
        ]

    def _told_by(self, row: int, walk: Trail, logits: Any, groups: Any, f1: Any) -> _Told:
        picks = list(walk.picks)
        answers = most_trusted(logits[picks].tolist(), groups[picks].tolist())
        ends = next(
            (at + 1 for at, each in enumerate(answers) if each.trust >= self._trust.enough), len(picks)
        )
        costs = np.cumsum(self._costs[row, picks]) - self._prompts[row]
        return _Told(
            tuple(int(cost) for cost in costs), tuple(float(f1[picks[each.at]]) for each in answers), ends
        )


def contender(
    folder: Path | None, reading: str, part: Material, budget: int, by: str, reader: Reader, name: str = ""
) -> Contender:
    """The policy of a folder as it is read; without one hybrid ranking, read together.

    UsageError where its tables are others, or where it would be judged by what reading apart does not tell.
    """
    if folder is None:
        return Together(part, budget, None, reader, by)
    network, _ = _loaded(folder)
    if network.config.dim != part.tables.dim or network.config.num_features > part.tables.num_features:
        raise UsageError(
            f"{name or folder}: made for {network.config.num_features} features and vectors of "
            f"{network.config.dim}; the material has {part.tables.num_features} and {part.tables.dim}"
        )
    if reading == "together":
        return Together(part, budget, network, reader, by)
    if by == "recall":
        raise UsageError(
            "--by recall: a policy that is read apart answers by the readings it trusts, which recall does not "
            "see; leave --by out (f1)"
        )
    return Apart(part, budget, network, folder, reader)


def reading_of(folder: Path) -> str:
    """How a saved policy was paid for being read; BadData for a word that is no way of reading."""
    _, about = _loaded(folder)
    told = str(about.get("reading", "together"))
    if told not in READINGS:
        raise BadData(f"{folder}: its reading is {told!r}; allowed: {', '.join(READINGS)}")
    return told


def bias_for(tokens_of: Callable[[float], float], most: float) -> float:
    """The bias of STOP at which a mean of at most `most` tokens is read, and nearly as many."""
    low, high = -12.0, 12.0
    for _ in range(9):
        middle = round((low + high) / 2, 3)
        low, high = (middle, high) if tokens_of(middle) > most else (low, middle)
    return round(high, 3)


def _loaded(folder: Path) -> tuple[PolicyNetwork, dict[str, Any]]:
    try:
        return load_policy(folder)
    except ValueError as error:
        raise BadData(str(error)) from None


def _tells(part: Material, chosen: list[tuple[int, ...]]) -> Scores:
    picked = np.zeros(part.tables.present.shape, bool)
    for row, picks in enumerate(chosen):
        picked[row, list(picks)] = True
    return sufficient(part.tables.labels, picked, part.tables.needs_all).astype(np.float64)
