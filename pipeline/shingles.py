"""Texts to sets of hashed word shingles, and sets to sketches that tell how alike they are; many at once.

A sketch is that of Dahlgaard, Knudsen and Thorup, "Fast similarity sketching" (FOCS 2017): the share of equal rows
of two sketches is an unbiased estimate of the sets' Jaccard similarity, as exact as MinHash of as many permutations
gives it, for a handful of hashes an element instead of one a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from models.embed.characters import IN_WORD, codes, kinds

Hashes = NDArray[np.uint64]
_BASE = 0x9E6C63D0876A9A6F
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FINISH = np.uint64(0xD6E8FEB86659FD93)
_STEP = 0xA24BAED4963EE407
_LOW = np.uint64(0xFFFFFFFF)
_32, _29 = np.uint64(32), np.uint64(29)
_EMPTY = np.uint64(2**64 - 1)
_ROUNDS = (3, 2, 2, 4, 8, 16, 32)
"""Rounds of hashing that are made together: most texts need five, short ones many."""


def word_shingles(
    texts: Sequence[str], width: int, min_words: int
) -> tuple[NDArray[np.uint32], list[int], list[int]]:
    """Of each text the distinct shingles of `width` words, sorted, one text after the other; how many each has; and
    how many words. Case does not count. A text of fewer than `min_words` words has none."""
    lower = [text.lower() for text in texts]
    joined = "\n".join(lower)  # a line break is no part of a word
    points = codes(joined)
    inside = np.zeros(len(points) + 2, dtype=bool)
    np.equal(kinds(points), IN_WORD, out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    hashes = _word_hashes(points, edges[0::2], edges[1::2])
    begins = [0, *accumulate(len(text) + 1 for text in lower)]
    cuts = np.searchsorted(edges[0::2], begins).tolist()
    num_words = [last - first for first, last in pairwise(cuts)]
    mixed = _mixed(hashes, width)
    chosen = np.zeros(len(mixed), dtype=bool)
    short: dict[int, Hashes] = {}
    for at, (first, count) in enumerate(zip(cuts, num_words, strict=False)):
        if count >= max(width, min_words):
            chosen[first : first + count - width + 1] = True
        elif count >= min_words:
            short[at] = _mixed(hashes[first : first + count], count)
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), num_words)[: len(mixed)]
    keys = (owner[chosen] << _32) | (mixed[chosen] >> _32)
    if short:
        extra = [(np.uint64(at) << _32) | (values >> _32) for at, values in short.items()]
        keys = np.concatenate([keys, *extra])
    keys.sort()
    if len(keys):
        keep = np.ones(len(keys), dtype=bool)
        np.not_equal(keys[1:], keys[:-1], out=keep[1:])
        keys = keys[keep]
    bounds = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.uint64) << _32)
    counts: list[int] = np.diff(bounds).tolist()
    return keys.astype(np.uint32), counts, num_words


def sketches(shingles: NDArray[np.uint32], counts: Sequence[int], rows: int) -> NDArray[np.uint32]:
    """A sketch [sets, rows] of each set of shingles; that of an empty set is all ones.

    In each round every element goes to a row by its hash and leaves there the round and another part of the hash,
    and the least stays. A set is done when all its rows are taken; after `rows` rounds every row gets its turn.
    """
    num_sets = len(counts)
    table = np.full(num_sets * rows, _EMPTY, dtype=np.uint64)
    owner = np.repeat(np.arange(num_sets, dtype=np.int64), counts)
    elements = shingles.astype(np.uint64)
    done, schedule = 0, iter(_ROUNDS)
    while len(elements):
        count = min(next(schedule, 64), 2 * rows - done)
        rounds = np.arange(done, done + count)
        steps = np.array([(number + 1) * _STEP & 2**64 - 1 for number in rounds.tolist()], dtype=np.uint64)
        hashed = _finished(elements[:, None] + steps)
        places = (((hashed >> _32) * np.uint64(rows)) >> _32).astype(np.int64)
        places[:, rounds >= rows] = rounds[rounds >= rows] - rows
        places += owner[:, None] * rows
        hashed &= _LOW
        hashed |= rounds.astype(np.uint64) << _32
        np.minimum.at(table, places.ravel(), hashed.ravel())
        done += count
        if done == 2 * rows:
            break
        wanting = (table.reshape(num_sets, rows) == _EMPTY).any(axis=1)[owner]
        elements, owner = elements[wanting], owner[wanting]
    return (table & _LOW).astype("<u4").reshape(num_sets, rows)


def _mixed(hashes: Hashes, width: int) -> Hashes:
    """The hash of each run of `width` words."""
    count = max(0, len(hashes) - width + 1)
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(width):
        mixed ^= hashes[offset : offset + count]
        mixed *= _MULTIPLIER
        mixed ^= mixed >> _29
    return mixed


def _finished(values: Hashes) -> Hashes:
    values *= _FINISH
    values ^= values >> _32
    values *= _FINISH
    values ^= values >> _29
    return values


def _word_hashes(
    points: NDArray[np.uint8] | NDArray[np.uint32], starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> Hashes:
    """A hash of the characters [start, end) of each word: a polynomial modulo 2**64, out of differences of sums."""
    powers, inverses = _powers(1 << max(17, len(points).bit_length()))
    sums = np.zeros(len(points) + 1, dtype=np.uint64)
    terms = points.astype(np.uint64)
    terms += np.uint64(1)
    terms *= powers[: len(points)]
    np.cumsum(terms, out=sums[1:])
    return _finished((sums[ends] - sums[starts]) * inverses[starts])


@lru_cache(maxsize=1)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Powers of an odd base and of its inverse modulo 2**64."""
    inverse = pow(_BASE, -1, 2**64)
    tables = []
    for base in (_BASE, inverse):
        factors = np.full(count, base, dtype=np.uint64)
        factors[0] = 1
        tables.append(np.cumprod(factors))
    return tables[0], tables[1]
