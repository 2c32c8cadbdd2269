"""No embedding: a store that is searched by words alone. Chunks are counted in words, and every vector is zero.

A zero vector scores 0 against every question, so a hybrid search comes out as BM25 ranks it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from models.embed.characters import IN_WORD, MARK, codes, kinds
from models.embed.embedder import Offsets, Vectors

_WORD = re.compile(r"\w+|[^\w\s]")
_MAX_TOKENS = 100_000
IDENTITY = "none-1"


class WordTokenizer:
    """Words and marks as tokens: needs no model's vocabulary."""

    max_tokens = _MAX_TOKENS

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words and marks of each text."""
        return [len(_WORD.findall(text)) for text in texts]

    def offsets(self, text: str) -> Offsets:
        """Characters [start, end) of each word and mark."""
        return self.offsets_many((text,))[0]

    def offsets_many(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """`offsets` of each text, found in one pass over all."""
        found = kinds(codes("\n".join(texts)))  # a line break is no part of a word
        word = np.zeros(len(found) + 2, dtype=bool)
        word[1:-1] = found == IN_WORD
        mark = found == MARK
        starts = np.flatnonzero((word[1:-1] & ~word[:-2]) | mark)
        ends = np.flatnonzero((word[1:-1] & ~word[2:]) | mark) + 1
        places = np.stack((starts, ends), axis=1)
        begins = [0, *accumulate(len(text) + 1 for text in texts)]
        cuts = np.searchsorted(starts, begins).tolist()
        return [
            places[first:last] - begin for first, last, begin in zip(cuts, cuts[1:], begins, strict=False)
        ]


class NoEmbedder(WordTokenizer):
    """Stands where an embedder would: zeros of width 1."""

    identity = IDENTITY
    dim = 1
    batch_texts = 4_096

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Zeros float32 [N, 1]."""
        return np.zeros((len(texts), self.dim), dtype=np.float32)
