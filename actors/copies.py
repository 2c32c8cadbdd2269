"""Copies of a withdrawn article: the oldest that still stands becomes searchable, the others follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from actors.remote import Outage, call
from actors.store_client import StoreClient
from models.embed import TextTokenizer
from pipeline.chunker import ChunkConfig, chunk_article
from pipeline.log import get_logger
from pipeline.near_duplicates import Fingerprint, Fingerprinter, Match, NearDuplicateConfig
from pipeline.placement import shard_of
from pipeline.store import StoredArticle
from pipeline.store.copies import Copy, Settlement

_TIMEOUT_S = 60.0
_EMBED_TIMEOUT_S = 600.0
Adopt = Callable[[list[Fingerprint]], list[Match | None]]


class CopyMender:
    """Settles the copies of withdrawn articles. May be repeated at any time, by anyone: it changes nothing twice.

    `adopt` compares copies with the near-duplicate index and with one another, and remembers those that stand.
    """

    def __init__(
        self,
        client: StoreClient,
        tokenizer: TextTokenizer,
        chunks: ChunkConfig,
        duplicates: NearDuplicateConfig,
        adopt: Adopt,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._chunks = chunks
        self._fingerprinter = Fingerprinter(duplicates)
        self._adopt = adopt
        self._log = get_logger(store=client.name)

    def mend_all(self) -> int:
        """Settle every copy whose original is gone, as after a kill; how many there were."""
        names = {name for found in self._ask_all("originals") for name in found}
        return self.mend(names)

    def mend(self, article_ids: Iterable[str]) -> int:
        """Settle the copies of those of these articles that do not stand any more; how many there were."""
        stored = self._client.articles(sorted(set(article_ids)))
        gone = [name for name, found in stored.items() if not _stands(found)]
        if not gone:
            return 0
        copies = [copy for found in self._ask_all("copies_of", gone) for copy in found]
        if not copies:
            return 0
        copies.sort(key=lambda copy: (copy.article.published_ms, copy.article.id))
        prints = [self._fingerprinter.fingerprint(copy.article) for copy in copies]
        settled = self._settlements(copies, prints, self._adopt(prints))
        for shard in range(self._client.num_shards):
            mine = [s for s in settled if shard_of(s.article_id, self._client.num_shards) == shard]
            if mine:
                call(self._client.shard_handle(shard).settle.remote(mine), _TIMEOUT_S)
        standing = sum(s.linked_to is None for s in settled)
        self._log.info(
            "copies_settled", withdrawn=len(gone), standing=standing, linked=len(settled) - standing
        )
        return len(settled)

    def _settlements(
        self, copies: Sequence[Copy], prints: Sequence[Fingerprint], matches: Sequence[Match | None]
    ) -> list[Settlement]:
        """What becomes of each copy; the texts of those that stand are embedded in one call."""
        cut = [
            chunk_article(copy.article, self._tokenizer, self._chunks) if match is None else ([], [])
            for copy, match in zip(copies, matches, strict=True)
        ]
        vectors = self._embed([text for _, texts in cut for text in texts])
        settled, at = [], 0
        for copy, mark, match, (chunks, texts) in zip(copies, prints, matches, cut, strict=True):
            settled.append(
                Settlement(
                    article_id=copy.article.id,
                    version_ms=copy.article.version_ms,
                    canonical_id=copy.canonical_id,
                    linked_to=None if match is None else match.canonical_id,
                    similarity=0.0 if match is None else match.similarity,
                    chunks=chunks,
                    vectors=np.ascontiguousarray(vectors[at : at + len(texts)]),
                    signature=mark.signature,
                )
            )
            at += len(texts)
        return settled

    def _embed(self, texts: list[str]) -> Any:
        if not texts:
            return np.zeros((0, self._client.dim), dtype=np.float16)
        return np.asarray(
            call(self._client.next_embedder().encode.remote(texts), _EMBED_TIMEOUT_S), dtype=np.float16
        )

    def _ask_all(self, method: str, *args: Any) -> list[Any]:
        try:
            handles = [self._client.shard_handle(shard) for shard in range(self._client.num_shards)]
            refs = [getattr(handle, method).remote(*args) for handle in handles]
            return [call(ref, _TIMEOUT_S) for ref in refs]
        except Outage:
            self._client.forget_handles()
            raise


def _stands(found: StoredArticle | None) -> bool:
    """Whether an article can be found itself, or will be: then its copies need not be.

    What the store has never had is on its way: judged by an ingester that was paused or killed before it appended
    it; its offset is not committed, so that it is read again. Its copies stay linked to it meanwhile.
    """
    return found is None or (not found.deleted and found.canonical_id is None)
