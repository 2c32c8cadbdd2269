"""Recorded readings: what the reader made of a question over a set of candidates, so that nothing is read twice.

A choice is a set: the reader is always given it in reading order. It is kept as a bit mask of the candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadData
from pipeline.tasks.material import Material
from rl.tables import load_table, save_table

Request = tuple[int, tuple[int, ...]]
"""A row of the material and the candidates chosen for it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one reading.

    `f1` (0 to 1) of the answer that the reader gives when it must answer, `loss` in nats a token on the best gold
    answer, `margin` by which it would rather give up (above 0: it gives up).
    """

    f1: float
    loss: float
    margin: float

    def quality(self, give_up_margin: float) -> float:
        """F1 as a session would see it: 0 where giving up is likelier by more than `give_up_margin` nats."""
        return 0.0 if self.margin > give_up_margin else self.f1


class PlainReader(Protocol):
    """Gives (f1, loss, margin) for every request, in order."""

    def outcomes(self, requests: Sequence[Request]) -> list[tuple[float, float, float]]: ...


class Reader(Protocol):
    """Reads many choices at once."""

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        """An outcome for every request, in order."""


class OutcomeReader:
    """A reader of plain figures (`pipeline.tasks.reading.MaterialReader`) as one of outcomes."""

    def __init__(self, reader: PlainReader) -> None:
        self._reader = reader

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcomes, in order."""
        return [Outcome(*found) for found in self._reader.outcomes(requests)]


class Readings:
    """A table of readings over one material; what it lacks is asked of the reader in one call, and kept.

    `num_calls` counts calls to the reader, `num_read` the readings that it did, `num_asked` those asked of us.
    """

    def __init__(self, reader: Reader | None, material: str = "") -> None:
        self._reader, self.material = reader, material
        self._known: dict[tuple[int, int], Outcome] = {}
        self.num_calls = self.num_read = self.num_asked = 0

    def __len__(self) -> int:
        return len(self._known)

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcomes, in order; raises LookupError where one is not recorded and there is no reader."""
        keys = [(row, mask_of(picks)) for row, picks in requests]
        self.num_asked += len(keys)
        missing = list(dict.fromkeys(key for key in keys if key not in self._known))
        if missing:
            if self._reader is None:
                row, mask = missing[0]
                raise LookupError(
                    f"{len(missing)} readings are not recorded, the first of row {row} over {picks_of(mask)}, and "
                    "there is no reader to ask"
                )
            found = self._reader.read([(row, picks_of(mask)) for row, mask in missing])
            self._known.update(zip(missing, found, strict=True))
            self.num_calls += 1
            self.num_read += len(missing)
        return [self._known[key] for key in keys]

    def knows(self, row: int, picks: Iterable[int]) -> bool:
        """Whether a reading is recorded."""
        return (row, mask_of(picks)) in self._known

    def add(self, rows: Sequence[int], masks: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        """Keep readings done elsewhere."""
        self._known.update(zip(zip(map(int, rows), map(int, masks), strict=True), outcomes, strict=True))

    def singles(self, num_rows: int, width: int, name: str) -> npt.NDArray[np.float32]:
        """A figure (f1, loss or margin) of each candidate read alone, NaN where not recorded. [num_rows, width]"""
        out = np.full((num_rows, width), np.nan, np.float32)
        for (row, mask), outcome in self._known.items():
            if mask and mask & (mask - 1) == 0 and row < num_rows:
                out[row, mask.bit_length() - 1] = getattr(outcome, name)
        return out

    def save(self, path: Path) -> None:
        """Write the table (npz), whole or not at all."""
        keys = sorted(self._known)
        found = [self._known[key] for key in keys]
        save_table(
            path,
            self.material,
            rows=np.array([row for row, _ in keys], np.int32),
            masks=np.array([mask for _, mask in keys], np.uint64),
            f1=np.array([outcome.f1 for outcome in found], np.float16),
            loss=np.array([outcome.loss for outcome in found], np.float16),
            margin=np.array([outcome.margin for outcome in found], np.float16),
        )

    def load(self, path: Path) -> int:
        """Add a table written by `save`; raises BadData where it is of another material. Returns its readings."""
        packed = load_table(path, self.material)
        if lacking := [name for name in ("rows", "masks", "f1", "loss", "margin") if name not in packed]:
            raise BadData(f"{path} holds no recorded readings: it lacks {', '.join(lacking)}")
        parts = [packed[name] for name in ("f1", "loss", "margin")]
        rows, masks = packed["rows"], packed["masks"]
        outcomes = [Outcome(float(f), float(n), float(m)) for f, n, m in zip(*parts, strict=True)]
        self.add([int(row) for row in rows], [int(mask) for mask in masks], outcomes)
        return len(outcomes)


def mask_of(picks: Iterable[int]) -> int:
    """A set of candidates (0 to 63) as bits."""
    mask = 0
    for pick in picks:
        mask |= 1 << int(pick)
    return mask


def picks_of(mask: int) -> tuple[int, ...]:
    """The candidates of a mask, ascending."""
    return tuple(at for at in range(mask.bit_length()) if mask >> at & 1)


def fingerprint(material: Material) -> str:
    """What readings of a material are known by: its questions and the texts of their candidates."""
    digest = hashlib.blake2b(digest_size=8)
    for question in material.questions:
        digest.update(question.question_id.encode())
        for sentence in question.sentences:
            digest.update("\0".join(sentence).encode())
    return digest.hexdigest()
