"""A session's store on one shard in this process, searched by words: for measuring and tests, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.article import Article
from pipeline.merge import merge_candidates
from pipeline.session.ports import Changed, Place, Query, place_of
from pipeline.store import Passage, SearchRequest, Shard, StoredArticle


class OneShardLibrary:
    """A `pipeline.session.ports.Library` over `shard`, whose files `close` gives back; it has no embedder."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def search(self, query: Query, deadline_s: float) -> tuple[list[Passage], bool]:
        """Passages by words, best first; never partial."""
        request = SearchRequest(
            k=query.k,
            mode="bm25",
            texts=[query.text],
            streams=query.streams,
            sources=query.sources,
            since_ms=query.since_ms,
            as_of_ms=query.as_of_ms,
        )
        return merge_candidates([self._shard.candidates(request)], request)[0], False

    def articles(self, article_ids: Sequence[str], deadline_s: float) -> Mapping[str, StoredArticle]:
        """The newest version, or tombstone, of each article; unknown ids are left out."""
        found = {name: self._shard.article(name) for name in article_ids}
        return {name: stored for name, stored in found.items() if stored is not None}

    def recent(self, stream: str, limit: int, before_ms: int | None, deadline_s: float) -> list[Article]:
        """The newest articles of a stream, newest first."""
        return self._shard.recent(stream, limit, before_ms)

    def changes(self, cursor: Sequence[int] | None) -> Changed:
        """What changed since (None: since as long ago as is known)."""
        found = self._shard.changes(cursor[0] if cursor else 0)
        return Changed(frozenset(one.article_id for one in found.entries), (found.latest,), found.truncated)

    def places(self, article_ids: Sequence[str]) -> Mapping[str, Place]:
        """Where articles stand, unknown ones left out."""
        return {name: place_of(stored) for name, stored in self.articles(article_ids, 5.0).items()}

    def embed(self, texts: Sequence[str], deadline_s: float) -> None:
        """None: words alone."""

    def close(self) -> None:
        """Give the files back."""
        self._shard.close()
