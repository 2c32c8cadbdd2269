"""The store: shards that keep articles, chunks and vectors, and search them. No Ray in here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.store.config import SearchConfig, StoreConfig
from pipeline.store.errors import (
    ChunkIdCollision,
    OffsetGap,
    StaleEpoch,
    StoreCorrupt,
    StoreFailed,
    StoreLocked,
    StoreMismatch,
    StoreTooNew,
)
from pipeline.store.records import (
    AppendResult,
    Candidates,
    Change,
    Changes,
    Chunk,
    Coordinate,
    DeadLetter,
    Delete,
    Ledger,
    Link,
    Passage,
    SearchRequest,
    SignatureRow,
    StoredArticle,
    StoreRecord,
    TopicLedger,
    Upsert,
)

if TYPE_CHECKING:
    from pipeline.store.shard import Shard
    from pipeline.store.snapshots import summarize_shard

__all__ = [
    "AppendResult",
    "Candidates",
    "Change",
    "Changes",
    "Chunk",
    "ChunkIdCollision",
    "Coordinate",
    "DeadLetter",
    "Delete",
    "Ledger",
    "Link",
    "OffsetGap",
    "Passage",
    "SearchConfig",
    "SearchRequest",
    "Shard",
    "SignatureRow",
    "StaleEpoch",
    "StoreConfig",
    "StoreCorrupt",
    "StoreFailed",
    "StoreLocked",
    "StoreMismatch",
    "StoreRecord",
    "StoreTooNew",
    "StoredArticle",
    "TopicLedger",
    "Upsert",
    "summarize_shard",
]

_HOMES = {"Shard": "pipeline.store.shard", "summarize_shard": "pipeline.store.snapshots"}


def __getattr__(name: str) -> Any:
    # Shards bring faiss and tantivy: most processes only pass records on, and start a second sooner without.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
