"""From a Kafka record to what a session takes of it: which records matter to it, and the text of each.

A record is settled before any model work, so that streams sharing a partition cost only their parsing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.article import Article, ArticleLimits, BadRecord, Deletion, parse_record
from pipeline.session.guard import quoted
from pipeline.session.prompts import one_line
from pipeline.session.state import ReadArticle, SessionState
from pipeline.source import Record

Kind = Literal["article", "update", "withdrawal"]
Skipped = Literal["repeats", "other", "bad"]
_TITLE_CHARS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """What a session takes of a record: text for the cache, what to remember of it. A withdrawal has no text."""

    kind: Kind
    article_id: str
    version_ms: int
    published_ms: int
    title: str
    text: str


def plan(record: Record, stream: str, state: SessionState, limits: ArticleLimits) -> Intake | Skipped:
    """What the record asks the session of `stream` to read, or the reason why it reads nothing.

    Bad records are passed over (ingest dead-letters them). The same version again, or an older one, is a
    repeat. A deletion matters only if the session remembers having read the article, and so does a later version
    that stands in another stream: what was read here is not true of this stream any more.
    """
    try:
        parsed = parse_record(record.key, record.value, record.headers, limits)
    except BadRecord:
        return "bad"
    known = state.read.get(parsed.id)
    if isinstance(parsed, Deletion):
        if known is None:
            return "other"
        return "repeats" if known.withdrawn else _withdrawal(parsed, known)
    if parsed.stream != stream:
        moved = known is not None and not known.withdrawn and parsed.version_ms > known.version_ms
        return _withdrawal(parsed, known) if moved and known is not None else "other"
    if known is not None and known.version_ms >= parsed.version_ms:
        return "repeats"
    return Intake(
        kind="article" if known is None else "update",
        article_id=parsed.id,
        version_ms=parsed.version_ms,
        published_ms=parsed.published_ms,
        title=one_line(parsed.title)[:_TITLE_CHARS],
        text=article_text(parsed),
    )


def article_text(article: Article) -> str:
    """How an article stands in the cache: a line of date, source and title, then its text.

    It follows from the article alone, so that what is read anew is what was read before; nothing in it can pass
    for a part of a prompt.
    """
    mark = ""
    if article.updated is not None:
        mark = f" [updated {article.updated.date().isoformat()}, replaces the earlier text]"
    head = (
        f"{article.published.date().isoformat()} {one_line(article.source)}: {one_line(article.title)}{mark}"
    )
    return quoted(f"{head}\n{article.text.strip()}\n\n")


def remembered(intake: Intake, first_token: int, num_tokens: int) -> ReadArticle:
    """What the session keeps of what it took."""
    return ReadArticle(
        version_ms=intake.version_ms,
        first_token=first_token,
        num_tokens=num_tokens,
        title=intake.title,
        withdrawn=intake.kind == "withdrawal",
    )


def _withdrawal(parsed: Deletion | Article, known: ReadArticle) -> Intake:
    version_ms = known.version_ms if isinstance(parsed, Deletion) else parsed.version_ms
    return Intake(
        kind="withdrawal",
        article_id=parsed.id,
        version_ms=version_ms,
        published_ms=known.version_ms,
        title="",  # where the title is the news, it is withdrawn with the rest
        text="",
    )
