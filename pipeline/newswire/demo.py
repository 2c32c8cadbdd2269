"""The demo's choice: about a week of news and a few questions of every kind, asked at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.newswire.questions import Question, questions
from pipeline.newswire.simulate import generate
from pipeline.newswire.truth import Truth


@dataclass(frozen=True, slots=True)
class DemoSet:
    """Records in order of publication (articles and withdrawals), and questions over all of them."""

    records: tuple[dict[str, Any], ...]
    questions: tuple[Question, ...]


def demo_set(seed: int, num_articles: int = 1_000, num_questions: int = 24) -> DemoSet:
    """`num_articles` articles with their updates, corrections and withdrawals, and questions of every kind."""
    truth = Truth()
    records = []
    for event in generate(seed, num_articles):
        truth.add(event)
        records.append(event.record)
    return DemoSet(tuple(records), tuple(questions(seed, num_articles, num_questions, truth=truth)))
