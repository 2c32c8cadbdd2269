"""No embedding: a store that is searched by words alone. Chunks are counted in words, and every vector is zero.

A zero vector scores 0 against every question, so a hybrid search comes out as BM25 ranks it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from models.embed.embedder import Vectors

_WORD = re.compile(r"\w+|[^\w\s]")
_MAX_TOKENS = 100_000
IDENTITY = "none-1"


class WordTokenizer:
    """Words and marks as tokens: needs no model's vocabulary."""

    max_tokens = _MAX_TOKENS

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words and marks of each text."""
        return [len(_WORD.findall(text)) for text in texts]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters [start, end) of each word and mark."""
        return [match.span() for match in _WORD.finditer(text)]


class NoEmbedder(WordTokenizer):
    """Stands where an embedder would: zeros of width 1."""

    identity = IDENTITY
    dim = 1
    batch_texts = 4_096

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Zeros float32 [N, 1]."""
        return np.zeros((len(texts), self.dim), dtype=np.float32)
