"""What the cache cells ask: contexts that a method compresses, and the questions or texts that come after.

`needle`: JSON lines {context, question, answers}. `qa`: a file of the data folder; a context holds the gold
passages of a few questions and distractors. `lm`: JSON lines {text}; the last tokens are judged after the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadData, UsageError
from pipeline.session.prompts import PromptForm, article_head, one_line, reader_prompt
from pipeline.tasks.qa import Question, SourceText, read_lines

if TYPE_CHECKING:
    from infra.evaluation.qa_sources import QaSource

QUESTIONS_PER_CONTEXT = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One question: `context` is compressed unseen of `asked`, which ends where the answer begins."""

    case_id: str
    context: str
    asked: str
    answers: tuple[str, ...]


def needle_cases(path: Path, form: PromptForm, limit: int = 0) -> list[Case]:
    """The cases of a file of contexts, in order; raises BadData that names the line at fault."""
    found = []
    for number, row in enumerate(read_lines(path), 1):
        found.append(_case(row, path, number, form))
        if limit and len(found) == limit:
            break
    if not found:
        raise UsageError(f"{path} holds no case; write lines of {{context, question, answers}}")
    return found


def _case(row: dict[str, Any], path: Path, number: int, form: PromptForm) -> Case:
    answers = row.get("answers")
    texts = [row.get("context"), row.get("question")]
    if not all(isinstance(text, str) and text for text in texts) or not (
        isinstance(answers, list) and answers and all(isinstance(a, str) and a for a in answers)
    ):
        raise BadData(
            f"{path}, line {number}: given the keys {', '.join(map(str, row))}; a case wants context and question "
            "(texts) and answers (a list of texts), none empty"
        )
    before, after = _around(row["question"], form)
    return Case(str(row.get("id", number)), f"{before}{row['context'].rstrip()}\n", after, tuple(answers))


def qa_cases(
    path: Path,
    form: PromptForm,
    *,
    corpus: Path | None = None,
    passages: int = 10,
    split: str = "test",
    limit: int = 0,
    seed: int = 0,
) -> list[Case]:
    """Questions of the data folder over shared contexts of `passages` passages each; the same seed, the same cases.

    Questions that follow one another share a context. Unanswerable questions and those whose gold text the
    corpus lacks are left out.
    """
    from infra.evaluation.qa_sources import open_source  # with its lexical index, which a packed file spares

    if passages < 1:
        raise UsageError(f"--passages: given {passages}; allowed: 1 or more")
    source = open_source(path, corpus)
    chosen = [
        question
        for question in source.questions
        if (split == "all" or question.split == split) and question.answers and source.golds(question)
    ]
    if not chosen:
        raise UsageError(f"{path} holds no answerable question of split {split}; try --split all")
    random.Random(seed).shuffle(chosen)
    found: list[Case] = []
    for group in _groups(chosen[: limit or None], source, passages):
        texts = _texts(group, source, passages, seed)
        lines = "".join(f"{article_head(text.title, text.date)}: {one_line(text.text)}\n" for text in texts)
        for question in group:
            before, after = _around(question.text, form)
            found.append(Case(question.question_id, before + lines, after, question.answers))
    return found


def is_case_file(path: Path) -> bool:
    """Whether a file holds cases with their contexts, rather than questions of the data folder."""
    return "context" in next(iter(read_lines(path)), {}) and path.name.split(".")[0] != "hotpotqa"


def qa_rows(cases: Sequence[Case], form: PromptForm) -> Iterator[dict[str, Any]]:
    """The cases as lines of {id, context, question, answers}: `needle_cases` gives them back."""
    for case in cases:
        question = case.asked.removeprefix("Question: ").removesuffix("\nAnswer:")
        before, _ = _around(question, form)
        context = case.context.removeprefix(before)
        yield {"id": case.case_id, "context": context, "question": question, "answers": list(case.answers)}


def _groups(questions: Sequence[Question], source: QaSource, passages: int) -> Iterator[list[Question]]:
    group: list[Question] = []
    golds: set[str] = set()
    for question in questions:
        more = {text.text_id for text in source.golds(question)}
        if group and (len(group) == QUESTIONS_PER_CONTEXT or len(golds | more) > passages):
            yield group
            group, golds = [], set()
        group.append(question)
        golds |= more
    if group:
        yield group


def _texts(group: Sequence[Question], source: QaSource, passages: int, seed: int) -> list[SourceText]:
    """The golds, then distractors: each question's best others in turn."""
    found = {text.text_id: text for question in group for text in source.golds(question)}
    pools = [source.pool(question, 2 * passages) for question in group]
    for rank in range(2 * passages):
        for pool in pools:
            if rank < len(pool) and len(found) < passages:
                found.setdefault(pool[rank].text_id, pool[rank])
    texts = list(found.values())
    random.Random(f"{seed}:{group[0].question_id}").shuffle(texts)
    return sorted(texts, key=lambda text: text.date)


def _around(question: str, form: PromptForm) -> tuple[str, str]:
    """What stands before the context (a base model's worked example) and what comes after it."""
    asked = reader_prompt((), question, "adapted")
    return reader_prompt((), question, form).removesuffix(asked), asked


def lm_texts(path: Path, limit: int = 0) -> list[str]:
    """The texts of a file of {text}; raises BadData that names the line at fault."""
    found = []
    for number, row in enumerate(read_lines(path), 1):
        if not isinstance(row.get("text"), str) or not row["text"]:
            raise BadData(
                f"{path}, line {number}: given the keys {', '.join(row)}; a text wants `text`, not empty"
            )
        found.append(row["text"])
        if limit and len(found) == limit:
            break
    if not found:
        raise UsageError(f"{path} holds no text; write lines of {{text}}")
    return found
