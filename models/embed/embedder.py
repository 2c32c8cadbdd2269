"""What every embedder offers, and the tokenizer that the chunker shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Vectors = NDArray[np.float32]
Offsets = list[tuple[int, int]] | NDArray[np.int64]
"""Characters [start, end) of each token: pairs, or an array [n, 2]."""


class TextTokenizer(Protocol):
    """Counts and locates the tokens that an embedder sees, without loading its weights."""

    max_tokens: int
    """Tokens of one text that the embedder reads, special tokens not counted; it cuts what is beyond."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...

    def offsets(self, text: str) -> Offsets: ...


class Embedder(TextTokenizer, Protocol):
    """Texts to unit vectors. Embedders of equal `identity` share one space; others never mix in a store."""

    identity: str
    dim: int
    batch_texts: int
    """Texts that one forward pass takes best; `encode` takes any number."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 [N, D] of unit length, in the order of `texts`."""
        ...


class FastTextTokenizer:
    """A `tokenizer.json` as a TextTokenizer: offsets are characters [start, end) of the given text."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def from_file(cls, path: Path, max_tokens: int) -> FastTextTokenizer:
        """Read a tokenizer.json; ValueError where the folder has none."""
        if not path.is_file():
            raise ValueError(f"{path} does not exist; an embedder needs a fast tokenizer (tokenizer.json)")
        return cls(Tokenizer.from_file(str(path)), max_tokens)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens not counted."""
        return [len(e.ids) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token lies in `text`, in order."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def offsets_many(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """`offsets` of each text, by one call that does not hold the interpreter's lock."""
        return [e.offsets for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1; a zero row (a text without a known token) becomes the first axis."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = norms[:, 0] < 1e-12
    result = vectors / np.maximum(norms, 1e-12)
    if empty.any():
        result[empty] = 0.0
        result[empty, 0] = 1.0
    return np.ascontiguousarray(result, dtype=np.float32)
