"""What kind each character of a text is: in a word, between words, or a mark, as regular expressions have it."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from numpy.typing import NDArray

BETWEEN, IN_WORD, MARK = 0, 1, 2
_NEAR = 0x3000
"""Below lie the alphabets and their marks: a table of these is made in no time, one of all characters in 0.3 s."""


def codes(text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
    """The code point of each character; a lone surrogate counts as a question mark."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)


def kinds(points: NDArray[np.uint8] | NDArray[np.uint32]) -> NDArray[np.uint8]:
    """BETWEEN, IN_WORD or MARK for each code point that `codes` gave."""
    if points.dtype == np.uint8:
        return _ascii_kinds()[points]
    return (_all_kinds() if points.max() >= _NEAR else _near_kinds())[points]


@cache
def _ascii_kinds() -> NDArray[np.uint8]:
    return _kinds_of(0, 0x80)


@cache
def _near_kinds() -> NDArray[np.uint8]:
    return _kinds_of(0, _NEAR)


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
