"""What goes into a shard and what comes out: records, requests and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.article import Article

Outcome = Literal["stored", "deleted", "dead_lettered", "linked", "same_version", "older", "replayed"]
"""What became of one record; the ledger counts `linked`, `same_version` and `older` as duplicates, and
`replayed` (its coordinate was counted before) not at all."""
Mode = Literal["dense", "bm25", "hybrid"]
TopicPartition = tuple[str, int]


class Coordinate(NamedTuple):
    """Where a record lies in Kafka, and its Kafka timestamp."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int = 0


NO_RECORD = Coordinate("", -1, -1)
"""The coordinate of a change that no record asked for: the ledger does not count it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A token-bounded span of an article: characters `start` to `end` of its text."""

    ordinal: int
    text: str
    num_tokens: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Upsert:
    """A new article or a new version, cut and embedded. `vectors`: float16 [n, D], unit length."""

    coordinate: Coordinate
    article: Article
    chunks: list[Chunk]
    vectors: NDArray[np.float16]
    signature: bytes = b""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.chunks):
            raise ValueError(
                f"article {self.article.id!r}: vectors of shape {self.vectors.shape} for "
                f"{len(self.chunks)} chunks; one row a chunk is needed"
            )
        if [chunk.ordinal for chunk in self.chunks] != list(range(len(self.chunks))):
            raise ValueError(f"article {self.article.id!r}: the chunks' ordinals must count up from 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """A withdrawn article."""

    coordinate: Coordinate
    article_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A near-duplicate of `canonical_id` (on any shard): remembered, not searched."""

    coordinate: Coordinate
    article: Article
    canonical_id: str
    similarity: float

    def __post_init__(self) -> None:
        if self.canonical_id == self.article.id:
            raise ValueError(f"article {self.article.id!r} cannot be linked to itself; upsert it instead")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A record that went to the dead-letter topic; only counted here."""

    coordinate: Coordinate
    reason: str


StoreRecord = Upsert | Delete | Link | DeadLetter


@dataclass(frozen=True, kw_only=True, slots=True)
class AppendResult:
    """What one append did: an outcome for each record, in the order given."""

    outcomes: tuple[Outcome, ...]
    num_chunks: int
    generation: int

    def count(self, outcome: Outcome) -> int:
        """How many records had this outcome."""
        return self.outcomes.count(outcome)


@dataclass(kw_only=True, slots=True)
class TopicLedger:
    """Outcomes of one topic's records, each coordinate once: read is the sum of the others."""

    read: int = 0
    stored: int = 0
    deleted: int = 0
    dead_lettered: int = 0
    linked: int = 0
    same_version: int = 0
    older: int = 0

    @property
    def duplicates(self) -> int:
        """Linked near-duplicates, versions seen before, and versions older than the known one."""
        return self.linked + self.same_version + self.older

    def count(self, outcome: Outcome) -> None:
        """Count one record."""
        if outcome != "replayed":
            self.read += 1
            setattr(self, outcome, getattr(self, outcome) + 1)

    def to_dict(self) -> dict[str, int]:
        """Every count, the sum of duplicates too."""
        counts = {name: getattr(self, name) for name in self.__slots__}
        return {**counts, "duplicates": self.duplicates}


class Ledger(dict[str, TopicLedger]):
    """Counts by topic."""

    def total(self) -> TopicLedger:
        """All topics together."""
        names = TopicLedger.__slots__
        return TopicLedger(**{name: sum(getattr(topic, name) for topic in self.values()) for name in names})

    def copy(self) -> Ledger:
        """A copy that later appends do not change."""
        return Ledger(
            {name: TopicLedger(**{f: getattr(t, f) for f in t.__slots__}) for name, t in self.items()}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredArticle:
    """The newest version of an article, or its tombstone (`deleted`, with `article` None)."""

    id: str
    version_ms: int | None
    deleted: bool = False
    article: Article | None = None
    num_chunks: int = 0
    canonical_id: str | None = None
    similarity: float | None = None


class Change(NamedTuple):
    """A correction (`updated`) or a withdrawal (`deleted`, with the version that it withdrew, if known)."""

    sequence: int
    article_id: str
    kind: Literal["updated", "deleted"]
    version_ms: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Changes after a sequence number. `truncated`: older ones have been dropped, so check every article."""

    entries: tuple[Change, ...]
    latest: int
    truncated: bool

    def __iter__(self) -> Iterator[Change]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class SignatureRow(NamedTuple):
    """What near-duplicate detection needs to know of a stored article."""

    article_id: str
    stream: str
    published_ms: int
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """Q questions at once. `vectors`: float32 [Q, D], unit length (dense, hybrid); `texts`: Q strings
    (bm25, hybrid). `as_of_ms` hides every version later than it; None in a filter allows all."""

    k: int = 10
    mode: Mode = "hybrid"
    vectors: NDArray[np.float32] | None = None
    texts: list[str] | None = None
    streams: frozenset[str] | None = None
    sources: frozenset[str] | None = None
    since_ms: int | None = None
    as_of_ms: int | None = None
    depth: int = 0
    """Candidates that each shard returns for each list in hybrid mode; 0 takes max(k, 100)."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be at least 1")
        if self.depth < 0:
            raise ValueError(f"depth is {self.depth}; it must be 0 (automatic) or more")
        if self.mode not in ("dense", "bm25", "hybrid"):
            raise ValueError(f"mode is {self.mode!r}; allowed: dense, bm25, hybrid")
        if self.mode != "bm25" and (self.vectors is None or self.vectors.ndim != 2):
            raise ValueError(f"mode {self.mode!r} needs vectors of shape [Q, D]")
        if self.mode != "dense" and self.texts is None:
            raise ValueError(f"mode {self.mode!r} needs texts")
        if self.mode == "hybrid" and len(self.texts or ()) != len(self.vectors):  # type: ignore[arg-type]
            raise ValueError("hybrid needs as many texts as vectors")

    @property
    def num_questions(self) -> int:
        """Q."""
        return len(self.vectors) if self.texts is None and self.vectors is not None else len(self.texts or ())

    @property
    def list_depth(self) -> int:
        """Candidates of each list; one list alone is not fused, so its best k are enough."""
        return max(self.k, self.depth or 100) if self.mode == "hybrid" else self.k


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A retrieved chunk with where it comes from. `score` orders the list that it stands in; the scores
    and ranks (from 1) of the two searches are None where a search did not see it."""

    chunk_id: int
    article_id: str
    ordinal: int
    text: str
    title: str
    source: str
    stream: str
    published_ms: int
    version_ms: int
    url: str | None = None
    score: float = 0.0
    dense_score: float | None = None
    bm25_score: float | None = None
    dense_rank: int | None = None
    bm25_rank: int | None = None
    num_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """One shard's lists, one a question, best first (ties by chunk id); a list not asked for is empty."""

    dense: list[list[Passage]]
    bm25: list[list[Passage]]
    generation: int
    num_chunks: int = 0
    """Chunks that the shard's BM25 scores count over; they grow with its logarithm."""


Through = Mapping[TopicPartition, int]
"""The next offset of each partition: all records before it that belong to this shard have been given."""
