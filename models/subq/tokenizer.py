"""Byte-level BPE with digits apart: every text comes back exactly, and a key of five digits is five tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.formats import first_line

END = "<|end|>"
_SMALLEST = 257  # every byte, and the end


class SubqTokenizer:
    """Ids of text and text of ids. Id 0 is the end of a text; no text encodes to it."""

    end_id = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True  # text that spells the end token stays text
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int = 16_384) -> SubqTokenizer:
        """Merges learned from `texts`; raises ValueError for fewer ids than bytes need."""
        if vocabulary < _SMALLEST:
            raise ValueError(
                f"vocabulary: given {vocabulary}; allowed: {_SMALLEST} or more (each byte has an id)"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> SubqTokenizer:
        """From the file that `save` wrote."""
        if not path.is_file():
            raise ValueError(f"{path} does not exist; give the tokenizer.json of a subq checkpoint")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises no kind of its own
            raise ValueError(f"{path} is no tokenizer ({first_line(error)}); copy it again") from None

    def save(self, path: Path) -> None:
        """As one JSON file."""
        self._tokenizer.save(str(path))

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def identity(self) -> str:
        """Hash of the merges: equal for equal ids."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:12]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the characters (from, to) that each covers."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return list(found.ids), list(found.offsets)

    def encode_many(self, texts: Sequence[str], batch: int = 256) -> Iterator[list[int]]:
        """Ids of each text, computed in batches."""
        for start in range(0, len(texts), batch):
            for found in self._tokenizer.encode_batch(texts[start : start + batch], add_special_tokens=False):
                yield list(found.ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, the end left out; bytes that are no UTF-8 become replacement characters."""
        return str(self._tokenizer.decode([i for i in ids if i != self.end_id], skip_special_tokens=True))
