"""What can go wrong with a store, each with the file, the value given and what to do."""

from __future__ import annotations

from pipeline.errors import BadData, DependencyUnreachable, DysraError, UsageError


class StoreMismatch(UsageError):
    """The store on disk was made with another embedder, width or number of shards."""


class StoreLocked(UsageError):
    """Another process holds the shard."""


class StoreCorrupt(BadData):
    """A file of the store is damaged and cannot be rebuilt from another."""


class StoreTooNew(BadData):
    """A file of the store was written by a newer version of DySRA."""


class ChunkIdCollision(BadData):
    """Two different chunks have the same 63-bit id; `article_id` names the one that cannot be stored."""

    def __init__(self, message: str, article_id: str) -> None:
        super().__init__(message)
        self.article_id = article_id


class StaleEpoch(DysraError):
    """An ingester that has been replaced tried to write: its epoch is older than the newest seen."""

    exit_code = 1


class OffsetGap(DysraError):
    """A shard that lost records to a damaged file was given later ones: nothing may be skipped over."""

    exit_code = 1


class StoreFailed(DependencyUnreachable):
    """The disk refused a write: an outage. Callers try again, and nothing of the write is stored."""
