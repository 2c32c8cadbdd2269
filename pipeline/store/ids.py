"""Ids of chunks: the same chunk has the same id in every replay, on every machine."""

from __future__ import annotations

from functools import lru_cache

import xxhash

_MASK = (1 << 63) - 1


def chunk_id(article_id: str, ordinal: int) -> int:
    """63-bit id of the chunk `ordinal` of an article (the unit separator cannot occur in an article id)."""
    return xxhash.xxh3_64_intdigest(f"{article_id}\x1f{ordinal}".encode()) & _MASK


@lru_cache(maxsize=8_192)
def chunk_ids(article_id: str, num_chunks: int) -> tuple[int, ...]:
    """Ids of the chunks 0 to num_chunks - 1; remembered, because an append asks thrice."""
    return tuple(chunk_id(article_id, ordinal) for ordinal in range(num_chunks))
