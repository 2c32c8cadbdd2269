"""Where the questions of a file find their texts: Wikipedia passages, pages, dated news, or a newswire."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import BadData, UsageError
from pipeline.prepare.pools import TextIndex, pieces
from pipeline.tasks.contexts import Candidate, WordWeights, candidates, gold_texts, rank_sentences
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    made_of,
    read_lines,
    read_passages,
    read_questions,
    read_timeqa_pages,
    text_of,
)
from pipeline.tasks.scores import holds_answer

NEWS_REACH = 4000
"""Pieces of dated news looked at, best first, before those published too late are passed over."""


@dataclass(frozen=True, slots=True)
class QaSource:
    """Questions with the texts that they are read over."""

    questions: list[Question]
    texts: Mapping[str, SourceText]
    weights: WordWeights
    pool: Callable[[Question, int], list[SourceText]]
    """BM25's best texts for a question, best first."""
    newest: Callable[[Question, int], list[SourceText]] | None = None
    """Of dated news: the articles that a session of its stream had read last when a question was asked."""

    def golds(self, question: Question) -> list[SourceText]:
        """The gold texts of a question that the corpus holds."""
        return gold_texts(question, self.texts)


def open_source(data: Path, corpus: Path | None = None) -> QaSource:
    """The questions of `data` and their texts: `corpus`, else where the data folder has them."""
    kind = data.name.split(".")[0]
    if kind == "timeqa":
        return _pages(data, corpus or beside(data, "timeqa_docs"))
    if kind == "realtimeqa":
        return _news(data, corpus or beside(data.parent.parent / "news" / "x", "rtqa_news_2011_2026"))
    if next(iter(read_lines(data)), {}).get("gold_article_ids") is not None:
        if corpus is None:
            raise UsageError(f"{data} holds newswire questions; give their articles with --corpus FILE")
        return _newswire(data, corpus)
    return _wiki(data, corpus or beside(data.parent.parent / "corpus" / "x", "passages_wiki"))


def beside(path: Path, stem: str) -> Path:
    """The file `stem`.jsonl(.zst) in the folder of `path`; raises UsageError where there is none."""
    for ending in (".jsonl.zst", ".jsonl"):
        if (found := path.with_name(stem + ending)).exists():
            return found
    raise UsageError(f"no {stem}.jsonl(.zst) in {path.parent}; give the texts with --corpus FILE")


def _wiki(data: Path, corpus: Path) -> QaSource:
    texts = read_passages(corpus)
    index = TextIndex(list(texts.values()))
    return QaSource(
        questions=assign_splits(read_questions(data), texts),
        texts=texts,
        weights=WordWeights(text.text for text in texts.values()),
        pool=lambda question, k: index.top(question.text, k),
    )


def _pages(data: Path, corpus: Path) -> QaSource:
    pages = read_timeqa_pages(corpus)
    texts = {text.text_id: text for page in pages.values() for text in page}
    weights = WordWeights(text.text for text in texts.values())

    def pool(question: Question, k: int) -> list[SourceText]:
        page = pages.get(question.titles[0])
        if page is None:
            raise BadData(f"{question.question_id}: its page {question.titles[0]} is not in {corpus}")
        ranked = rank_sentences(question.text, candidates(page), weights)
        return list(dict.fromkeys(choice.source for choice in ranked))[:k]

    return QaSource(
        questions=assign_splits(read_questions(data), texts), texts=texts, weights=weights, pool=pool
    )


def _news(data: Path, corpus: Path) -> QaSource:
    """Dated news: gold is the best piece of a listed article that holds the answer string (a weak label)."""
    by_article = _articles(corpus)
    texts = {piece.text_id: piece for found in by_article.values() for piece in found}
    weights = WordWeights(text.text for text in texts.values())
    questions = []
    for question in read_questions(data):
        listed = [
            piece
            for at in question.pool_ids
            for piece in by_article.get(at, ())
            if piece.date <= question.asked[:10] and holds_answer(piece.text, question.answers)
        ]
        gold = rank_sentences(question.text, _as_wholes(listed), weights)[:1]
        if gold:
            gold_ids = tuple(choice.source.text_id for choice in gold)
            questions.append(replace(question, gold_ids=gold_ids, split="test"))
    return QaSource(
        questions=questions, texts=texts, weights=weights, pool=_dated_pool(texts), newest=Newest(corpus)
    )


def _newswire(data: Path, corpus: Path) -> QaSource:
    by_article = _articles(corpus)
    texts = {piece.text_id: piece for found in by_article.values() for piece in found}
    streams = {}

    def question(row: dict[str, Any]) -> Question:
        streams[row["id"]] = row.get("stream") or ""
        evidence = tuple(row["evidence"])
        told = [p for at in row["gold_article_ids"] for p in by_article.get(at, ())]
        support = [(p, e) for e in evidence for p in told if " ".join(e.split()) in " ".join(p.text.split())]
        first = {sentence: piece for piece, sentence in reversed(support)}
        return Question(
            question_id=row["id"],
            dataset="newswire",
            text=text_of(row, "question"),
            answers=tuple(row["answers"]),
            answerable=row["answerable"],
            gold_ids=tuple(dict.fromkeys(piece.text_id for piece in first.values())),
            asked=row["asked"],
            kind=row["kind"],
            split="train" if row.get("split") == "train" else "test",
        )

    return QaSource(
        questions=list(made_of(data, "a newswire question", question)),
        texts=texts,
        weights=WordWeights(text.text for text in texts.values()),
        pool=_dated_pool(texts),
        newest=Newest(corpus, streams),
    )


class Newest:
    """`newest(question, count)`: the last articles of its stream before it was asked, whole, newest first.

    As they stood then: corrected ones in the form last read, withdrawn ones not at all. `streams` names each
    question's stream; a question that leads over several ("") is asked of the largest. Without `streams` the whole
    file is one stream.
    """

    def __init__(self, corpus: Path, streams: Mapping[str, str] | None = None) -> None:
        self._corpus, self._streams = corpus, streams
        self._rows: list[tuple[str, str, str, SourceText | None]] | None = None
        self._home = ""

    def __call__(self, question: Question, count: int) -> list[SourceText]:
        """At most `count` articles; fewer where the stream had no more."""
        rows = self._read()
        stream = None if self._streams is None else self._streams.get(question.question_id) or self._home
        end = (
            bisect.bisect_right(rows, question.asked, key=lambda row: row[0]) if question.asked else len(rows)
        )
        found: list[SourceText] = []
        seen: set[str] = set()
        for at in range(end - 1, -1, -1):
            _, name, own, text = rows[at]
            if len(found) == count:
                break
            if name not in seen:
                seen.add(name)
                if text is not None and stream in (None, own):
                    found.append(text)
        return found

    def _read(self) -> list[tuple[str, str, str, SourceText | None]]:
        """(moment, article, stream, text; None where withdrawn) in order of time, read when first asked for."""
        if self._rows is None:
            made = []
            for row in read_lines(self._corpus):
                published = row.get("published") or ""
                gone = bool(row.get("deleted"))
                text = None if gone else SourceText(
                    text_id=row["id"], title=row["title"], text=row["text"], date=published[:10]
                )  # fmt: skip
                made.append((row.get("updated") or published, row["id"], row.get("stream") or "", text))
            self._rows = sorted(made, key=lambda each: each[0])
            counts = Counter(stream for _, _, stream, text in made if text is not None)
            self._home = counts.most_common(1)[0][0] if counts else ""
        return self._rows


def _articles(corpus: Path) -> dict[str, list[SourceText]]:
    """The newest form of every article that was not withdrawn, in pieces."""
    newest: dict[str, SourceText] = {}

    def put(row: dict[str, Any]) -> None:
        if row.get("deleted"):
            newest.pop(row["id"], None)
            return
        published = (row.get("published") or "")[:10]
        newest[row["id"]] = SourceText(
            text_id=row["id"], title=text_of(row, "title"), text=text_of(row, "text"), date=published
        )

    for _ in made_of(corpus, "an article", put):
        pass
    if not newest:
        raise BadData(f"{corpus} holds no article; give lines of {{id, title, text, published}}")
    return {at: pieces(article) for at, article in newest.items()}


def _dated_pool(texts: Mapping[str, SourceText]) -> Callable[[Question, int], list[SourceText]]:
    index = TextIndex(list(texts.values()))

    def pool(question: Question, k: int) -> list[SourceText]:
        day = question.asked[:10]
        return index.top(question.text, k, lambda text: text.date <= day, reach=NEWS_REACH)

    return pool


def _as_wholes(texts: Sequence[SourceText]) -> list[Candidate]:
    return [Candidate(text, text.text, (at, 0)) for at, text in enumerate(texts)]
