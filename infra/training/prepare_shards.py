"""What a shard of `dysra prepare` holds, made from its task alone; sources are opened once a process."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.subq.tokenizer import SubqTokenizer
from pipeline.prepare.documents import Document, Order, in_order, read_documents, sequential_chunks
from pipeline.prepare.files import table_of
from pipeline.prepare.labels import SCHEMA as LABELS
from pipeline.prepare.labels import labels_of
from pipeline.prepare.real_needles import real_needles
from pipeline.prepare.shards import write_shard
from pipeline.prepare.triples import TripleConfig, TripleMaker, make_judged, make_training
from pipeline.tasks.contexts import gold_texts
from pipeline.tasks.needle_grammar import Needle, NeedleGrammar
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_questions,
    test_title_keys,
    title_key,
)

PARTS = ("tokens", "labels", "triples", "needles")
WIKI = ("squad2", "nq_open", "hotpotqa", "musique")
POOL = 24
TOKENS = pa.schema(
    [
        ("stream", pa.string()), ("split", pa.string()), ("ordinal", pa.int64()), ("first", pa.string()),
        ("last", pa.string()), ("ids", pa.list_(pa.uint32())),
    ]
)  # fmt: skip
NEEDLES = pa.schema(
    [(name, pa.string()) for name in ("sentence", "question", "answer", "kind", "form", "name", "split")]
)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file of questions ready to be asked about."""

    questions: list[Question]
    texts: Mapping[str, SourceText]
    maker: TripleMaker
    pool: Callable[[Question], list[SourceText]]
    weights: Any


def open_maker(settings: Mapping[str, Any]) -> ShardMaker:
    """For Ray Data's actors."""
    return ShardMaker(settings)


class ShardMaker:
    """Makes shards of `PrepareConfig`, given as plain values."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._order = lru_cache(maxsize=2)(self._open_texts)
        self._source = lru_cache(maxsize=2)(self._open_questions)

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Write the shard of a task; its note."""
        table = {
            "tokens": self._tokens, "labels": self._labels, "triples": self._triples, "needles": self._needles,
        }[task["part"]](task)  # fmt: skip
        return write_shard(Path(self._settings["out"]) / task["part"], task["name"], table)

    def _tokens(self, task: Mapping[str, Any]) -> pa.Table:
        order, documents = self._order(task["file"])
        lines = order.lines[task["start"] : task["start"] + self._settings["texts_per_shard"]]
        some = [documents[line] for line in lines]
        tokenizer = self._tokenizer()
        ids = list(tokenizer.encode_many([document.text for document in some]))
        rows = sequential_chunks(some, ids, tokenizer.end_id, self._settings["chunk_tokens"], order.held_out)
        return pa.Table.from_pylist(list(rows), schema=TOKENS)

    def _labels(self, task: Mapping[str, Any]) -> pa.Table:
        opened = self._source(task["file"])
        rows = [
            row
            for question in self._questions(opened, task)
            if question.split != "dropped"
            for row in labels_of(
                question, gold_texts(question, opened.texts), opened.pool(question), self._settings["hard"]
            )
        ]
        return pa.Table.from_pylist(rows, schema=LABELS)

    def _triples(self, task: Mapping[str, Any]) -> pa.Table:
        if "world" in task:
            return self._newswire(int(task["world"]), held_out=task["name"].endswith("test.parquet"))
        opened = self._source(task["file"])
        asked = list(self._questions(opened, task))
        return table_of([*make_training(opened.maker, asked), *make_judged(opened.maker, asked)])

    def _newswire(self, seed: int, held_out: bool) -> pa.Table:
        """The triples of a simulated world; entities and wordings of the held-out one are in no other."""
        from infra.training.reader_data import gemma_counter
        from pipeline.prepare.newswire import NewswireConfig, newswire_triples

        world = NewswireConfig(
            seed=seed, num_articles=self._settings["world_articles"], split="test" if held_out else "train"
        )
        return table_of(list(newswire_triples(world, _counter(gemma_counter))))

    def _needles(self, task: Mapping[str, Any]) -> pa.Table:
        if "file" in task:
            opened = self._source(task["file"])
            found = [
                (needle, split)
                for split in ("train", "dev", "test")
                for needle in real_needles(
                    [q for q in opened.questions if q.split == split], opened.texts, opened.weights
                )
            ]
        else:
            grammar, chance = NeedleGrammar(), random.Random(f"{self._settings['seed']}:{task['split']}")
            found = [
                (grammar.sample(chance, task["split"], chance.choice((5, 10, 16, None))), task["split"])
                for _ in range(self._settings["needles"])
            ]
        return pa.Table.from_pylist([_row(needle, split) for needle, split in found], schema=NEEDLES)

    def _questions(self, opened: _Opened, task: Mapping[str, Any]) -> Iterator[Question]:
        most = self._settings["limit"] or len(opened.questions)
        end = min(most, task["start"] + self._settings["questions_per_shard"])
        return islice(opened.questions, task["start"], end)

    def _tokenizer(self) -> SubqTokenizer:
        return SubqTokenizer.load(Path(self._settings["out"]) / "tokenizer.json")

    def _open_texts(self, file: int) -> tuple[Order, dict[int, Document]]:
        path = Path(self._settings["texts"][file])
        found = list(islice(read_documents(path), self._settings["limit"] or None))
        return in_order(found, self._settings["test_share"]), {each.line: each for each in found}

    def _open_questions(self, file: int) -> _Opened:
        """The file's questions, split jointly with all Wikipedia files, and what they are read over."""
        from infra.evaluation.qa_sources import open_source
        from infra.training.reader_data import gemma_counter

        path = Path(self._settings["questions"][file])
        corpus = self._settings["corpus"]
        source = open_source(path, Path(corpus) if corpus else None)
        questions, held_back = self._split(path, source.questions, source.texts)

        def pool(question: Question) -> list[SourceText]:
            found = source.pool(question, 2 * POOL)
            if question.split != "test":  # no text under a test question's title is read in training
                found = [text for text in found if title_key(text.title) not in held_back]
            return found[:POOL]

        config = TripleConfig(seed=self._settings["seed"])
        maker = TripleMaker(source.texts, source.weights, pool, _counter(gemma_counter), config)
        return _Opened(questions, source.texts, maker, pool, source.weights)

    def _split(
        self, path: Path, questions: list[Question], texts: Mapping[str, SourceText]
    ) -> tuple[list[Question], frozenset[str]]:
        if _kind(path) not in WIKI:
            return questions, test_title_keys(questions) if _kind(path) == "timeqa" else frozenset()
        files = [Path(each) for each in self._settings["questions"] if _kind(Path(each)) in WIKI]
        joint = assign_splits([q for each in files for q in read_questions(each)], texts)
        split = {(q.dataset, q.question_id): q for q in joint}
        own = [replace(q, split=split[q.dataset, q.question_id].split) for q in questions]
        return own, test_title_keys(joint)


def _counter(make: Callable[[], Callable[[str], int]]) -> Callable[[str], int]:
    """Counts tokens; the tokenizer is opened when the first text is counted."""
    opened: list[Callable[[str], int]] = []

    def count(text: str) -> int:
        if not opened:
            opened.append(make())
        return opened[0](text)

    return count


def _kind(path: Path) -> str:
    return path.name.split(".")[0]


def _row(needle: Needle, split: str) -> dict[str, str]:
    return {
        "sentence": needle.sentence, "question": needle.question, "answer": needle.answer, "kind": needle.kind,
        "form": needle.form, "name": needle.name, "split": split,
    }  # fmt: skip
