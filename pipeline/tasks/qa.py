"""Question answering tasks: the files of questions, the passages they point into, and who may train on what.

Each reader yields `Question`s in the order of its file. Gold passages are those that the file names (for
RealTimeQA: none, it is judged over dated news). The split is by title: see `assign_splits`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
import pyarrow as pa

from pipeline.errors import BadData, UsageError

_Made = TypeVar("_Made")
Split = Literal["train", "dev", "test", "dropped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceText:
    """A passage of a corpus or a paragraph of a page: what sentences are chosen from."""

    text_id: str
    title: str
    text: str
    date: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question with its golds; `answerable` False means that its own gold passages do not tell."""

    question_id: str
    dataset: str
    text: str
    answers: tuple[str, ...]
    answerable: bool
    gold_ids: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    pool_ids: tuple[str, ...] = ()
    support: tuple[tuple[str, str], ...] = ()
    """(title, sentence) of the sentences that tell, where the file names them."""
    asked: str = ""
    kind: str = ""
    split: Split = "train"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, plain or .zst; raises BadData that names the line at fault."""
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a JSON Lines file (.jsonl or .jsonl.zst)")
    stream: Any = (
        pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") if path.suffix == ".zst" else path.open("rb")
    )
    with (
        stream,
        io.TextIOWrapper(io.BufferedReader(stream) if path.suffix == ".zst" else stream, "utf-8-sig") as text,
    ):
        try:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield _object(line, path, number)
        except UnicodeDecodeError as error:
            raise BadData(f"{path} is not UTF-8 text: {error}") from None
        except OSError as error:
            if error.errno is not None:  # the disk, not the file
                raise
            raise BadData(f"{path} is damaged: {error}") from None


def made_of(path: Path, what: str, make: Callable[[dict[str, Any]], _Made]) -> Iterator[_Made]:
    """What `make` makes of each line's object; BadData that names the line and what it lacks of `what`."""
    for number, row in enumerate(read_lines(path), 1):
        try:
            yield make(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadData(f"{path}, line {number} lacks what {what} needs: {error!r}") from None


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A field that must be text; KeyError where it is not there, TypeError where it is no text."""
    if not isinstance(row[name], str):
        raise TypeError(f"{name} is {row[name]!r}, no text")
    return str(row[name])


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadData(f"{path}, line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise BadData(f"{path}, line {number} is a JSON {type(row).__name__}; give one object a line")
    return row


def read_passages(path: Path) -> dict[str, SourceText]:
    """A corpus of passages by id; BadData that names a line without id, title and text."""

    def passage(row: dict[str, Any]) -> SourceText:
        return SourceText(text_id=text_of(row, "id"), title=text_of(row, "title"), text=text_of(row, "text"))

    passages = {found.text_id: found for found in made_of(path, "a passage", passage)}
    if not passages:
        raise BadData(f"{path} holds no passage; give lines of {{id, title, text}}")
    return passages


def read_timeqa_pages(path: Path, min_chars: int = 60) -> dict[str, list[SourceText]]:
    """The paragraphs of each TimeQA page by document id, headings left out; text ids are "<doc>#<paragraph>"."""

    def page(row: dict[str, Any]) -> tuple[str, list[SourceText]]:
        return row["id"], [
            SourceText(text_id=f"{row['id']}#{index}", title=row["title"], text=text)
            for index, text in enumerate(row["paragraphs"])
            if len(text) >= min_chars
        ]

    return dict(made_of(path, "a page", page))


def _squad(row: dict[str, Any]) -> Question:
    return Question(
        question_id=row["id"],
        dataset="squad",
        text=row["question"],
        answers=tuple(row["answers"]),
        answerable=row["answerable"],
        gold_ids=tuple(row["gold_passage_ids"]),
        titles=(row["title"].replace("_", " "),),
    )


def _nq(row: dict[str, Any]) -> Question:
    return Question(
        question_id=row["id"],
        dataset="nq",
        text=row["question"],
        answers=tuple(row["answers"]),
        answerable=True,
        gold_ids=tuple(row["gold_passage_ids"]),
        titles=(row["gold_title"],) if row.get("gold_title") else (),
    )


def _hotpot(row: dict[str, Any]) -> Question:
    sentences = {entry["title"]: entry["sentences"] for entry in row["context"]}
    facts = [(str(title), int(at)) for title, at in row["supporting_facts"]]
    return Question(
        question_id=row["id"],
        dataset="hotpot",
        text=row["question"],
        answers=tuple(row["answers"]),
        answerable=True,
        gold_ids=tuple(row["gold_passage_ids"]),
        titles=tuple(dict.fromkeys(title for title, _ in facts)),
        pool_ids=tuple(entry["passage_id"] for entry in row["context"]),
        support=tuple((t, sentences[t][at]) for t, at in facts if at < len(sentences.get(t, ()))),
        kind=row["type"],
    )


def _musique(row: dict[str, Any]) -> Question:
    return Question(
        question_id=row["id"],
        dataset="musique",
        text=row["question"],
        answers=tuple(row["answers"]),
        answerable=True,
        gold_ids=tuple(row["gold_passage_ids"]),
        pool_ids=tuple(row["context_passage_ids"]),
    )


def _timeqa(row: dict[str, Any]) -> Question:
    return Question(
        question_id=row["id"],
        dataset="timeqa",
        text=row["question"],
        answers=tuple(row["answers"]),
        answerable=row["answerable"],
        gold_ids=tuple(f"{row['doc_id']}#{at}" for at in row["answer_paras"]),
        titles=(row["doc_id"],),
        kind=row["relation"],
    )


def _realtimeqa(row: dict[str, Any]) -> Question:
    return Question(
        question_id=row["id"],
        dataset="rtqa",
        text=row["question"],
        answers=tuple(row["answers"]),
        answerable=True,
        pool_ids=tuple(row["answer_string_in"]),
        asked=row["asked"],
    )


_READERS: dict[str, Callable[[dict[str, Any]], Question]] = {
    "squad2": _squad,
    "nq_open": _nq,
    "hotpotqa": _hotpot,
    "musique": _musique,
    "timeqa": _timeqa,
    "realtimeqa": _realtimeqa,
}


def read_questions(path: Path) -> list[Question]:
    """The questions of a file of the data folder, its kind told by its name; raises UsageError, BadData."""
    kind = path.name.split(".")[0]
    if kind not in _READERS:
        raise UsageError(
            f"{path}: no reader for '{kind}'; allowed file names: {', '.join(_READERS)} (.jsonl, .jsonl.zst)"
        )

    def question(row: dict[str, Any]) -> Question:
        if not isinstance(row["answers"], list) or not all(isinstance(each, str) for each in row["answers"]):
            raise TypeError("answers is no list of texts")
        text_of(row, "question")
        return _READERS[kind](row)

    return list(made_of(path, f"a {kind} question", question))


def title_key(title: str) -> str:
    """What two spellings of a title share: lower case letters and digits, without a trailing "(…)"."""
    return re.sub(r"[\W_]+", " ", re.sub(r"\(.*?\)\s*$", "", title.lower())).strip()


def assign_splits(
    questions: Iterable[Question],
    passages: Mapping[str, SourceText],
    *,
    test_share: float = 0.2,
    dev_share: float = 0.03,
    seed: int = 0,
) -> list[Question]:
    """The questions with their splits and all titles of their golds; the same seed gives the same split.

    A question is in test if one of its gold titles falls into the test share (by hash), RealTimeQA always. Of the
    rest, a question that shares a gold title with a test question is dropped, and `dev_share` is held back by hash
    of the question. So no gold title of a test question is a gold title of a training question.
    """
    known = []
    for question in questions:
        named = [passages[gold].title for gold in question.gold_ids if gold in passages]
        known.append(replace(question, titles=tuple(dict.fromkeys([*question.titles, *named]))))
    held_back: set[str] = set()
    for question in known:
        keys = {title_key(title) for title in question.titles}
        if question.dataset == "rtqa" or any(_share(f"{seed}:title:{key}") < test_share for key in keys):
            held_back |= keys
    return [
        replace(question, split=_split(question, held_back, test_share, dev_share, seed))
        for question in known
    ]


def test_title_keys(questions: Sequence[Question]) -> frozenset[str]:
    """The keys of all gold titles of the test questions: no text under them may be read in training."""
    return frozenset(
        title_key(title) for question in questions if question.split == "test" for title in question.titles
    )


test_title_keys.__test__ = False  # type: ignore[attr-defined]  # not a test, though its name begins like one


def _split(question: Question, held_back: set[str], test_share: float, dev_share: float, seed: int) -> Split:
    keys = {title_key(title) for title in question.titles}
    if question.dataset == "rtqa" or any(_share(f"{seed}:title:{key}") < test_share for key in keys):
        return "test"
    if keys & held_back:
        return "dropped"
    return "dev" if _share(f"{seed}:question:{question.question_id}") < dev_share else "train"


def _share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big") / 2.0**56
