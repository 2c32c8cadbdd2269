"""What a source of Kafka records hands out, how it is set, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Record(NamedTuple):
    """One Kafka record as it was read; `value` None deletes. `timestamp_ms` is Kafka's, since the epoch.

    `unreadable` says why it could not be read: then key and value are empty, and only its place is known.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    unreadable: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """How a source polls and when it gives up."""

    max_records: int = field(default=500, metadata={"help": "most records of one poll"})
    start: Literal["earliest", "latest"] = field(
        default="earliest", metadata={"help": "where a partition without an offset starts"}
    )
    stall_s: float = field(
        default=30.0,
        metadata={"help": "seconds of polling without progress, records waiting, until a new client"},
    )
    max_stalls: int = field(
        default=10, metadata={"help": "new clients in a row without one record, until the source gives up"}
    )
    check_s: float = field(default=5.0, metadata={"help": "seconds between looks at the end offsets"})
    outage_limit_s: float = field(
        default=300.0, metadata={"help": "seconds without brokers until the source gives up"}
    )
    reset_beyond_end: bool = field(
        default=False,
        metadata={
            "help": "start over when an offset lies beyond the end (the topic was made anew); else an error"
        },
    )

    def __post_init__(self) -> None:
        for name in ("max_records", "max_stalls"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("stall_s", "check_s", "outage_limit_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.start not in ("earliest", "latest"):
            raise ValueError(f"start is {self.start!r}; earliest or latest is allowed")


@dataclass(slots=True)
class SourceStats:
    """What happened to a source since it was made."""

    records: int = 0
    stalls: int = 0
    outages: int = 0
    offset_resets: int = 0
    records_expired: int = 0
    failed_commits: int = 0
