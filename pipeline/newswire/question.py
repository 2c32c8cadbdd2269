"""A question with its gold answers, and which split an entity belongs to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.newswire.rng import derive

KINDS = ("now", "as_of", "changed", "two_hop", "three_hop", "count", "unanswerable", "corrected")
SPLITS = ("train", "validation", "test")
SPLITS_WORDINGS: dict[str, tuple[int, ...]] = {
    "": (0, 1, 2, 3, 4),
    "train": (0, 1, 2),
    "validation": (3,),
    "test": (4,),
}


@dataclass(frozen=True, slots=True)
class Hop:
    """One fact that the answer rests on: which articles tell it, and a sentence of the first of them."""

    fact: str
    article_ids: tuple[str, ...]
    evidence: str
    value: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question as of `asked` (ISO 8601, UTC). `gold_article_ids` are the articles of all hops."""

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    stream: str | None
    asked: str
    gold_article_ids: tuple[str, ...]
    evidence: tuple[str, ...]
    answerable: bool
    relation: str
    entity: str
    wording: int
    split: str
    hops: tuple[Hop, ...] = ()
    wrong: str = ""
    absent: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this question."""
        return asdict(self)


def split_of(entity: str) -> str:
    """The split that an entity belongs to: 60% train, 20% validation, 20% test."""
    share = derive("split", entity) % 10
    return "train" if share < 6 else "validation" if share < 8 else "test"
