"""Candidates as a policy sees them: features, costs and vectors, the same for sessions, training and evaluation.

Word weights come from the candidates alone, so a question needs nothing but what its search found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from models.retriever.around import with_around
from models.retriever.table import FEATURES, MAX_CANDIDATES, CandidateTable
from pipeline.session.chooser import bm25, words

Encode = Callable[[Sequence[str]], "npt.NDArray[Any]"]
PairColumns = Callable[[str, Sequence[str]], "npt.NDArray[np.float32]"]
"""A question and its candidates' texts to the columns of `models.retriever.table.PAIR_FEATURES`. [K, 6]"""

NUM_WORDS = 1 << 15
MAX_WORDS = 48
_NUMBER = re.compile(r"\d")
_NAME = re.compile(r"(?<=[a-z,;] )[A-ZÀ-ÖØ-Þ][\w'’-]+")
_ASKS_NUMBER = re.compile(
    r"\b(when|what year|which year|what date|how (many|much|long|old|far|often|tall|big))\b"
)
_ASKS_NAME = re.compile(r"\b(who|whom|whose|where|which|what (is|was) the name|name)\b")


@dataclass(frozen=True, slots=True)
class Unit:
    """What may be chosen: `text` under `title`, the `place`-th unit of the `rank`-th text of the search."""

    text: str
    title: str
    rank: int
    place: int
    num_tokens: int
    head_tokens: int
    label: int = 0


def preselect(question: str, units: Sequence[Unit], most: int = MAX_CANDIDATES) -> list[int]:
    """The places of at most `most` units by words and by their text's place, best first; no embedding needed."""
    if len(units) <= most:
        return list(range(len(units)))
    lexical = np.array(bm25(question, [f"{unit.title} {unit.text}" for unit in units]))
    by_word = _places(lexical)
    by_text = np.argsort(np.argsort([unit.rank * 1000 + unit.place for unit in units], kind="stable"))
    score = 1 / (20 + by_word) + 1 / (20 + by_text)
    return [int(at) for at in np.argsort(-score, kind="stable")[:most]]


def candidate_table(
    question: str,
    units: Sequence[Unit],
    encode: Encode,
    *,
    needs_all: bool = False,
    with_words: bool = False,
    pair: PairColumns | None = None,
) -> CandidateTable:
    """The table of a question's units (at most 64, see `preselect`), in the order given.

    With `pair` (a pair reader's `features`) its columns follow the others; its texts come `with_around`.
    """
    vectors = np.asarray(encode([question, *(embedded_text(unit) for unit in units)]), np.float32)
    query, rest = vectors[0], vectors[1:]
    columns = features(question, units, rest @ query)
    if pair is not None:
        said = {(unit.rank, unit.place): unit.text for unit in units}
        texts = [with_around(embedded_text(unit), (unit.rank, unit.place), said) for unit in units]
        columns = np.concatenate([columns, pair(question, texts)], 1)
    return CandidateTable(
        query=query.astype(np.float16),
        vectors=rest.astype(np.float16),
        features=columns,
        tokens=np.array([unit.num_tokens for unit in units], np.int64),
        groups=np.array([unit.rank for unit in units], np.int64),
        heads=np.array([unit.head_tokens for unit in units], np.int64),
        labels=np.array([unit.label for unit in units], np.int8),
        needs_all=needs_all,
        words=hashed_words([question, *(embedded_text(unit) for unit in units)])
        if with_words
        else np.zeros((0, 0), np.int64),
    )


def embedded_text(unit: Unit) -> str:
    """What of a unit is embedded: its title and its text."""
    return f"{unit.title}: {unit.text}"


def features(question: str, units: Sequence[Unit], cosines: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The features of each unit [K, len(FEATURES)], by name in `FEATURES`; `cosines` [K] to the question."""
    if not units:
        return np.zeros((0, len(FEATURES)), np.float32)
    lexical = np.array(bm25(question, [f"{unit.title} {unit.text}" for unit in units]))
    best = max(float(lexical.max()), 1e-9)
    by_word, by_meaning = _places(lexical), _places(cosines)
    ranks = np.array([unit.rank for unit in units], float)
    fused = (1 / (60 + by_word) + 1 / (60 + by_meaning) + 1 / (60 + ranks)) * 20
    asked = set(words(question))
    weight = _weights(units)
    whole = sum(weight(word) for word in asked) or 1.0
    lower = question.lower()
    number, name = bool(_ASKS_NUMBER.search(lower)), bool(_ASKS_NAME.search(lower))
    place_of = {(unit.rank, unit.place): at for at, unit in enumerate(units)}
    rows = []
    for at, unit in enumerate(units):
        own, title = set(words(unit.text)), set(words(unit.title))
        near = [place_of.get((unit.rank, unit.place + step)) for step in (-1, 1)]
        rows.append(
            (
                float(cosines[at]),
                4 * float(cosines[at] - cosines.mean()),
                1 / (1 + by_meaning[at]),
                lexical[at] / best,
                1 / (1 + by_word[at]),
                fused[at],
                1 / (1 + unit.rank),
                1 / (1 + unit.place),
                float(unit.place == 0),
                math.log2(1 + unit.num_tokens) / 8,
                sum(weight(word) for word in asked & own) / whole,
                sum(weight(word) for word in asked & title) / whole,
                float(number and bool(_NUMBER.search(unit.text))),
                float(name and any(found.lower() not in lower for found in _NAME.findall(unit.text))),
                max((lexical[other] / best for other in near if other is not None), default=0.0),
            )
        )
    return np.array(rows, np.float32)


def hashed_words(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Words of each text as hashes 1 to NUM_WORDS - 1, padded with 0 to MAX_WORDS. [N, MAX_WORDS]"""
    out = np.zeros((len(texts), MAX_WORDS), np.int64)
    for row, text in zip(out, texts, strict=True):
        found = re.findall(r"\w+|[^\w\s]", text.lower())[:MAX_WORDS]
        row[: len(found)] = [1 + xxhash.xxh32_intdigest(word) % (NUM_WORDS - 1) for word in found]
    return out


def _places(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The place of each score, 0 for the highest; equal ones in their order."""
    places = np.empty(len(scores), np.int64)
    places[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return places


def _weights(units: Sequence[Unit]) -> Callable[[str], float]:
    count: dict[str, int] = {}
    for unit in units:
        for word in set(words(f"{unit.title} {unit.text}")):
            count[word] = count.get(word, 0) + 1
    total = len(units)
    return lambda word: math.log(1 + (total - count.get(word, 0) + 0.5) / (count.get(word, 0) + 0.5))


__all__ = [
    "FEATURES",
    "Encode",
    "PairColumns",
    "Unit",
    "candidate_table",
    "embedded_text",
    "features",
    "hashed_words",
    "preselect",
]
