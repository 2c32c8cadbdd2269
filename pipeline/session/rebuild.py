"""A session's cache read anew from the articles' text, after one of them was corrected or withdrawn.

Dropping an article's tokens leaves traces: the bases of latents that it shares with others, and all that was
read after it and looked at it. So the newest standing articles that fill the cache are read again, into a
second cache, article by article, while the session goes on; then that cache takes the first one's place.

The contract: the rebuilt cache is, byte for byte, that of a session that has read these articles, in this order,
and nothing else. What is re-read follows from the records alone, so it does not matter when a rebuild is done,
how often it was begun, or whether its process was killed. Heavy hitters older than these articles are lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.article import Article
from pipeline.session.intake import article_text
from pipeline.session.ports import Library, ModelRunner
from pipeline.session.session import Session, read_into
from pipeline.session.state import ReadArticle
from pipeline.store.records import StoredArticle

_FETCH_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class _Done:
    """An article that was read anew, or left out (`num_tokens` 0)."""

    article_id: str
    version_ms: int
    first_token: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of the work: tokens read; whether the text could not be had yet; whether nothing is left."""

    tokens: int = 0
    waits: bool = False
    complete: bool = False


class Rebuild:
    """The rebuild that `session.state.rebuild_from` asks for. One thread; nothing of it is kept on disk."""

    def __init__(self, session: Session, library: Library) -> None:
        self._session = session
        self._library = library
        self._texts: dict[tuple[str, int], str] = {}
        self.tokens = self.restarts = 0
        self._begin()

    @property
    def left(self) -> int:
        """Articles still to be read."""
        return max(0, len(self._session.state.to_reread()) - len(self._done))

    @property
    def left_out(self) -> int:
        """Articles of which the store has no text, or a newer version that the session has yet to read."""
        return sum(done.num_tokens == 0 for done in self._done)

    @property
    def articles(self) -> int:
        """Articles read anew."""
        return len(self._done) - self.left_out

    def step(self, runner: ModelRunner, *, skip_missing: bool) -> Piece:
        """Read the next article, or tell that all are read and `finish` may be called.

        An article that the store does not know yet is waited for, unless `skip_missing`.
        """
        wanted = self._session.state.to_reread()
        if not self._agrees(wanted):
            self.restarts += 1
            self._begin()
        if len(self._done) == len(wanted):
            return Piece(complete=True)
        name, article = wanted[len(self._done)]
        text = self._text(wanted)
        if text is None and not skip_missing:
            return Piece(waits=True)
        if not text:
            self._done.append(_Done(name, article.version_ms, -1, 0))
            return Piece()
        parts = self._session.parts
        first, num_tokens = runner.call(lambda: read_into(self._cache, parts, text))
        self._done.append(_Done(name, article.version_ms, first, num_tokens))
        self.tokens += num_tokens
        return Piece(tokens=num_tokens)

    def finish(self, runner: ModelRunner) -> None:
        """Put what was read in the place of the session's cache. Nothing may read the session meanwhile."""
        state = self._session.state
        runner.call(lambda: self._session.cache.replace_by(self._cache))
        for article in state.read.values():
            article.let_go()
        for done in self._done:
            state.read[done.article_id].first_token = done.first_token
        state.rebuild_from = None

    def _begin(self) -> None:
        self._cache: Any = self._session.parts.backbone.new_cache(self._session.parts.cache)
        self._done: list[_Done] = []

    def _agrees(self, wanted: list[tuple[str, ReadArticle]]) -> bool:
        """Whether what was read so far is the beginning of what is wanted now."""
        given = [(name, article.version_ms) for name, article in wanted[: len(self._done)]]
        return given == [(done.article_id, done.version_ms) for done in self._done]

    def _text(self, wanted: list[tuple[str, ReadArticle]]) -> str | None:
        """The text of the next article, "" where it must be left out, None where the store lacks it still."""
        name, article = wanted[len(self._done)]
        key = (name, article.version_ms)
        if key not in self._texts:
            following = wanted[len(self._done) : len(self._done) + _FETCH_AT_ONCE]
            self._texts = {}
            deadline_s = self._session.parts.config.search_deadline_s
            found = self._library.articles([other for other, _ in following], deadline_s)
            for other, version in following:
                text = _as_read(found.get(other), version.version_ms)
                if text is not None:
                    self._texts[other, version.version_ms] = text
        return self._texts.get(key)


def _as_read(stored: StoredArticle | None, version_ms: int) -> str | None:
    """The text as the session read it; "" if the store has it no longer, None if it does not have it yet."""
    if stored is None or (stored.version_ms or 0) < version_ms:
        return None
    article: Article | None = stored.article
    if stored.deleted or article is None or article.version_ms != version_ms:
        return ""
    return article_text(article)
