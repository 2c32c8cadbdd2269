"""Questions with gold answers, each judged over what was published and not withdrawn by the time it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from pipeline.newswire.question import KINDS, SPLITS, Hop, Question, split_of
from pipeline.newswire.question_maker import QuestionMaker
from pipeline.newswire.simulate import generate
from pipeline.newswire.truth import Truth, gather
from pipeline.newswire.values import day_of, start_of

__all__ = ["KINDS", "SPLITS", "Hop", "Question", "questions", "split_of"]


def questions(
    seed: int, num_articles: int, num_questions: int, kinds: Sequence[str] = KINDS, asked: str = "end",
    start: date | None = None, split: str = "", truth: Truth | None = None,
) -> list[Question]:  # fmt: skip
    """Questions over the first `num_articles` articles of a world, of the kinds in turn.

    `asked` is "end" (all at the time of the last record) or "spread" (over the whole period). `split`
    keeps to the entities and wordings of train, validation or test. Raises ValueError for unknown words.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds {unknown or kinds} unknown; allowed are {', '.join(KINDS)}")
    if asked not in ("end", "spread"):
        raise ValueError(f"asked is {asked!r}; allowed are 'end' and 'spread'")
    if split not in ("", *SPLITS):
        raise ValueError(f"split is {split!r}; allowed are {', '.join(SPLITS)} or '' for all")
    truth = truth or gather(generate(seed, num_articles, start))
    if not truth.known:
        return []
    begin = start_of(day_of(truth.first))
    return QuestionMaker(truth, seed, begin, split).draw(num_questions, kinds, asked)
