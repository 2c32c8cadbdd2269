"""Near-duplicates by sketches of word shingles, found through LSH bands before anything is embedded.

Sketches: pipeline/shingles.py; banding: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3. Same stream and a window of event time only; the same id is never a duplicate of itself. The same
articles in the same order give the same links.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import xxhash

from pipeline.article import Article
from pipeline.shingles import sketches, word_shingles

SCHEME = b"\x02"
"""Ends every signature: another way to make them has another byte, and is never compared with this one."""

_GROUP_CHARS = 65_536
"""Articles that are hashed together: about so much text, which stays in the processor's cache."""
_MAX_SEEDS = 100_000
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_29 = np.uint64(29)


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
    """What is compared of an article: `signature` of uint32 and SCHEME; `shingles` sorted uint32 or none."""

    article_id: str
    stream: str
    published_ms: int
    signature: bytes
    shingles: bytes = b""
    known: bool = False
    """Whether an article of this id is known, also as a duplicate, a withdrawn one or one that is under way: then
    it is an update of itself, never a duplicate."""


class Match(NamedTuple):
    """An earlier article that this one repeats; `exact` where shingles, not signatures, were compared."""

    canonical_id: str
    similarity: float
    exact: bool


class Fingerprinter:
    """Articles to fingerprints."""

    def __init__(self, config: NearDuplicateConfig) -> None:
        self._config = config

    def fingerprint(self, article: Article) -> Fingerprint:
        """The article's fingerprint; its signature is empty where it is too short to be compared."""
        return self.fingerprints((article,))[0]

    def fingerprints(self, articles: Sequence[Article]) -> list[Fingerprint]:
        """`fingerprint` of each, many at once."""
        if not self._config.enabled:
            return [Fingerprint(one.id, one.stream, one.published_ms, b"") for one in articles]
        found: list[Fingerprint] = []
        group: list[Article] = []
        size = 0
        for article in articles:
            group.append(article)
            size += len(article.text)
            if size >= _GROUP_CHARS:
                found += self._group(group)
                group, size = [], 0
        return [*found, *self._group(group)] if group else found

    def _group(self, articles: list[Article]) -> list[Fingerprint]:
        config = self._config
        texts = [f"{article.title} {article.text}" for article in articles]
        shingles, counts, num_words = word_shingles(texts, config.shingle_words, config.min_words)
        marks = sketches(shingles, counts, config.num_permutations).tobytes()
        body = shingles.astype("<u4", copy=False).tobytes()
        width, begin = 4 * config.num_permutations, 0
        found: list[Fingerprint] = []
        for at, article in enumerate(articles):
            signature = mine = b""
            if num_words[at] >= config.min_words:
                end = begin + 4 * counts[at]
                signature, mine = marks[at * width : (at + 1) * width] + SCHEME, body[begin:end]
                begin = end
            found.append(Fingerprint(article.id, article.stream, article.published_ms, signature, mine))
        return found


def jaccard(left: bytes, right: bytes) -> float:
    """The share of common shingles of two sorted sets."""
    a, b = np.frombuffer(left, dtype="<u4"), np.frombuffer(right, dtype="<u4")
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(len(a) + len(b) - common, 1)


def estimated(left: bytes, right: bytes) -> float:
    """The share of equal signature rows: an unbiased estimate of the Jaccard similarity."""
    rows = len(left) // 4
    same = np.frombuffer(left, dtype="<u4", count=rows) == np.frombuffer(right, dtype="<u4", count=rows)
    return float(same.mean())


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
        self._signature_bytes = config.num_permutations * 4 + len(SCHEME)
        # Slack below the threshold, so that an unlucky estimate still reaches the exact comparison.
        self._least_estimate = config.threshold - 2.5 * (0.25 / config.num_permutations) ** 0.5
        self._articles: OrderedDict[str, Fingerprint] = OrderedDict()
        self._buckets: dict[int, str | list[str]] = {}
        """Ids by the hash of a stream, a band and its rows: one id, or a list of several."""
        self._seeds: dict[str, int] = {}
        self._with_shingles: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._articles)

    def __contains__(self, article_id: str) -> bool:
        return article_id in self._articles

    def fits(self, signature: bytes) -> bool:
        """Whether a signature was made as this index compares them."""
        return len(signature) == self._signature_bytes and signature.endswith(SCHEME)

    def match(self, given: Fingerprint, keys: Sequence[int] | None = None) -> Match | None:
        """The most similar earlier article of the stream within the window, at or above the threshold.

        `keys` are those of `keys_of`, where they are known.
        """
        if not given.signature:
            return None
        best: Match | None = None
        for other in self._candidates(given, self.keys_of([given])[0] if keys is None else keys):
            estimate = estimated(given.signature, other.signature)
            if estimate < self._least_estimate:
                continue
            shingles = self._shingles_of(other) if given.shingles else b""
            similarity = jaccard(given.shingles, shingles) if shingles else estimate
            if similarity >= self._config.threshold and (best is None or similarity > best.similarity):
                best = Match(other.article_id, round(similarity, 4), bool(shingles))
        return best

    def add(self, given: Fingerprint, keys: Sequence[int] | None = None) -> None:
        """Remember an article that is stored; a newer version replaces the older one's fingerprint."""
        article_id = given.article_id
        if article_id in self._articles:
            self.remove(article_id)
        if not self.fits(given.signature):
            return
        self._articles[article_id] = given
        if given.shingles:
            self._with_shingles[article_id] = None
        buckets = self._buckets
        for key in self.keys_of([given])[0] if keys is None else keys:
            held = buckets.setdefault(key, article_id)
            if held is not article_id:
                if isinstance(held, str):
                    buckets[key] = [held, article_id]
                else:
                    held.append(article_id)
        while len(self._articles) > self._config.max_articles:
            self.remove(next(iter(self._articles)))
        while len(self._with_shingles) > self._keep_shingles:
            oldest, _ = self._with_shingles.popitem(last=False)
            self._articles[oldest] = self._articles[oldest]._replace(shingles=b"")

    def add_all(self, rows: Iterable[Fingerprint]) -> None:
        """Remember many, oldest publication first so that the newest are kept."""
        ordered = sorted(rows, key=lambda row: (row.published_ms, row.article_id))
        for begin in range(0, len(ordered), 1_024):
            part = ordered[begin : begin + 1_024]
            for row, keys in zip(part, self.keys_of(part), strict=True):
                self.add(row, keys)

    def remove(self, article_id: str) -> None:
        """Forget an article: a withdrawn one is nobody's original."""
        known = self._articles.pop(article_id, None)
        if known is None:
            return
        self._with_shingles.pop(article_id, None)
        for key in self.keys_of([known])[0]:
            bucket = self._buckets.get(key)
            if isinstance(bucket, list):
                bucket.remove(article_id)
                if len(bucket) == 1:
                    self._buckets[key] = bucket[0]
            elif bucket == article_id:
                del self._buckets[key]

    def keys_of(self, given: Sequence[Fingerprint]) -> list[list[int]]:
        """The buckets of each fingerprint, one a band; none for one that does not fit."""
        keys: list[list[int]] = [[] for _ in given]
        fitting = [at for at, one in enumerate(given) if self.fits(one.signature)]
        if not fitting:
            return keys
        body = np.frombuffer(b"".join([given[at].signature for at in fitting]), dtype=np.uint8)
        marks = body.reshape(len(fitting), -1)[:, : -len(SCHEME)].copy().view("<u4")
        width = self._config.rows_per_band
        bands = marks[:, : self._bands * width].reshape(len(fitting), self._bands, width)
        seeds = np.array([self._seed(given[at].stream) for at in fitting], dtype=np.uint64)
        mixed = np.add.outer(seeds, np.arange(self._bands, dtype=np.uint64)).astype(np.uint64, copy=False)
        for row in range(width):
            mixed *= _MULTIPLIER
            mixed ^= mixed >> _29
            mixed ^= bands[:, :, row]
        mixed *= _MULTIPLIER
        for at, row_keys in zip(fitting, mixed.tolist(), strict=True):
            keys[at] = row_keys
        return keys

    def _seed(self, stream: str) -> int:
        seed = self._seeds.get(stream)
        if seed is None:
            if len(self._seeds) >= _MAX_SEEDS:
                self._seeds.clear()
            seed = self._seeds[stream] = xxhash.xxh3_64_intdigest(stream.encode("utf-8", "surrogatepass"))
        return seed

    def _candidates(self, given: Fingerprint, keys: Sequence[int]) -> list[Fingerprint]:
        """Articles of the stream that share a band, oldest publication first."""
        found: dict[str, None] = {}
        for bucket in map(self._buckets.get, keys):
            if bucket is not None:
                for article_id in (bucket,) if isinstance(bucket, str) else bucket:
                    found[article_id] = None
        if not found:
            return []
        rows = (self._articles[article_id] for article_id in found if article_id != given.article_id)
        near = [
            row
            for row in rows
            if row.stream == given.stream and abs(row.published_ms - given.published_ms) <= self._window_ms
        ]
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
