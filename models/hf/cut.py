"""A decoder with a cut vocabulary: the folder of a model whose embedding holds only some tokens' rows.

Written for hosts that a whole embedding cannot be carried to (infra/training/reader_parts.py). The folder has
`vocabulary.npy` (new id to the tokenizer's id, ascending) and `cut.json` (the whole model's identity); all layers
are the whole model's, so what was learned on them fits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

VOCABULARY, CUT = "vocabulary.npy", "cut.json"


class Encoded(NamedTuple):
    """As tokenizers' Encoding."""

    ids: list[int]


class CutTokenizer:
    """What a backbone needs of a tokenizer, in the ids of the cut vocabulary."""

    def __init__(self, whole: Tokenizer, vocabulary: Sequence[int]) -> None:
        self._whole = whole
        self._old = [int(i) for i in vocabulary]
        self._new = {old: new for new, old in enumerate(self._old)}

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoded:
        """Raises ValueError for a text that needs a token which was cut."""
        old = self._whole.encode(text, add_special_tokens=add_special_tokens).ids
        missing = [i for i in old if i not in self._new]
        if missing:
            raise ValueError(
                f"the text needs the token {self._whole.id_to_token(missing[0])!r}, which the cut vocabulary of "
                f"{len(self._old)} tokens lacks; pack the model again with this text among the cases"
            )
        return Encoded([self._new[i] for i in old])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of cut ids."""
        return str(self._whole.decode([self._old[i] for i in ids], skip_special_tokens=skip_special_tokens))

    def token_to_id(self, text: str) -> int | None:
        """The cut id of a token, or None where there is none."""
        old = self._whole.token_to_id(text)
        return None if old is None else self._new.get(old)


def is_cut(folder: Path) -> bool:
    """Whether the folder holds a model with a cut vocabulary."""
    return (folder / VOCABULARY).is_file()


def cut_tokenizer(folder: Path, whole: Tokenizer) -> CutTokenizer:
    """The folder's tokenizer over its vocabulary."""
    return CutTokenizer(whole, np.load(folder / VOCABULARY).tolist())


def whole_identity(folder: Path) -> str:
    """The identity, without an adapter, of the model that was cut."""
    found: dict[str, Any] = json.loads((folder / CUT).read_text())
    return str(found["identity"])
