"""What a session remembers beside its cache: offsets, the articles it has read, and counts.

Everything here follows from the records read, in order, and from nothing else: no clock, no questions. So
two sessions that read the same records have the same bytes, whatever happened to their processes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import orjson

STATE_VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class SessionKey:
    """Whose session on which stream. Tenants never share one."""

    tenant: str
    stream: str

    @property
    def id(self) -> str:
        """The name by which requests are routed."""
        return f"{self.tenant}/{self.stream}"

    @property
    def folder(self) -> str:
        """A file name of its own for any tenant and stream."""
        readable = "".join(c if c.isalnum() and c.isascii() else "-" for c in self.stream)[:40]
        digest = hashlib.sha256(f"{self.tenant}\0{self.stream}".encode()).hexdigest()[:16]
        return f"{readable}-{digest}"


@dataclass(slots=True)
class ReadArticle:
    """An article as last read: its version, where its tokens began in all that was read, and its title."""

    version_ms: int
    first_token: int
    num_tokens: int
    title: str
    withdrawn: bool = False


@dataclass(slots=True)
class Counts:
    """Records by what became of them; `seen` is the sum of the others but `missed`."""

    seen: int = 0
    articles: int = 0
    updates: int = 0
    withdrawn: int = 0
    repeats: int = 0
    other: int = 0
    bad: int = 0
    missed: int = 0


@dataclass(slots=True)
class SessionState:
    """A session's memory beside its cache. `offsets` is None until the start has been found."""

    model: str
    seed: int
    offsets: dict[int, int] | None = None
    read: OrderedDict[str, ReadArticle] = field(default_factory=OrderedDict)
    counts: Counts = field(default_factory=Counts)
    last_timestamp_ms: int = 0
    last_published_ms: int = 0
    started: str = ""

    def remember(self, article_id: str, article: ReadArticle, limit: int) -> None:
        """Keep an article as the last one read; the one read longest ago makes room."""
        self.read[article_id] = article
        self.read.move_to_end(article_id)
        while len(self.read) > limit:
            self.read.popitem(last=False)

    def to_json(self) -> bytes:
        """The same bytes for the same state."""
        body = {
            "version": STATE_VERSION,
            "model": self.model,
            "seed": self.seed,
            "offsets": None if self.offsets is None else {str(k): v for k, v in self.offsets.items()},
            "read": [[name, *asdict(article).values()] for name, article in self.read.items()],
            "counts": asdict(self.counts),
            "last_timestamp_ms": self.last_timestamp_ms,
            "last_published_ms": self.last_published_ms,
            "started": self.started,
        }
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> SessionState:
        """The state that `to_json` wrote; ValueError for anything else."""
        body: dict[str, Any] = orjson.loads(data)
        if body.get("version") != STATE_VERSION:
            raise ValueError(
                f"session state has version {body.get('version')!r}; {STATE_VERSION} is read here"
            )
        offsets = body["offsets"]
        known = {f.name for f in fields(Counts)}
        return cls(
            model=body["model"],
            seed=body["seed"],
            offsets=None if offsets is None else {int(k): int(v) for k, v in offsets.items()},
            read=OrderedDict((name, ReadArticle(*values)) for name, *values in body["read"]),
            counts=Counts(**{name: value for name, value in body["counts"].items() if name in known}),
            last_timestamp_ms=body["last_timestamp_ms"],
            last_published_ms=body["last_published_ms"],
            started=body["started"],
        )

    def offsets_json(self) -> bytes:
        """The offsets alone, canonical, for `digest`."""
        offsets = self.offsets or {}
        return orjson.dumps({str(k): v for k, v in offsets.items()}, option=orjson.OPT_SORT_KEYS)
