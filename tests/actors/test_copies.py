"""actors/copies.py: whose copies are settled, and whose wait."""

from __future__ import annotations

from typing import Any, cast

import pytest

from actors.copies import CopyMender
from actors.store_client import StoreClient
from pipeline.chunker import ChunkConfig
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.store import StoredArticle


class _Client:
    """A store of one shard that holds `stored` and counts who asks for copies."""

    name, num_shards = "store", 1

    def __init__(self, stored: dict[str, StoredArticle | None]) -> None:
        self.stored, self.asked = stored, 0

    def articles(self, ids: list[str]) -> dict[str, StoredArticle | None]:
        return {name: self.stored[name] for name in ids}

    def shard_handle(self, _shard: int) -> Any:
        self.asked += 1
        raise RuntimeError("copies are asked for")


def _mender(client: _Client) -> CopyMender:
    return CopyMender(
        cast(StoreClient, client), cast(Any, None), ChunkConfig(), NearDuplicateConfig(), lambda prints: []
    )


def _stored(*, deleted: bool, canonical_id: str | None = None) -> StoredArticle:
    return cast(StoredArticle, type("Found", (), {"deleted": deleted, "canonical_id": canonical_id})())


def test_copies_of_an_article_that_the_store_never_had_wait_for_it() -> None:
    """It was judged by an ingester that was paused before it appended it, and is read again: both would stand."""
    client = _Client({"on its way": None, "here": _stored(deleted=False)})
    assert _mender(client).mend(["on its way", "here"]) == 0
    assert client.asked == 0


def test_copies_of_a_withdrawn_or_a_linked_article_are_settled() -> None:
    """Neither can be found itself."""
    for gone in (_stored(deleted=True), _stored(deleted=False, canonical_id="other")):
        client = _Client({"gone": gone})
        with pytest.raises(RuntimeError, match="copies are asked for"):
            _mender(client).mend(["gone"])
        assert client.asked == 1
