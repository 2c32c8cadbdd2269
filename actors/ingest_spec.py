"""All that an ingest job is told: the configurations of its parts and the store that it fills."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.ingest_config import IngestConfig
from models.embed import EmbedderConfig
from pipeline.article import ArticleLimits
from pipeline.chunker import ChunkConfig
from pipeline.kafka import KafkaConfig
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.source import SourceConfig
from pipeline.store import SearchConfig, StoreConfig


def _source() -> SourceConfig:
    """Ends looked at every second: lag is a figure that operators watch."""
    return SourceConfig(check_s=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestSpec:
    """One topic into one store."""

    kafka: KafkaConfig
    store: StoreConfig
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    duplicates: NearDuplicateConfig = field(default_factory=NearDuplicateConfig)
    articles: ArticleLimits = field(default_factory=ArticleLimits)
    search: SearchConfig = field(default_factory=SearchConfig)
    source: SourceConfig = field(default_factory=_source)

    @classmethod
    def from_config(cls, config: Any, *, source: SourceConfig | None = None) -> IngestSpec:
        """The spec of an effective configuration (one attribute a section)."""
        return cls(
            kafka=config.kafka,
            store=config.store,
            embedder=config.embedder,
            ingest=config.ingest,
            chunks=config.chunks,
            duplicates=config.duplicates,
            articles=config.articles,
            search=config.search,
            source=source or _source(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What one ingester reads: next offset of each partition (None: from the start), under one epoch."""

    ingester: int
    epoch: int
    offsets: dict[int, int | None]
    durable: tuple[dict[int, int], ...]
    """For each shard, the next offset of each partition: records before it need no work for that shard."""
