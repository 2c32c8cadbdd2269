"""A toy of choosing for tests: what pays is known exactly, and chance does not reach it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.retriever import GOLD, CandidateTable, RetrieverConfig, TableBatch
from pipeline.session.prompts import Sentence
from pipeline.tasks.material import ChoiceQuestion, Material
from rl.episodes import Outcome, Request

DIM, FEATURES = 8, 3


def tables(count: int = 64, width: int = 6, seed: int = 0) -> TableBatch:
    """Questions whose telling candidate has a vector near the question's; tokens differ, two texts a question."""
    chance = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        size = int(chance.integers(width - 2, width + 1))
        query = chance.normal(size=DIM)
        vectors = chance.normal(size=(size, DIM))
        gold = int(chance.integers(size))
        vectors[gold] = query + 0.3 * chance.normal(size=DIM)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        query /= np.linalg.norm(query)
        features = np.stack([vectors @ query, chance.random(size), np.arange(size) / size], 1)
        made.append(
            CandidateTable(
                query=query.astype(np.float16),
                vectors=vectors.astype(np.float16),
                features=features.astype(np.float32),
                tokens=chance.integers(8, 40, size),
                groups=np.arange(size) // 3,
                heads=np.full(size, 5),
                labels=np.array([GOLD if at == gold else 0 for at in range(size)], np.int8),
            )
        )
    return TableBatch.stack(made, width)


class KnowingReader:
    """Answers rightly if the telling candidate is read, worse for every other one beside it. Counts its calls."""

    def __init__(self, batch: TableBatch) -> None:
        self._labels, self.calls = batch.labels, 0

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcomes, exactly known."""
        self.calls += 1
        found = []
        for row, picks in requests:
            held = any(self._labels[row, pick] == GOLD for pick in picks)
            f1 = max(0.0, 1.0 - 0.15 * (len(picks) - 1)) if held else 0.0
            found.append(Outcome(f1=f1, loss=0.1 + 3.0 * (1.0 - f1), margin=-1.0))
        return found


def network_config(**changes: object) -> RetrieverConfig:
    """A small network over the toy's tables."""
    fields: dict[str, object] = {"dim": DIM, "num_features": FEATURES, "width": 32, "layers": 1, "heads": 2}
    return RetrieverConfig(**(fields | {"dropout": 0.0} | changes))  # type: ignore[arg-type]


def material(batch: TableBatch) -> Material:
    """The toy as material: sentences with numbers for words."""
    questions = []
    for row in range(len(batch)):
        size = int(batch.present[row].sum())
        sentences: tuple[Sentence, ...] = tuple((f"t{at // 3}", "", f"s{row} {at}") for at in range(size))
        questions.append(
            ChoiceQuestion(
                question_id=f"q{row}",
                dataset="toy",
                split="train",
                text=f"question {row}",
                answers=(f"a{row}",),
                kind="",
                sentences=sentences,
                places=tuple((at // 3, at % 3) for at in range(size)),
            )
        )
    return Material(tuple(questions), batch)
