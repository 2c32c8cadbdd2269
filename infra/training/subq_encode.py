"""Token ids of much text: each distinct word of it is encoded once.

A word here is a run of white space and what follows it up to the next. The tokenizer's pieces never reach over
where such a word begins (byte-level BPE splits by its expression before it merges, and only white space in front of
a piece belongs to it), so that the ids of a text are those of its words, one behind the other. Text repeats itself,
and a dictionary knows most words by the second megabyte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from models.subq.tokenizer import SubqTokenizer

Ids = np.ndarray[Any, np.dtype[Any]]
_WORD = re.compile(r"\s*\S+|\s+")
_OTHERS = re.compile(r"[\x1c-\x1f\u180e]")
"""White space for Python or for the tokenizer, not for both: a text that holds one is encoded whole."""


class WordEncoder:
    """Encodes texts one after another; what it has learned of words stays."""

    def __init__(self, tokenizer: SubqTokenizer) -> None:
        if tokenizer.vocabulary > 1 << 16:
            raise ValueError(
                f"vocabulary: given {tokenizer.vocabulary}; allowed: {1 << 16} at most (uint16 ids)"
            )
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}
        self._flat = np.empty(0, np.uint16)
        self._begins = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids (uint16) of each text, those that `SubqTokenizer.encode` gives."""
        words = [None if _OTHERS.search(text) else _WORD.findall(text) for text in texts]
        self._learn(word for found in words if found is not None for word in found)
        return [
            np.array(self._tokenizer.encode(text), np.uint16) if found is None else self._joined(found)
            for text, found in zip(texts, words, strict=True)
        ]

    def _learn(self, words: Iterable[str]) -> None:
        # in the order of the text, not of a set: two runs are alike in all that they hold
        new = [word for word in dict.fromkeys(words) if word not in self._known]
        if not new:
            return
        self._known |= zip(new, range(len(self._known), len(self._known) + len(new)), strict=True)
        found = list(self._tokenizer.encode_many(new, 8_192))
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        self._begins = np.concatenate((self._begins, len(self._flat) + lengths.cumsum() - lengths))
        self._lengths = np.concatenate((self._lengths, lengths))
        flat = np.fromiter((each for ids in found for each in ids), np.uint16, int(lengths.sum()))
        self._flat = np.concatenate((self._flat, flat))

    def _joined(self, words: Sequence[str]) -> Ids:
        numbers = np.fromiter(map(self._known.__getitem__, words), np.int64, len(words))
        lengths = self._lengths[numbers]
        ends = lengths.cumsum()
        total = int(ends[-1]) if len(ends) else 0
        places = np.repeat(self._begins[numbers] - (ends - lengths), lengths)
        ids: Ids = self._flat[places + np.arange(total)]
        return ids


def encoded(tokenizer: SubqTokenizer, texts: Sequence[str], at_once: int = 256) -> Iterator[Ids]:
    """Ids of each text, in order."""
    encoder = WordEncoder(tokenizer)
    for start in range(0, len(texts), at_once):
        yield from encoder.encode(texts[start : start + at_once])
