"""Two pair readers as one: each reads every pair, and what counts is a weighted sum of both scores.

One over the decoder and one over MiniLM are wrong about different questions. The weights are a temperature
each and their mixture in one; "none of these" stays at 0. Features and their number are those of every pair reader
(`pair_base.py`): a policy does not know how many read. In a folder: a configuration, and both readers beneath it.

`N` rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from models.formats import FORMAT, KEY, check_format
from models.retriever.pair_base import SCORE_LIMIT, PairRow, PairScorer, TokenIds, Tuning
from models.retriever.pair_reader import CARD, COMBINED, CONFIG, load_pair_reader, save_pair_reader
from models.retriever.table import Floats

PARTS = ("decoder", "minilm")
"""The folders of both readers, in the order of the weights."""


class CombinedPairReader(PairScorer):
    """Scores rows by two readers; token ids are those of both, one behind the other, the first's number first.

    It is not trained: train each, then fit the weights.
    """

    def __init__(self, readers: tuple[PairScorer, PairScorer], weights: tuple[float, float]) -> None:
        if not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise ValueError(f"weights: given {weights}; allowed: 0 or more, one of them above 0")
        self.readers, self.weights, self.device = readers, weights, readers[0].device
        self.model = nn.ModuleList([reader.model for reader in readers])

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of each text by both readers."""
        first, second = (reader.tokenize(texts) for reader in self.readers)
        return [(len(a), *a, *b) for a, b in zip(first, second, strict=True)]

    def scores(self, rows: Sequence[PairRow]) -> Floats:
        """The weighted sum of both readers' scores, each within SCORE_LIMIT. [N]"""
        out = np.zeros(len(rows), np.float32)
        for at, (reader, weight) in enumerate(zip(self.readers, self.weights, strict=True)):
            own = [PairRow(_of(row.question, at), _of(row.text, at), _of(row.given, at)) for row in rows]
            out += weight * np.clip(reader.scores(own), -SCORE_LIMIT, SCORE_LIMIT)
        return out

    def collate(self, rows: Sequence[PairRow]) -> tuple[Tensor, ...]:
        """Refused with TypeError: each reader has batches of its own."""
        raise TypeError("a combined pair reader makes no batches; ask for scores")

    def batches(self, rows: Sequence[PairRow]) -> list[list[int]]:
        """Refused with TypeError: each reader has batches of its own."""
        raise TypeError("a combined pair reader makes no batches; ask for scores")

    def tuning(self) -> Tuning:
        """Refused with ValueError: the two are trained apart."""
        raise ValueError("a combined pair reader is not trained; train each of its readers")


def save_combined(
    reader: CombinedPairReader, folder: Path, about: Mapping[str, Any], *, own_words: bool = True
) -> Path:
    """Write both readers beneath the folder, then what says how they count."""
    for name, part in zip(PARTS, reader.readers, strict=True):
        save_pair_reader(part, folder / name, about, own_words=own_words)
    return put_weights(folder, reader.weights, about)


def put_weights(folder: Path, weights: tuple[float, float], about: Mapping[str, Any]) -> Path:
    """Write the configuration of a folder that has both readers, or will have them."""
    folder.mkdir(parents=True, exist_ok=True)
    told = "\n".join(
        f"| weight of {name} | {value:.4f} |" for name, value in zip(PARTS, weights, strict=True)
    )
    (folder / CARD).write_text(
        "# Two pair readers as one\n\nA weighted sum of both readers' scores (docs/policy.md); each has its own "
        f"card beneath.\n\n| what | value |\n| --- | --- |\n{told}\n",
        encoding="utf-8",
    )
    body = {KEY: FORMAT, "kind": COMBINED, "weights": list(weights), "about": dict(about)}
    (folder / f"{CONFIG}.part").write_text(json.dumps(body, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(folder / f"{CONFIG}.part", folder / CONFIG)
    return folder


def load_combined(
    folder: Path, body: Mapping[str, Any], device: str, base: Path | None, words: Tensor | None = None
) -> CombinedPairReader:
    """The reader of a folder whose configuration is `body`; ValueError names what does not fit.

    `words`: as for `load_pair_reader`.
    """
    check_format(body, folder / CONFIG)
    try:
        first, second = (float(weight) for weight in body["weights"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"pair_reader: {folder} needs two weights: {error}") from None
    readers = [load_pair_reader(folder / name, device, base, words=words)[0] for name in PARTS]
    return CombinedPairReader((readers[0], readers[1]), (first, second))


def _of(ids: TokenIds, at: int) -> TokenIds:
    """One reader's token ids of those of both; none of none."""
    if not ids:
        return ()
    return ids[1 + ids[0] :] if at else ids[1 : 1 + ids[0]]
