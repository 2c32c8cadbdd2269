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

STATE_VERSION = 2
"""Version 1 named the cache's shape in `model`, counted no tokens, and began the first article at its BOS."""
_NOT_HELD = -1


class NewerState(ValueError):
    """A state that a later version of DySRA has written: whole, and not to be passed over as if it were damaged."""


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
    """An article as last read: its version, where its tokens begin in the cache (-1: not there), its title."""

    version_ms: int
    first_token: int
    num_tokens: int
    title: str
    withdrawn: bool = False

    @property
    def held(self) -> bool:
        """Whether its tokens were read into the cache as it is now; they may have left it by age."""
        return self.first_token != _NOT_HELD

    def let_go(self) -> None:
        """Its tokens are not in the cache any more."""
        self.first_token = _NOT_HELD


@dataclass(slots=True)
class Counts:
    """Records by what became of them; `seen` is the sum of the others but `missed` and `elsewhere`: articles that
    changed, without a record here."""

    seen: int = 0
    articles: int = 0
    updates: int = 0
    withdrawn: int = 0
    repeats: int = 0
    other: int = 0
    bad: int = 0
    missed: int = 0
    elsewhere: int = 0


@dataclass(slots=True)
class SessionState:
    """A session's memory beside its cache. `offsets` is None until the start has been found.

    `rebuild_from` is None unless the cache must be read anew: then the article to begin with ("": the first).
    """

    model: str
    seed: int
    offsets: dict[int, int] | None = None
    read: OrderedDict[str, ReadArticle] = field(default_factory=OrderedDict)
    counts: Counts = field(default_factory=Counts)
    last_timestamp_ms: int = 0
    last_published_ms: int = 0
    started: str = ""
    tokens_read: int = 0
    rebuild_from: str | None = None

    def standing(self) -> list[tuple[str, ReadArticle]]:
        """The articles read and not withdrawn, in the order in which they were last read."""
        return [(name, article) for name, article in self.read.items() if not article.withdrawn]

    def newest(self, count: int) -> list[str]:
        """The last `count` standing articles whose tokens were read into the cache as it is, newest first.

        Safe beside a thread that reads: what it adds meanwhile may be missing.
        """
        found: list[str] = []
        for name in reversed(list(self.read)):
            article = self.read.get(name)
            if len(found) == count:
                break
            if article is not None and article.held and not article.withdrawn:
                found.append(name)
        return found

    def window_start(self, num_tokens: int) -> str:
        """The article from which on the newest standing ones have at least so many tokens; "" for the first."""
        for name, article in reversed(self.read.items()):
            if not article.withdrawn:
                num_tokens -= article.num_tokens
                if num_tokens <= 0:
                    return name
        return ""

    def tokens_since(self, article_id: str) -> int:
        """Tokens of the standing articles that were read after this one."""
        total = 0
        for name, article in reversed(self.read.items()):
            if name == article_id:
                break
            total += 0 if article.withdrawn else article.num_tokens
        return total

    def to_reread(self) -> list[tuple[str, ReadArticle]]:
        """What a rebuild reads: the standing articles from `rebuild_from` on."""
        names = [name for name, _ in self.standing()]
        first = names.index(self.rebuild_from) if self.rebuild_from in names else 0
        return self.standing()[first:]

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
            "tokens_read": self.tokens_read,
            "rebuild_from": self.rebuild_from,
        }
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes, num_bos: int = 1) -> SessionState:
        """The state that `to_json` wrote, of this version or an older one; NewerState for one of a later version,
        ValueError for anything else.

        `num_bos` is what the model puts before the first article (needed for version 1 alone).
        """
        body: Any = orjson.loads(data)
        version = body.get("version") if isinstance(body, dict) else None
        if not isinstance(version, int) or not 1 <= version <= STATE_VERSION:
            newer = isinstance(version, int) and version > STATE_VERSION
            raise (NewerState if newer else ValueError)(
                f"session state has version {version!r}; versions 1 to {STATE_VERSION} are read here: "
                "use the version that wrote it, or remove the session's folder to read its stream again"
            )
        try:
            return cls._of(body, num_bos)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"session state cannot be read ({type(error).__name__}: {error})") from None

    @classmethod
    def _of(cls, body: dict[str, Any], num_bos: int) -> SessionState:
        if body["version"] == 1:
            _from_version_1(body, num_bos)
        offsets = body["offsets"]
        known = {f.name for f in fields(Counts)}
        return cls(
            model=body["model"],
            seed=body["seed"],
            offsets=None if offsets is None else {int(k): int(v) for k, v in offsets.items()},
            read=OrderedDict((name, _known(values)) for name, *values in body["read"]),
            counts=Counts(**{name: value for name, value in body["counts"].items() if name in known}),
            last_timestamp_ms=body["last_timestamp_ms"],
            last_published_ms=body["last_published_ms"],
            started=body["started"],
            tokens_read=body["tokens_read"],
            rebuild_from=body["rebuild_from"],
        )

    def offsets_json(self) -> bytes:
        """The offsets alone, canonical, for `digest`."""
        offsets = self.offsets or {}
        return orjson.dumps({str(k): v for k, v in offsets.items()}, option=orjson.OPT_SORT_KEYS)


def _known(values: list[Any]) -> ReadArticle:
    article = ReadArticle(*values)
    if article.withdrawn:
        article.title = ""  # earlier versions kept it
    return article


def _from_version_1(body: dict[str, Any], num_bos: int) -> None:
    """Bring a version 1 state to the present form, in place."""
    body["model"] = str(body["model"]).rpartition("/cache-")[0] or body["model"]
    for row in body["read"]:
        if row[2] == 0:  # the first article: what the model puts before it was counted as its own
            row[2] = num_bos
        if row[5]:  # a withdrawal notice was read; it stays, as nothing says where the article stood
            row[2], row[3] = _NOT_HELD, 0
    body["tokens_read"] = max((row[2] + row[3] - num_bos for row in body["read"]), default=0)
    body["rebuild_from"] = None
