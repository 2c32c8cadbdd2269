"""Relevance labels for retrieval supervision: which texts tell, which hold an answer, which only look alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

GOLD, HOLDS, HARD = 2, 1, 0
"""The file names the text as gold; it holds an answer string; BM25 ranks it high, and it does not."""
SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("question", pa.string()),
        ("text_id", pa.string()),
        ("label", pa.int8()),
        ("rank", pa.int32()),
        ("title", pa.string()),
        ("text", pa.string()),
    ]
)


def labels_of(
    question: Question, golds: Sequence[SourceText], found: Sequence[SourceText], hard: int
) -> Iterator[dict[str, Any]]:
    """Rows of one question: its golds, found texts that hold an answer, and `hard` high-ranked ones that do not.

    `rank` counts from 0 in the search, -1 where the search did not find a gold text.
    """
    rank = {text.text_id: at for at, text in enumerate(found)}
    own = {text.text_id for text in golds}
    rows = [(text, GOLD) for text in golds]
    held = [text for text in found if text.text_id not in own]
    tell = [text for text in held if question.answers and holds_answer(_words(text), question.answers)]
    rows += [(text, HOLDS) for text in tell]
    rows += [(text, HARD) for text in [each for each in held if each not in tell][:hard]]
    for text, label in rows:
        yield {
            "question_id": question.question_id, "dataset": question.dataset, "split": question.split,
            "question": question.text, "text_id": text.text_id, "label": label,
            "rank": rank.get(text.text_id, -1), "title": text.title, "text": text.text,
        }  # fmt: skip


def _words(text: SourceText) -> str:
    return f"{text.title} {text.text}"
