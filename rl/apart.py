"""Readings apart as recorded tables: what each candidate alone was answered with, and rewards made of them.

With every candidate read once alone, what any choice would be answered with is arithmetic
(`models/retriever/trust.py`): learning and judging need no reader any more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.retriever.table import Floats
from models.retriever.trust import UNREAD, SingleReadings, most_trusted
from pipeline.tasks.reading import Spoken
from pipeline.tasks.scores import normalize_answer
from rl.episodes import Outcome, Request
from rl.tables import load_table, save_table

_NUMBERS = ("f1", "loss", "margin", "confidence", "num_tokens")


class SpokenTable:
    """Readings of single candidates of one material, by (row, candidate)."""

    def __init__(self, material: str = "") -> None:
        self.material = material
        self._known: dict[tuple[int, int], Spoken] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, requests: Sequence[Request], said: Sequence[Spoken]) -> None:
        """Keep what was said over requests of one candidate each."""
        for (row, picks), spoken in zip(requests, said, strict=True):
            if len(picks) != 1:
                raise ValueError(f"requests: given {picks} of row {row}; allowed: one candidate each")
            self._known[int(row), int(picks[0])] = spoken

    def knows(self, row: int, pick: int) -> bool:
        """Whether a reading is here."""
        return (row, pick) in self._known

    def text(self, row: int, pick: int) -> str:
        """The answer of a reading."""
        return self._known[row, pick].text

    def save(self, path: Path) -> None:
        """Write the table (npz), whole or not at all."""
        keys = sorted(self._known)
        save_table(
            path,
            self.material,
            keys=np.array(keys, np.int32).reshape(-1, 2),
            numbers=np.array(
                [[getattr(self._known[key], name) for name in _NUMBERS] for key in keys], np.float32
            ).reshape(-1, len(_NUMBERS)),
            texts=np.array("\n".join(self._known[key].text.replace("\n", " ") for key in keys)),
        )

    def load(self, path: Path) -> int:
        """Add a table written by `save`; BadData where it is of another material. Returns its readings."""
        packed = load_table(path, self.material)
        keys, numbers = packed["keys"], packed["numbers"]
        texts = str(packed["texts"]).split("\n")
        if len(keys):
            for (row, pick), row_of, text in zip(keys.tolist(), numbers.tolist(), texts, strict=True):
                f1, loss, margin, confidence, num_tokens = row_of
                self._known[row, pick] = Spoken(f1, loss, margin, confidence, int(num_tokens), text)
        return len(keys)

    def singles(self, num_rows: int, width: int) -> SingleReadings:
        """All of them as tables of `num_rows` questions with `width` candidates."""
        columns = {name: np.full((num_rows, width), np.nan, np.float32) for name in _NUMBERS}
        groups = np.full((num_rows, width), UNREAD, np.int64)
        names: dict[tuple[int, str], int] = {}
        for (row, pick), spoken in self._known.items():
            for name in _NUMBERS:
                columns[name][row, pick] = getattr(spoken, name)
            key = (row, normalize_answer(spoken.text))
            groups[row, pick] = names.setdefault(key, len(names))
        return SingleReadings(
            f1=columns["f1"],
            margin=columns["margin"],
            sure=columns["confidence"],
            lengths=columns["num_tokens"],
            groups=groups,
            loss=columns["loss"],
        )


class ApartReader:
    """A `Reader` of choices read apart: the outcome of the most trusted answer; of nothing, an answer of no worth.

    `logits` [N, K] are a `Combination`'s. LookupError for a candidate that was not read.
    """

    def __init__(self, singles: SingleReadings, logits: Floats) -> None:
        self._singles, self._logits = singles, logits

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcomes, in order; the loss is that of not trusting the answer, in nats."""
        return [self._outcome(row, picks) for row, picks in requests]

    def _outcome(self, row: int, picks: Sequence[int]) -> Outcome:
        if not picks:
            return Outcome(f1=0.0, loss=-math.log(1e-3), margin=0.0)
        groups = self._singles.groups[row, list(picks)]
        if (groups == UNREAD).any():
            raise LookupError(
                f"candidates {[pick for pick, group in zip(picks, groups, strict=True) if group == UNREAD]} of row "
                f"{row} were not read alone; let choices be among those that were (apart_tables)"
            )
        best = most_trusted(self._logits[row, list(picks)].tolist(), groups.tolist())[-1]
        chosen = picks[best.at]
        return Outcome(
            f1=float(self._singles.f1[row, chosen]),
            loss=-math.log(max(best.trust, 1e-3)),
            margin=float(self._singles.margin[row, chosen]),
        )
