"""Questions with their candidates, tables and texts: what a policy is trained and judged on, in one folder.

Made by `pipeline/tasks/choices.py`; reading it needs nothing but numpy, so a GPU host can.

arrays.npz        the tables (`models.retriever.table.TableBatch`), vectors in float16 or int8
questions.jsonl   one question a line: id, dataset, split, question, answers, its candidates' texts
manifest.json     how it was made
"""

from __future__ import annotations

import json
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt

from models.formats import FORMAT, KEY, NewerFormat, check_format, first_line
from models.retriever.table import TableBatch
from pipeline.errors import BadData, UsageError
from pipeline.session.prompts import PromptForm, Sentence, reader_prompt

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
"""What is raised by packed files that were cut short or changed, beside ValueError."""


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
        """Write the folder; with `int8` vectors take half the bytes, each with a scale of its own, texts less."""
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
        names = ("questions.jsonl.xz", "questions.jsonl")
        (folder / names[int8]).unlink(missing_ok=True)  # the other form, of an earlier save
        with _text(folder / names[not int8], "wt") as file:
            for question in self.questions:
                row = {name: getattr(question, name) for name in ChoiceQuestion.__slots__}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        made = {KEY: FORMAT, "questions": len(self), **made_from}
        (folder / "manifest.json").write_text(json.dumps(made, indent=2, default=str), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Material:
        """Read a folder; raises UsageError where it is none, BadData where its parts do not fit."""
        found = [
            folder / name for name in ("questions.jsonl", "questions.jsonl.xz") if (folder / name).is_file()
        ]
        if not (folder / "arrays.npz").is_file() or not found:
            raise UsageError(
                f"{folder} is no folder of material (arrays.npz, questions.jsonl); "
                "make one: python -m infra.training.policy_data --help"
            )
        try:
            if (folder / "manifest.json").is_file():
                check_format(json.loads((folder / "manifest.json").read_text(encoding="utf-8")), folder)
            with np.load(folder / "arrays.npz") as packed:
                arrays = {name: packed[name] for name in packed.files}
            if "vectors8" in arrays:
                scale = arrays.pop("vector_scale").astype(np.float32)
                arrays["vectors"] = (arrays.pop("vectors8").astype(np.float32) * scale).astype(np.float16)
            for name in ("tokens", "groups", "heads"):
                arrays[name] = arrays[name].astype(np.int64)
            arrays["features"] = arrays["features"].astype(np.float32)
            with _text(found[0], "rt") as file:
                whole = file.read()
        except NewerFormat:
            raise
        except (*_DAMAGED, KeyError, ValueError) as error:
            raise BadData(
                f"{folder}: its files are damaged ({first_line(error)}); copy it again, or remove it "
                "and make it again"
            ) from None
        try:
            questions = tuple(_question(json.loads(line)) for line in whole.split("\n") if line)
            return cls(questions, TableBatch(**arrays))
        except (KeyError, TypeError, ValueError) as error:
            raise BadData(f"{folder}: its arrays and questions do not fit: {error}") from None

    @classmethod
    def join(cls, parts: Sequence[Material]) -> Material:
        """Several materials one after another, padded alike."""
        if not parts:
            raise ValueError("parts: given none; join needs at least one material")
        shapes = list(dict.fromkeys((part.tables.dim, part.tables.num_features) for part in parts))
        if len(shapes) > 1:
            told = " and ".join(f"vectors of {dim} with {features} features" for dim, features in shapes)
            raise ValueError(f"materials of one embedder and one version are joined; given {told}")
        width = max(part.tables.num_candidates for part in parts)
        num_words = max(part.tables.words.shape[2] for part in parts)
        stacked: dict[str, list[Any]] = {}
        for part in parts:
            for name, array in part.tables.arrays().items():
                stacked.setdefault(name, []).append(_padded(name, array, width, num_words))
        tables = TableBatch(**{name: np.concatenate(arrays) for name, arrays in stacked.items()})
        return cls(tuple(question for part in parts for question in part.questions), tables)


def _text(path: Path, mode: Literal["rt", "wt"]) -> TextIO:
    if path.suffix == ".xz":
        packed = lzma.open(path, mode, encoding="utf-8", preset=6 if mode == "wt" else None)  # noqa: SIM115
        return packed  # type: ignore[return-value]
    return path.open(mode.removesuffix("t"), encoding="utf-8")  # type: ignore[return-value]


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
