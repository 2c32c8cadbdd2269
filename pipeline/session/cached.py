"""What a session's own cache offers to be chosen beside what the store finds: its newest articles, in one list.

A cache holds tokens, not texts, and a reader is given texts: so the articles are the cache's, their text the
store's, which also tells whether they still stand. A search knows words and meanings and passes over news that
answers in others; what was read last is there all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.session.answer import Question
from pipeline.session.ports import Library
from pipeline.store.records import Passage


def beside(
    found: Sequence[Passage],
    newest: Sequence[str],
    question: Question,
    stream: str,
    library: Library,
    deadline_s: float,
) -> list[Passage]:
    """The passages that were found, then each of the articles `newest` (newest first) that they lack, whole.

    The question's bounds hold for them too. Articles that were corrected stand as they are now, withdrawn ones and
    those that moved to another stream do not.
    """
    known = {passage.article_id for passage in found}
    wanted = [article_id for article_id in newest if article_id not in known]
    if not wanted:
        return list(found)
    stored = library.articles(wanted, deadline_s)
    added = []
    for article_id in wanted:
        one = stored.get(article_id)
        if one is None or one.deleted or one.article is None or one.canonical_id is not None:
            continue
        article = one.article
        if article.stream != stream or not _asked_for(article.published_ms, article.source, question):
            continue
        if question.as_of_ms is not None and (one.version_ms or 0) > question.as_of_ms:
            continue
        added.append(
            Passage(
                chunk_id=-1, article_id=article_id, ordinal=0, text=article.text, title=article.title,
                source=article.source, stream=article.stream, published_ms=article.published_ms,
                version_ms=one.version_ms or 0, url=article.url,
            )
        )  # fmt: skip
    return [*found, *added]


def _asked_for(published_ms: int, source: str, question: Question) -> bool:
    if question.since_ms is not None and published_ms < question.since_ms:
        return False
    if question.as_of_ms is not None and published_ms > question.as_of_ms:
        return False
    return question.sources is None or source in question.sources
