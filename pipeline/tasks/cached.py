"""A question's candidates as a session with `session.cache_candidates` has them: the search's and its cache's.

The list is put together by the session's own functions, so that policies learn and are judged on what they serve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

from pipeline.article import Article
from pipeline.session.answer import Question as Asked
from pipeline.session.cached import beside
from pipeline.session.ports import Library
from pipeline.session.sentences import candidates
from pipeline.store.records import Passage, StoredArticle
from pipeline.tasks.contexts import Candidate, CountTokens
from pipeline.tasks.qa import Question, SourceText

CACHED = "_cached"
"""What the name of a set ends in whose questions are asked with a cache, beside the same ones without."""
CACHE = 8
"""Newest articles of a cache that policies learn beside, unless told otherwise.

Sessions offer none by default. Of a newswire world's questions over one stream one in five is told by one of
eight (by one of four one in ten, of sixteen one in three); they have about 125 sentences, twice as many as twelve
texts of the search.
"""
_STREAM = "asked"
_PART = re.compile(r"(?:@v\d+)?(?:#\d+)?$")


def article_of(text_id: str) -> str:
    """The article of a text: its id without the marks of a piece ("#3") and of a later form ("@v1")."""
    return _PART.sub("", text_id)


def offered(
    question: str, found: Sequence[SourceText], newest: Sequence[SourceText], count_tokens: CountTokens
) -> list[Candidate]:
    """The sentences of the texts that were found, then of the whole articles `newest` that are none of theirs.

    `newest`: newest first, as they stand when the question is asked. Each sentence stands once; places are (place
    of the text in the list, place of the sentence in the text).
    """
    whole = {article_of(text.text_id): replace(text, text_id=article_of(text.text_id)) for text in newest}
    passages = [_passage(text) for text in found]
    listed = beside(passages, list(whole), Asked(text=question), _STREAM, cast(Library, _Shelf(whole)), 0.0)
    texts = [*found, *(whole[passage.article_id] for passage in listed[len(found) :])]
    return [
        Candidate(texts[each.rank], each.text, (each.rank, each.position % 10_000))
        for each in candidates(listed, count_tokens)
    ]


def told_among(
    question: Question, tellings: Sequence[Sequence[tuple[str, str]]], choices: Sequence[Candidate]
) -> tuple[Question, tuple[str, ...]]:
    """The question with one telling (title, sentence) of each hop as its support, and the sentences of the others.

    Of each hop the first that is among the choices, else the first; hops that nothing tells are left out.
    """
    named, others = [], []
    for options in tellings:
        there = (option for option in options if any(_tells(option, choice) for choice in choices))
        best = next(there, next(iter(options), None))
        if best is not None:
            named.append(best)
            others += [option[1] for option in options if option != best]
    return replace(question, support=tuple(dict.fromkeys(named))), tuple(dict.fromkeys(others))


def _tells(option: tuple[str, str], choice: Candidate) -> bool:
    return option[0] == choice.source.title and option[1] in choice.text


class _Shelf:
    """As much of a store as the session's list asks for: articles by their ids."""

    def __init__(self, texts: Mapping[str, SourceText]) -> None:
        self._texts = texts

    def articles(self, article_ids: Sequence[str], deadline_s: float) -> dict[str, StoredArticle]:
        """The articles; unknown ids are left out."""
        known = {name: self._texts[name] for name in article_ids if name in self._texts}
        return {name: _stored(name, text) for name, text in known.items()}


def _stored(name: str, text: SourceText) -> StoredArticle:
    article = Article(
        id=name, published=_day(text), source="", title=text.title, text=text.text, stream=_STREAM
    )
    return StoredArticle(id=name, version_ms=article.version_ms, article=article)


def _passage(text: SourceText) -> Passage:
    name = article_of(text.text_id)
    stands = _stored(name, text)
    return Passage(
        chunk_id=-1, article_id=name, ordinal=0, text=text.text, title=text.title, source="", stream=_STREAM,
        published_ms=stands.version_ms or 0, version_ms=stands.version_ms or 0,
    )  # fmt: skip


def _day(text: SourceText) -> datetime:
    return datetime.fromisoformat(text.date or "1970-01-01").replace(tzinfo=UTC)
