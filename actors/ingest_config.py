"""What an operator sets about the continuous ingest job."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """How many actors ingest, how much may be under way, and how failures are met."""

    num_ingesters: int = field(
        default=1, metadata={"help": "ingest actors; the topic's partitions are spread over them"}
    )
    num_embedders: int = field(default=1, metadata={"help": "embedder actors, asked in turn"})
    near_duplicate_shards: int = field(
        default=1,
        metadata={
            "help": "actors over which the near-duplicate index is divided by stream; about one for 40,000 "
            "articles a second, made anew from the store at each start"
        },
    )
    max_inflight_records: int = field(
        default=4_096, metadata={"help": "records of one ingester not yet durable, above which it pauses"}
    )
    max_inflight_bytes: int = field(
        default=64_000_000, metadata={"help": "bytes of records not yet durable, above which it pauses"}
    )
    resume_at: float = field(
        default=0.5, metadata={"help": "share of these limits below which paused partitions resume"}
    )
    embed_target_s: float = field(
        default=0.5, metadata={"help": "seconds of embedding that one batch should take; sets its size"}
    )
    commit_interval_s: float = field(
        default=1.0, metadata={"help": "seconds between commits of durable offsets to the consumer group"}
    )
    stop_grace_s: float = field(
        default=1.5,
        metadata={"help": "seconds that a stop waits for what is under way; the rest is read again"},
    )
    retry_first_s: float = field(
        default=0.1, metadata={"help": "first wait after a failed call, doubled each time"}
    )
    retry_max_s: float = field(default=5.0, metadata={"help": "longest wait between two tries"})
    outage_limit_s: float = field(
        default=600.0, metadata={"help": "seconds without an embedder or shard after which ingest gives up"}
    )
    max_restarts: int = field(
        default=10, metadata={"help": "restarts of one actor within restart_window_s before ingest gives up"}
    )
    restart_window_s: float = field(
        default=600.0, metadata={"help": "window in which restarts are counted, s"}
    )
    silent_limit_s: float = field(
        default=120.0, metadata={"help": "seconds without a word from an ingester after which it is replaced"}
    )
    health_interval_s: float = field(default=1.0, metadata={"help": "seconds between looks at the actors"})
    maintain_interval_s: float = field(
        default=10.0, metadata={"help": "seconds between a shard's looks at sealing, expiry and compaction"}
    )
    shard_placement: str = field(
        default="head",
        metadata={
            "help": "head: shards run on the cluster's head node; any: every node sees the store folder"
        },
    )
    gpus_per_embedder: float = field(
        default=0.25, metadata={"help": "share of a GPU that an embedder reserves where the cluster has GPUs"}
    )

    def __post_init__(self) -> None:
        for name in (
            "num_ingesters",
            "num_embedders",
            "near_duplicate_shards",
            "max_inflight_records",
            "max_inflight_bytes",
            "max_restarts",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in (
            "embed_target_s",
            "commit_interval_s",
            "retry_first_s",
            "retry_max_s",
            "outage_limit_s",
            "restart_window_s",
            "silent_limit_s",
            "health_interval_s",
            "maintain_interval_s",
            "stop_grace_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 < self.resume_at < 1:
            raise ValueError(f"resume_at is {self.resume_at}; allowed is above 0, below 1")
        if self.shard_placement not in ("head", "any"):
            raise ValueError(f"shard_placement is {self.shard_placement!r}; allowed: head, any")
        if self.gpus_per_embedder < 0:
            raise ValueError(f"gpus_per_embedder is {self.gpus_per_embedder}; it must not be negative")
