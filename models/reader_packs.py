"""Readings packed into rows of one fixed length: which go together, and a step of them as tensors.

Shapes: `R` rows of `L` tokens, `S` readings of a pack, `A` answer places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.reader_training import Ints, ReadingRows

NONE = -1


@dataclass(frozen=True, slots=True)
class Pack:
    """A step's readings in fixed shapes.

    `ids`, `positions`, `owner` [R, L]: token, place in its reading, which reading of the row. `starts` [S + 1]:
    where each reading begins in the flattened rows, padding being readings of its own. `places` [A]: flattened
    places whose next token, `targets` [A], belongs to an answer; `weights` [A]: 0 where the place is a filler.
    `avoid` [A]: a token that should not come there, or -1.
    """

    ids: Tensor
    positions: Tensor
    owner: Tensor
    starts: Tensor
    places: Tensor
    targets: Tensor
    weights: Tensor
    avoid: Tensor

    def to(self, device: str) -> Pack:
        """The pack on a device."""
        moved = (getattr(self, name) for name in self.__slots__)
        return Pack(*(tensor.to(device, non_blocking=True) for tensor in moved))


@dataclass(frozen=True, kw_only=True, slots=True)
class PackShape:
    """The shapes that all packs of a run share."""

    rows: int = 32
    length: int = 1024
    readings: int = 640
    answers: int = 3072

    def __post_init__(self) -> None:
        for name in ("rows", "length", "readings", "answers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")


def plan_packs(rows: ReadingRows, chosen: Ints, shape: PackShape, seed: int) -> list[list[list[int]]]:
    """The chosen rows dealt to packs: packs of rows of readings, in random order; every chosen row once.

    Best fit, longest first within a window of readings drawn at random, so that lengths mix. Raises ValueError for
    a reading that is longer than a row, or whose answer is longer than all answers of a pack may be.
    """
    lengths = rows.lengths
    if len(chosen) and int(lengths[chosen].max()) > shape.length:
        raise ValueError(
            f"a reading has {int(lengths[chosen].max())} tokens; rows hold {shape.length}: leave it out, or give "
            "longer rows"
        )
    chance = np.random.default_rng(seed)
    order = chance.permutation(chosen)
    window = max(1, shape.rows * shape.length // max(1, int(lengths[chosen].mean()) if len(chosen) else 1))
    filled: list[list[int]] = []
    for start in range(0, len(order), 2 * window):
        filled += _best_fit(order[start : start + 2 * window], lengths, shape.length)
    # short readings may fill a row with more of them, or more of answers, than a whole pack holds
    filled = [part for row in filled for part in _parted(row, lengths - rows.answer_starts, shape)]
    packs: list[list[list[int]]] = []
    held: list[list[int]] = []
    readings = answers = 0
    for at in chance.permutation(len(filled)):
        row = filled[int(at)]
        size = sum(int(lengths[r] - rows.answer_starts[r]) for r in row)
        # each row may need fillers of its own: leave room for them
        full = readings + len(row) + 2 * shape.rows > shape.readings or answers + size > shape.answers
        if held and (len(held) == shape.rows or full):
            packs.append(held)
            held, readings, answers = [], 0, 0
        held.append(row)
        readings, answers = readings + len(row), answers + size
    if held:
        packs.append(held)
    return packs


def _best_fit(order: Ints, lengths: Ints, most: int) -> list[list[int]]:
    by_room: dict[int, list[int]] = {}
    filled: list[list[int]] = []
    for reading in order[np.argsort(-lengths[order], kind="stable")]:
        size = int(lengths[reading])
        fit = min((room for room in by_room if room >= size and by_room[room]), default=None)
        if fit is None:
            filled.append([])
            place, room = len(filled) - 1, most
        else:
            place, room = by_room[fit].pop(), fit
            if not by_room[fit]:
                del by_room[fit]
        filled[place].append(int(reading))
        by_room.setdefault(room - size, []).append(place)
    return filled


def _parted(row: Sequence[int], answers: Ints, shape: PackShape) -> list[list[int]]:
    """A row's readings as rows that fit a pack each."""
    # as in `plan_packs`: room for the fillers of every row
    most = max(1, shape.readings - 2 * shape.rows)
    parts: list[list[int]] = []
    size = 0
    for reading in row:
        own = int(answers[reading])
        if own > shape.answers:
            raise ValueError(
                f"an answer has {own} tokens; packs hold {shape.answers}: leave it out, or give more answers"
            )
        if not parts or len(parts[-1]) == most or size + own > shape.answers:
            parts.append([])
            size = 0
        parts[-1].append(reading)
        size += own
    return parts


def make_pack(
    rows: ReadingRows, pack: Sequence[Sequence[int]], shape: PackShape, avoid: Ints | None = None
) -> Pack:
    """The tensors of one pack. `avoid` [len(rows), 2]: (place in the answer, token to avoid there), or -1s."""
    length = shape.length
    ids = np.zeros((shape.rows, length), np.int64)
    positions = np.zeros((shape.rows, length), np.int64)
    owner = np.zeros((shape.rows, length), np.int64)
    starts: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    shunned: list[int] = []
    for at in range(shape.rows):
        used = 0
        readings = pack[at] if at < len(pack) else ()
        for number, reading in enumerate(readings):
            tokens = rows.row(reading)
            size, begin = len(tokens), int(rows.answer_starts[reading])
            ids[at, used : used + size] = tokens
            positions[at, used : used + size] = np.arange(size)
            owner[at, used : used + size] = number
            starts.append(at * length + used)
            places += range(at * length + used + begin - 1, at * length + used + size - 1)
            targets += tokens[begin:].tolist()
            shun = [NONE] * (size - begin)
            if avoid is not None and avoid[reading, 0] >= 0:
                shun[int(avoid[reading, 0])] = int(avoid[reading, 1])
            shunned += shun
            used += size
        if used < length:
            starts.append(at * length + used)
            positions[at, used:] = np.arange(length - used)
            owner[at, used:] = len(readings)
    if len(starts) > shape.readings or len(places) > shape.answers:
        raise ValueError(
            f"a pack of {len(starts)} readings and {len(places)} answer tokens does not fit {shape.readings} and "
            f"{shape.answers}; plan it with the same shape"
        )
    end = shape.rows * length
    starts += [end] * (shape.readings + 1 - len(starts))
    spare = shape.answers - len(places)
    weights = [1.0] * len(places) + [0.0] * spare
    return Pack(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(owner),
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(places + [0] * spare),
        torch.tensor(targets + [0] * spare),
        torch.tensor(weights),
        torch.tensor(shunned + [NONE] * spare),
    )


def fill(rows: ReadingRows, packs: Sequence[Sequence[Sequence[int]]], shape: PackShape) -> float:
    """Share of the packs' tokens that readings fill."""
    used = sum(int(rows.lengths[reading]) for pack in packs for row in pack for reading in row)
    return used / max(1, len(packs) * shape.rows * shape.length)
