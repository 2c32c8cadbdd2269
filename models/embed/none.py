"""No embedding: a store that is searched by words alone. Chunks are counted in words, and every vector is zero.

A zero vector scores 0 against every question, so a hybrid search comes out as BM25 ranks it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.embed.embedder import Offsets, Vectors

_WORD = re.compile(r"\w+|[^\w\s]")
_MAX_TOKENS = 100_000
_BETWEEN, _IN_WORD, _MARK = 0, 1, 2
IDENTITY = "none-1"


@cache
def _kinds() -> NDArray[np.uint8]:
    """For every code point whether it is in words, between them, or a mark: as the regular expression has it."""
    kinds = np.full(0x110000, _MARK, dtype=np.uint8)
    for begin in range(0, len(kinds), 0x800):  # in pieces that do not mix surrogates with others
        part = "".join(map(chr, range(begin, begin + 0x800)))
        for pattern, kind in ((r"\w+", _IN_WORD), (r"\s+", _BETWEEN)):
            for match in re.finditer(pattern, part):
                kinds[begin + match.start() : begin + match.end()] = kind
    return kinds


class WordTokenizer:
    """Words and marks as tokens: needs no model's vocabulary."""

    max_tokens = _MAX_TOKENS

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words and marks of each text."""
        return [len(_WORD.findall(text)) for text in texts]

    def offsets(self, text: str) -> Offsets:
        """Characters [start, end) of each word and mark."""
        kinds = _kinds()[np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)]
        word = np.zeros(len(kinds) + 2, dtype=bool)
        word[1:-1] = kinds == _IN_WORD
        mark = kinds == _MARK
        starts = np.flatnonzero((word[1:-1] & ~word[:-2]) | mark)
        ends = np.flatnonzero((word[1:-1] & ~word[2:]) | mark) + 1
        return np.stack((starts, ends), axis=1)


class NoEmbedder(WordTokenizer):
    """Stands where an embedder would: zeros of width 1."""

    identity = IDENTITY
    dim = 1
    batch_texts = 4_096

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Zeros float32 [N, 1]."""
        return np.zeros((len(texts), self.dim), dtype=np.float32)
