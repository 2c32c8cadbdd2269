"""The store as sessions use it (`pipeline.session.ports.Library`), through the store's actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from actors.store_client import StoreClient
from pipeline.article import Article
from pipeline.errors import DependencyUnreachable
from pipeline.log import get_logger
from pipeline.session.ports import Changed, Place, Query, place_of
from pipeline.store.records import Passage, StoredArticle


class StoreLibrary:
    """Searches, looks up and embeds; what a dead shard holds is missing, never guessed."""

    def __init__(self, client: StoreClient) -> None:
        self._client = client
        self._log = get_logger(store=client.name)

    def search(self, query: Query, deadline_s: float) -> tuple[list[Passage], bool]:
        """Passages, best first, and whether a shard or the embedder did not answer in time."""
        result = self._client.search(
            [query.text],
            k=query.k,
            streams=query.streams,
            sources=query.sources,
            since_ms=query.since_ms,
            as_of_ms=query.as_of_ms,
            deadline_s=deadline_s,
        )
        return result.passages[0], result.partial

    def articles(self, article_ids: Sequence[str], deadline_s: float) -> Mapping[str, StoredArticle]:
        """The newest version or tombstone of each article; unknown ones and those of dead shards left out."""
        try:
            found = self._client.articles(article_ids)
        except DependencyUnreachable:
            found = {}
            for article_id in article_ids:
                try:
                    found[article_id] = self._client.article(article_id)
                except DependencyUnreachable as error:
                    self._log.warning("article_not_checked", article_id=article_id, error=str(error))
        return {name: article for name, article in found.items() if article is not None}

    def recent(self, stream: str, limit: int, before_ms: int | None, deadline_s: float) -> list[Article]:
        """The newest articles of a stream, newest first."""
        return self._client.recent(stream, limit, before_ms)

    def changes(self, cursor: Sequence[int] | None) -> Changed:
        """What changed since; DependencyUnreachable where a shard does not answer."""
        found = self._client.changes(cursor)
        return Changed(frozenset(one.article_id for one in found.entries), found.cursor, found.truncated)

    def places(self, article_ids: Sequence[str]) -> Mapping[str, Place]:
        """Where articles stand, unknown ones left out; DependencyUnreachable where a shard does not answer."""
        found = self._client.articles(article_ids)
        return {name: place_of(stored) for name, stored in found.items() if stored is not None}

    def embed(self, texts: Sequence[str], deadline_s: float) -> npt.NDArray[np.float32] | None:
        """Unit vectors of the texts, or None where no embedder answers."""
        try:
            return self._client.embed_questions(texts)
        except DependencyUnreachable as error:
            self._log.warning("sentences_not_embedded", error=str(error))
            return None
