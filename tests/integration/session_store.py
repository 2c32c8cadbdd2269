"""Fills a running store with articles as ingest does, without an ingest job: chunked, embedded, appended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.remote import call
from actors.store_client import StoreClient
from models.embed import EmbedderConfig, load_tokenizer
from pipeline.article import Article
from pipeline.chunker import ChunkConfig, chunk_article
from pipeline.placement import shard_of
from pipeline.store import Coordinate, Delete, Upsert

_TOPIC, _EPOCH = "filled-by-tests", 1


class StoreFiller:
    """Appends to the shards of one store, in order."""

    def __init__(self, client: StoreClient, embedder: EmbedderConfig) -> None:
        self._client = client
        self._tokenizer = load_tokenizer(embedder)
        self._offset = 0

    def add(self, articles: Sequence[Article]) -> None:
        """Store articles and make them searchable."""
        for article in articles:
            budget = min(ChunkConfig().max_tokens, self._tokenizer.max_tokens)
            chunks, texts = chunk_article(article, self._tokenizer, ChunkConfig(max_tokens=budget))
            vectors = call(self._client.next_embedder().encode.remote(texts))
            self._append(
                article.id,
                Upsert(
                    coordinate=self._coordinate(),
                    article=article,
                    chunks=chunks,
                    vectors=np.asarray(vectors, dtype=np.float16),
                ),
            )

    def delete(self, article_id: str) -> None:
        """Withdraw an article."""
        self._append(article_id, Delete(coordinate=self._coordinate(), article_id=article_id))

    def _coordinate(self) -> Coordinate:
        self._offset += 1
        return Coordinate(_TOPIC, 0, self._offset)

    def _append(self, article_id: str, record: Upsert | Delete) -> None:
        shard = self._client.shard_handle(shard_of(article_id, self._client.num_shards))
        call(shard.append.remote([record], {(_TOPIC, 0): self._offset + 1}, _EPOCH))
