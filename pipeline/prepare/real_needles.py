"""Needles made of real questions: the sentence that tells, the question as asked, the answer as it stands there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.tasks.contexts import WordWeights, gold_texts, oracle_sentences
from pipeline.tasks.needle_grammar import REAL, Needle
from pipeline.tasks.qa import Question, SourceText


def real_needles(
    questions: Iterable[Question],
    texts: Mapping[str, SourceText],
    weights: WordWeights,
    *,
    most_answer: int = 40,
    most_sentence: int = 400,
) -> list[Needle]:
    """One needle for each answerable question whose answer stands exactly once in one sentence of its golds.

    `most_answer`, `most_sentence`: characters, at most. The sentence comes with its title, as a reader sees it.
    """
    found = []
    for question in questions:
        golds = gold_texts(question, texts)
        told = oracle_sentences(question, golds, weights) if question.answerable and golds else None
        if told is None or len(told) != 1:
            continue
        title, _, sentence = told[0]
        text = f"{title}: {sentence.strip()}"
        answer = next((a for a in question.answers if a and text.count(a) == 1), None)
        if answer is None or len(answer) > most_answer or len(text) > most_sentence:
            continue
        found.append(
            Needle(text, question.text.strip(), answer, REAL, question.dataset, question.question_id)
        )
    return found
