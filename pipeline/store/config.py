"""How shards keep what they hold, and how they are searched: what an operator sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.store.records import Mode

Fusion = Literal["adaptive", "convex", "rrf"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """How shards keep what they hold."""

    path: Path = field(
        default=Path("store"), metadata={"help": "folder of the store; a shard has one inside"}
    )
    num_shards: int = field(default=1, metadata={"help": "number of shards; fixed when the store is made"})
    seal_rows: int = field(
        default=16_384, metadata={"help": "chunks after which the growing segment is sealed"}
    )
    seal_bytes: int = field(
        default=256_000_000, metadata={"help": "bytes of text after which the growing segment is sealed"}
    )
    window_hours: float = field(
        default=720.0,
        metadata={"help": "hours of publication time that one segment should span at most"},
    )
    min_seal_rows: int = field(
        default=2_048, metadata={"help": "chunks below which passing the window does not seal a segment"}
    )
    ivf_rows: int = field(
        default=262_144, metadata={"help": "chunks from which a sealed segment gets an IVF index; 0: never"}
    )
    ivf_probes: int = field(
        default=128, metadata={"help": "IVF lists that a search reads: more find more and take longer"}
    )
    merge_segments: int = field(
        default=8, metadata={"help": "segments of similar size after which compaction merges them; 0: never"}
    )
    max_segment_rows: int = field(
        default=1_048_576, metadata={"help": "chunks that a merged segment has at most"}
    )
    compact_dead: float = field(
        default=0.2, metadata={"help": "share of dead chunks above which a segment is rewritten"}
    )
    retention_days: float = field(
        default=0.0, metadata={"help": "days of publication time that are kept; 0: for ever"}
    )
    lexical_commit_ms: float = field(
        default=200.0, metadata={"help": "longest time that an appended article waits for keyword search, ms"}
    )
    wal_bytes: int = field(default=64_000_000, metadata={"help": "size at which a WAL file is closed, bytes"})
    wal_compress: bool = field(default=False, metadata={"help": "compress WAL records with zstd"})
    change_log: int = field(
        default=100_000, metadata={"help": "corrections and withdrawals that sessions can look back on"}
    )
    device: str = field(
        default="cpu", metadata={"help": "where vectors are searched: cpu, or a CUDA device such as cuda:0"}
    )
    verify: bool = field(
        default=True, metadata={"help": "check every file's checksum when a shard is opened"}
    )
    repair: bool = field(
        default=True,
        metadata={
            "help": "set damaged files aside and take what they held from the topic again; false: refuse to open"
        },
    )
    snapshot_copies: bool = field(
        default=False,
        metadata={
            "help": "snapshots are copies of the files, checked once written; false: hard links, which cost no "
            "room and share whatever happens to the file later"
        },
    )

    def __post_init__(self) -> None:
        for name in ("num_shards", "seal_rows", "seal_bytes", "min_seal_rows", "ivf_probes", "wal_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("ivf_rows", "merge_segments", "retention_days", "lexical_commit_ms", "change_log"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.merge_segments == 1:
            raise ValueError("merge_segments is 1; it must be 0 (never) or at least 2")
        if not 0 < self.compact_dead <= 1:
            raise ValueError(f"compact_dead is {self.compact_dead}; allowed is above 0, up to 1")
        if self.window_hours <= 0:
            raise ValueError(f"window_hours is {self.window_hours}; it must be above 0")
        if self.max_segment_rows < self.seal_rows:
            raise ValueError(
                f"max_segment_rows is {self.max_segment_rows}; it must be at least seal_rows ({self.seal_rows})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How searches are made and fused."""

    k: int = field(default=10, metadata={"help": "passages that a search returns"})
    mode: Mode = field(default="hybrid", metadata={"help": "dense, bm25 or hybrid"})
    depth: int = field(default=100, metadata={"help": "candidates that each list brings to the fusion"})
    fusion: Fusion = field(
        default="adaptive",
        metadata={
            "help": "adaptive (dense score, plus BM25 the more the less sure the dense search is), convex "
            "(weighted scores) or rrf (weighted reciprocal ranks)"
        },
    )
    bm25_weight: float = field(
        default=0.65, metadata={"help": "adaptive: weight of BM25 where the dense search is wholly unsure"}
    )
    bm25_fade: float = field(
        default=1.5, metadata={"help": "adaptive: how fast BM25's weight falls as the best dense score rises"}
    )
    dense_weight: float = field(
        default=0.5, metadata={"help": "convex, rrf: weight of the dense list, 0 to 1; the rest is BM25's"}
    )
    rrf_k: float = field(default=60.0, metadata={"help": "rrf: constant added to each rank"})
    deadline_s: float = field(
        default=2.0, metadata={"help": "seconds that a shard may take before the answer is partial"}
    )

    def __post_init__(self) -> None:
        for name in ("k", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.mode not in ("dense", "bm25", "hybrid"):
            raise ValueError(f"mode is {self.mode!r}; allowed: dense, bm25, hybrid")
        if self.fusion not in ("adaptive", "convex", "rrf"):
            raise ValueError(f"fusion is {self.fusion!r}; allowed: adaptive, convex, rrf")
        for name in ("bm25_weight", "bm25_fade"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.dense_weight <= 1:
            raise ValueError(f"dense_weight is {self.dense_weight}; allowed is 0 to 1")
        if self.rrf_k <= 0 or self.deadline_s <= 0:
            raise ValueError("rrf_k and deadline_s must be above 0")
