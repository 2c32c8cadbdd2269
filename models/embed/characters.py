"""What kind each character of a text is: in a word, between words, or a mark, as regular expressions have it."""

from __future__ import annotations

import re
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

BETWEEN, IN_WORD, MARK = 0, 1, 2
_NEAR = 0x3000
"""Below lie the alphabets and their marks: a table of these is made in no time, one of all characters in 0.3 s, and
that only for texts that have many of the others."""


def codes(text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
    """The code point of each character; a lone surrogate counts as a question mark."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)


def kinds(points: NDArray[np.uint8] | NDArray[np.uint32]) -> NDArray[np.uint8]:
    """BETWEEN, IN_WORD or MARK for each code point that `codes` gave."""
    if points.dtype == np.uint8:
        return _ascii_kinds()[points]
    far = points >= _NEAR
    num_far = np.count_nonzero(far)
    if not num_far:
        return _near_kinds()[points]
    if num_far > len(points) // 16:
        return _all_kinds()[points]
    found = _near_kinds()[np.minimum(points, _NEAR - 1)]
    values, places = np.unique(points[far], return_inverse=True)
    found[far] = np.array([_kind_of(value) for value in values.tolist()], dtype=np.uint8)[places]
    return found


@cache
def _ascii_kinds() -> NDArray[np.uint8]:
    return _kinds_of(0, 0x80)


@cache
def _near_kinds() -> NDArray[np.uint8]:
    return _kinds_of(0, _NEAR)


@lru_cache(maxsize=65_536)
def _kind_of(point: int) -> int:
    return int(_kinds_of(point, point + 1)[0])


@cache
def _all_kinds() -> NDArray[np.uint8]:
    # In pieces that do not mix surrogates with others.
    return np.concatenate([_kinds_of(begin, begin + 0x800) for begin in range(0, 0x110000, 0x800)])


def _kinds_of(begin: int, end: int) -> NDArray[np.uint8]:
    found = np.full(end - begin, MARK, dtype=np.uint8)
    characters = "".join(map(chr, range(begin, end)))
    for pattern, kind in ((r"\w+", IN_WORD), (r"\s+", BETWEEN)):
        for match in re.finditer(pattern, characters):
            found[match.start() : match.end()] = kind
    return found
