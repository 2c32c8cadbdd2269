"""Near-duplicates by MinHash over word shingles, found through LSH bands before anything is embedded.

Signatures: Broder, "On the resemblance and containment of documents" (1997); banding: Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", chapter 3. Same stream and a window of event time only; the same id is
never a duplicate of itself. The same articles in the same order give the same links.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.article import Article

_WORD = re.compile(r"\w+")
_WORD_CACHE_SIZE = 200_000
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SEED = 0x0D15C0
_ROOM_SHINGLES = 1_024
"""Articles of up to so many words are mixed in memory that is kept: fresh pages cost as much as the product."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicateConfig:
    """When an article is linked to an earlier one instead of stored."""

    enabled: bool = field(default=True, metadata={"help": "whether near-duplicates are linked at all"})
    threshold: float = field(
        default=0.8,
        metadata={"help": "share of common word shingles (Jaccard) from which articles are linked"},
    )
    window_hours: float = field(
        default=72.0, metadata={"help": "how far apart in publication time they may be, in hours"}
    )
    shingle_words: int = field(default=3, metadata={"help": "words of a shingle"})
    min_words: int = field(
        default=20, metadata={"help": "shorter articles are never linked: boilerplate would match"}
    )
    num_permutations: int = field(default=128, metadata={"help": "length of a signature; fixed for a store"})
    rows_per_band: int = field(
        default=5, metadata={"help": "rows of an LSH band: fewer find more candidates and cost more"}
    )
    max_articles: int = field(
        default=500_000, metadata={"help": "articles kept for comparison; the first added go first"}
    )

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; allowed is 0.5 to 1")
        if self.window_hours <= 0:
            raise ValueError(f"window_hours is {self.window_hours}; it must be above 0")
        if not 16 <= self.num_permutations <= 1_024:
            raise ValueError(f"num_permutations is {self.num_permutations}; allowed is 16 to 1024")
        if not 1 <= self.rows_per_band <= self.num_permutations:
            raise ValueError(
                f"rows_per_band is {self.rows_per_band}; allowed is 1 to num_permutations "
                f"({self.num_permutations})"
            )
        for name in ("shingle_words", "min_words", "max_articles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class Fingerprint(NamedTuple):
    """What is compared of an article: `signature` of uint32, little-endian; `shingles` sorted uint32 or none."""

    article_id: str
    stream: str
    published_ms: int
    signature: bytes
    shingles: bytes = b""
    known: bool = False
    """Whether the store has an article of this id: then it is an update of itself, never a duplicate."""


class Match(NamedTuple):
    """An earlier article that this one repeats; `exact` where shingles, not signatures, were compared."""

    canonical_id: str
    similarity: float
    exact: bool


class Fingerprinter:
    """Articles to fingerprints; not shared between threads (it caches words)."""

    def __init__(self, config: NearDuplicateConfig) -> None:
        self._config = config
        generator = np.random.Generator(np.random.PCG64(_SEED))
        draws = generator.integers(0, 2**63, size=(2, config.num_permutations), dtype=np.uint64)
        self._factors = draws[0] * np.uint64(2) + np.uint64(1)
        self._terms = draws[1]
        self._words: dict[str, int] = {}
        self._room = np.empty((_ROOM_SHINGLES, config.num_permutations), dtype=np.uint64)

    def fingerprint(self, article: Article) -> Fingerprint:
        """The article's fingerprint; its signature is empty where it is too short to be compared."""
        words = _WORD.findall(f"{article.title} {article.text}".lower())
        if not self._config.enabled or len(words) < self._config.min_words:
            return Fingerprint(article.id, article.stream, article.published_ms, b"")
        shingles = self._shingles(words)
        mixed = self._room[: len(shingles)] if len(shingles) <= _ROOM_SHINGLES else None
        mixed = np.multiply(shingles[:, None], self._factors, out=mixed)
        mixed += self._terms
        signature = (mixed.min(axis=0) >> np.uint64(32)).astype("<u4").tobytes()
        short = _distinct((shingles >> np.uint64(32)).astype("<u4"))
        return Fingerprint(article.id, article.stream, article.published_ms, signature, short.tobytes())

    def _shingles(self, words: list[str]) -> NDArray[np.uint64]:
        cache = self._words
        if len(cache) > _WORD_CACHE_SIZE:
            cache.clear()
        values = []
        for word in words:
            value = cache.get(word)
            if value is None:
                value = cache[word] = xxhash.xxh3_64_intdigest(word.encode())
            values.append(value)
        hashes = np.array(values, dtype=np.uint64)
        width = min(self._config.shingle_words, len(words))
        count = len(words) - width + 1
        shingles = np.zeros(count, dtype=np.uint64)
        for offset in range(width):
            shingles = (shingles ^ hashes[offset : offset + count]) * _MULTIPLIER
            shingles ^= shingles >> np.uint64(29)
        return _distinct(shingles)


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """Sorted and each once; sorts in place. Quicker than numpy.unique for a few hundred values."""
    values.sort()
    keep = np.empty(len(values), dtype=bool)
    keep[:1] = True
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


def jaccard(left: bytes, right: bytes) -> float:
    """The share of common shingles of two sorted sets."""
    a, b = np.frombuffer(left, dtype="<u4"), np.frombuffer(right, dtype="<u4")
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(len(a) + len(b) - common, 1)


def estimated(left: bytes, right: bytes) -> float:
    """The share of equal signature rows: an unbiased estimate of the Jaccard similarity."""
    return float((np.frombuffer(left, dtype="<u4") == np.frombuffer(right, dtype="<u4")).mean())


class NearDuplicateIndex:
    """The fingerprints of recent articles; one owner, calls one at a time.

    `fetch(article_id)` gives the shingles of an article that is only known by its signature, or b"".
    """

    def __init__(
        self,
        config: NearDuplicateConfig,
        fetch: Callable[[str], bytes] | None = None,
        keep_shingles: int = 50_000,
    ) -> None:
        self._config = config
        self._fetch = fetch
        self._keep_shingles = keep_shingles
        self._window_ms = int(config.window_hours * 3_600_000)
        self._bands = config.num_permutations // config.rows_per_band
        self._band_bytes = config.rows_per_band * 4
        # Slack below the threshold, so that an unlucky estimate still reaches the exact comparison.
        self._least_estimate = config.threshold - 2.5 * (0.25 / config.num_permutations) ** 0.5
        self._articles: OrderedDict[str, Fingerprint] = OrderedDict()
        self._buckets: dict[tuple[str, int, bytes], list[str]] = {}
        self._with_shingles: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._articles)

    def __contains__(self, article_id: str) -> bool:
        return article_id in self._articles

    def match(self, given: Fingerprint) -> Match | None:
        """The most similar earlier article of the stream within the window, at or above the threshold."""
        if not given.signature:
            return None
        best: Match | None = None
        for other in self._candidates(given):
            estimate = estimated(given.signature, other.signature)
            if estimate < self._least_estimate:
                continue
            shingles = self._shingles_of(other) if given.shingles else b""
            similarity = jaccard(given.shingles, shingles) if shingles else estimate
            if similarity >= self._config.threshold and (best is None or similarity > best.similarity):
                best = Match(other.article_id, round(similarity, 4), bool(shingles))
        return best

    def add(self, given: Fingerprint) -> None:
        """Remember an article that is stored; a newer version replaces the older one's fingerprint."""
        self.remove(given.article_id)
        if not given.signature or len(given.signature) != self._config.num_permutations * 4:
            return
        self._articles[given.article_id] = given
        if given.shingles:
            self._with_shingles[given.article_id] = None
        for key in self._keys(given):
            self._buckets.setdefault(key, []).append(given.article_id)
        while len(self._articles) > self._config.max_articles:
            self.remove(next(iter(self._articles)))
        while len(self._with_shingles) > self._keep_shingles:
            oldest, _ = self._with_shingles.popitem(last=False)
            self._articles[oldest] = self._articles[oldest]._replace(shingles=b"")

    def add_all(self, rows: Iterable[Fingerprint]) -> None:
        """Remember many, oldest publication first so that the newest are kept."""
        for row in sorted(rows, key=lambda row: (row.published_ms, row.article_id)):
            self.add(row)

    def remove(self, article_id: str) -> None:
        """Forget an article: a withdrawn one is nobody's original."""
        known = self._articles.pop(article_id, None)
        if known is None:
            return
        self._with_shingles.pop(article_id, None)
        for key in self._keys(known):
            bucket = self._buckets.get(key)
            if bucket is not None:
                bucket.remove(article_id)
                if not bucket:
                    del self._buckets[key]

    def _candidates(self, given: Fingerprint) -> list[Fingerprint]:
        """Articles that share a band, in the order in which they became known."""
        found: dict[str, None] = {}
        for key in self._keys(given):
            for article_id in self._buckets.get(key, ()):
                found[article_id] = None
        rows = (self._articles[article_id] for article_id in found if article_id != given.article_id)
        near = [row for row in rows if abs(row.published_ms - given.published_ms) <= self._window_ms]
        near.sort(key=lambda row: (row.published_ms, row.article_id))
        return near

    def _shingles_of(self, other: Fingerprint) -> bytes:
        if other.shingles or self._fetch is None:
            return other.shingles
        shingles = self._fetch(other.article_id)
        if shingles:
            self._articles[other.article_id] = other._replace(shingles=shingles)
            self._with_shingles[other.article_id] = None
        return shingles

    def _keys(self, given: Fingerprint) -> list[tuple[str, int, bytes]]:
        width = self._band_bytes
        return [
            (given.stream, band, given.signature[band * width : (band + 1) * width])
            for band in range(self._bands)
        ]
