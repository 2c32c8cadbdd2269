"""Questions with their candidates, tables and texts: what a policy is trained and judged on, in one folder.

arrays.npz        the tables (`models.retriever.table.TableBatch`), vectors in float16 or int8
questions.jsonl   one question a line: id, dataset, split, question, answers, its candidates' texts
manifest.json     how it was made
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from models.retriever.table import GOLD, HOLDS, MAX_CANDIDATES, CandidateTable, TableBatch
from pipeline.candidate_features import Encode, Unit, candidate_table, preselect
from pipeline.errors import BadData, UsageError
from pipeline.session.prompts import PromptForm, Sentence, article_head, reader_prompt
from pipeline.tasks.contexts import Candidate, CountTokens, candidates
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

UNITS = ("sentence", "span", "passage")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceQuestion:
    """A question with the texts of its candidates, in the order of its table."""

    question_id: str
    dataset: str
    split: str
    text: str
    answers: tuple[str, ...]
    kind: str
    sentences: tuple[Sentence, ...]
    places: tuple[tuple[int, int], ...]
    """(place of the text in the search, place in the text) of each candidate."""

    def chosen(self, picks: Iterable[int]) -> tuple[Sentence, ...]:
        """The chosen sentences in reading order: by date, then as found, sentences of a text together."""
        order = sorted(set(picks), key=lambda at: (self.sentences[at][1], self.places[at]))
        return tuple(self.sentences[at] for at in order)


@dataclass(frozen=True, slots=True)
class Material:
    """Questions and their tables, row by row."""

    questions: tuple[ChoiceQuestion, ...]
    tables: TableBatch

    def __post_init__(self) -> None:
        if len(self.questions) != len(self.tables):
            raise ValueError(
                f"questions: given {len(self.questions)} with {len(self.tables)} tables; allowed: one each"
            )

    def __len__(self) -> int:
        return len(self.questions)

    def rows(self, split: str = "", dataset: str = "", answerable: bool = False) -> npt.NDArray[np.int64]:
        """The rows of a split and a dataset (empty: all), with `answerable` only those that have an answer."""
        return np.array(
            [
                at
                for at, question in enumerate(self.questions)
                if (not split or question.split == split)
                and (not dataset or question.dataset == dataset)
                and (not answerable or question.answers)
            ],
            np.int64,
        )

    def prompt(self, row: int, picks: Iterable[int], form: PromptForm = "adapted") -> str:
        """What the reader is given for a choice."""
        question = self.questions[row]
        return reader_prompt(question.chosen(picks), question.text, form)

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Material:
        """The material of some rows."""
        return Material(tuple(self.questions[at] for at in rows), self.tables.take(rows))

    def save(self, folder: Path, made_from: dict[str, Any], *, int8: bool = False) -> None:
        """Write the folder; with `int8` vectors take half the bytes, each row with a scale of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = self.tables.arrays()
        if int8:
            vectors = arrays.pop("vectors").astype(np.float32)
            scale = np.abs(vectors).max(-1, keepdims=True) / 127.0
            arrays["vectors8"] = np.round(vectors / np.maximum(scale, 1e-9)).astype(np.int8)
            arrays["vector_scale"] = scale.astype(np.float16)
            arrays["features"] = arrays["features"].astype(np.float16)
        for name in ("tokens", "groups", "heads"):
            arrays[name] = arrays[name].astype(np.int32 if not int8 else np.uint16)
        np.savez_compressed(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
        lines = (
            orjson.dumps(
                {name: getattr(question, name) for name in ChoiceQuestion.__slots__},
            )
            for question in self.questions
        )
        (folder / "questions.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        (folder / "manifest.json").write_bytes(
            orjson.dumps({"questions": len(self), **made_from}, option=orjson.OPT_INDENT_2, default=str)
        )

    @classmethod
    def load(cls, folder: Path) -> Material:
        """Read a folder; raises UsageError where it is none, BadData where its parts do not fit."""
        if not (folder / "arrays.npz").is_file() or not (folder / "questions.jsonl").is_file():
            raise UsageError(
                f"{folder} is no folder of material (arrays.npz, questions.jsonl); "
                "make one: python -m infra.training.policy_data --help"
            )
        with np.load(folder / "arrays.npz") as packed:
            arrays = {name: packed[name] for name in packed.files}
        if "vectors8" in arrays:
            scale = arrays.pop("vector_scale").astype(np.float32)
            arrays["vectors"] = (arrays.pop("vectors8").astype(np.float32) * scale).astype(np.float16)
        for name in ("tokens", "groups", "heads"):
            arrays[name] = arrays[name].astype(np.int64)
        arrays["features"] = arrays["features"].astype(np.float32)
        try:
            questions = tuple(
                _question(orjson.loads(line))
                for line in (folder / "questions.jsonl").read_bytes().splitlines()
            )
            return cls(questions, TableBatch(**arrays))
        except (KeyError, TypeError, ValueError) as error:
            raise BadData(f"{folder}: its arrays and questions do not fit: {error}") from None

    @classmethod
    def join(cls, parts: Sequence[Material]) -> Material:
        """Several materials one after another, padded alike."""
        if not parts:
            raise ValueError("parts: given none; join needs at least one material")
        width = max(part.tables.num_candidates for part in parts)
        num_words = max(part.tables.words.shape[2] for part in parts)
        stacked: dict[str, list[Any]] = {}
        for part in parts:
            for name, array in part.tables.arrays().items():
                stacked.setdefault(name, []).append(_padded(name, array, width, num_words))
        tables = TableBatch(**{name: np.concatenate(arrays) for name, arrays in stacked.items()})
        return cls(tuple(question for part in parts for question in part.questions), tables)


def spans(texts: Sequence[SourceText], num_tokens: int, count_tokens: CountTokens) -> list[Candidate]:
    """Runs of whole words of at most `num_tokens` tokens, one after another; a longer word is a span of its own."""
    if num_tokens < 1:
        raise ValueError(f"span: given {num_tokens}; allowed: 1 token or more")
    found = []
    for at, source in enumerate(texts):
        held: list[str] = []
        left, place = num_tokens, 0
        for word in source.text.split():
            cost = count_tokens(f" {word}")
            if held and cost > left:
                found.append(Candidate(source, " ".join(held), (at, place)))
                held, left, place = [], num_tokens, place + 1
            held.append(word)
            left -= cost
        if held:
            found.append(Candidate(source, " ".join(held), (at, place)))
    return found


def cut(
    texts: Sequence[SourceText], unit: str, count_tokens: CountTokens, span_tokens: int = 32
) -> list[Candidate]:
    """The candidates of the texts, in units of a sentence, a span of tokens, or a whole passage."""
    if unit == "sentence":
        return candidates(texts)
    if unit == "span":
        return spans(texts, span_tokens, count_tokens)
    if unit == "passage":
        return [Candidate(text, text.text, (at, 0)) for at, text in enumerate(texts)]
    raise ValueError(f"unit: given {unit!r}; allowed: {', '.join(UNITS)}")


def material_of(
    question: Question,
    choices: Sequence[Candidate],
    encode: Encode,
    count_tokens: CountTokens,
    *,
    most: int = MAX_CANDIDATES,
    label: Callable[[Candidate], int] | None = None,
    with_words: bool = False,
) -> tuple[ChoiceQuestion, CandidateTable, list[Candidate]]:
    """A question's choice: its texts, its table, and the candidates in the table's order.

    `label` tells GOLD, HOLDS or 0; default: by the question's golds, support and answers.
    """
    told = label or (lambda choice: label_of(question, choice))
    units = [_unit(choice, count_tokens, told(choice)) for choice in choices]
    kept = preselect(question.text, units, most)
    units, choices = [units[at] for at in kept], [choices[at] for at in kept]
    table = candidate_table(
        question.text, units, encode, needs_all=needs_all(question), with_words=with_words
    )
    made = ChoiceQuestion(
        question_id=question.question_id,
        dataset=question.dataset,
        split=question.split,
        text=question.text,
        answers=question.answers if question.answerable else (),
        kind=question.kind,
        sentences=tuple((choice.source.title, choice.source.date, choice.text) for choice in choices),
        places=tuple(choice.place for choice in choices),
    )
    return made, table, list(choices)


def needs_all(question: Question) -> bool:
    """Whether one sentence does not tell: the file names several that are needed together."""
    return len(question.support) > 1


def label_of(question: Question, choice: Candidate) -> int:
    """GOLD for what tells, by the file's support or in a gold text; HOLDS for an answer string elsewhere."""
    if not question.answerable:
        return 0
    if question.support:
        wanted = {sentence.strip() for title, sentence in question.support if title == choice.source.title}
        return GOLD if any(w and (w in choice.text or choice.text in w) for w in wanted) else 0
    if not holds_answer(choice.text, question.answers):
        return 0
    return GOLD if choice.source.text_id in question.gold_ids else HOLDS


def _unit(choice: Candidate, count_tokens: CountTokens, label: int) -> Unit:
    return Unit(
        text=choice.text,
        title=choice.source.title,
        rank=choice.place[0],
        place=choice.place[1],
        num_tokens=max(1, count_tokens(f" {choice.text}")),
        head_tokens=count_tokens(article_head(choice.source.title, choice.source.date)) + 2,
        label=label,
    )


def _question(row: dict[str, Any]) -> ChoiceQuestion:
    made = ChoiceQuestion(**row)
    return replace(
        made,
        answers=tuple(made.answers),
        sentences=tuple((s[0], s[1], s[2]) for s in made.sentences),
        places=tuple((p[0], p[1]) for p in made.places),
    )


def _padded(name: str, array: npt.NDArray[Any], width: int, num_words: int) -> npt.NDArray[Any]:
    grow = [(0, 0)] * array.ndim
    if name == "words":
        grow[1], grow[2] = (0, width + 1 - array.shape[1]), (0, num_words - array.shape[2])
    elif name not in ("query", "needs_all"):
        grow[1] = (0, width - array.shape[1])
    return np.pad(array, grow)


__all__ = ["GOLD", "HOLDS", "UNITS", "ChoiceQuestion", "Material", "cut", "label_of", "material_of", "spans"]
