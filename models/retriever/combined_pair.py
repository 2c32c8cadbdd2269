"""Several pair readers as one: each reads every pair, and what counts is a weighted sum of their scores.

One over the decoder and one over MiniLM are wrong about different questions; so is one over another encoder. The
weights are a temperature each and their mixture in one; "none of these" stays at 0. Features and their number are
those of every pair reader (`pair_base.py`): a policy does not know how many read. In a folder: a configuration that
names the readers' folders beneath it (`parts`; the decoder's and MiniLM's where it names none), and these.

`N` rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from models.formats import FORMAT, KEY, check_format
from models.retriever.files import put_json
from models.retriever.pair_base import SCORE_LIMIT, PairRow, PairScorer, TokenIds, Tuning
from models.retriever.pair_reader import CARD, COMBINED, CONFIG, load_pair_reader, save_pair_reader
from models.retriever.table import Floats

PARTS = ("decoder", "minilm")
"""The folders of both readers, in the order of the weights, where a configuration names no others."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class CombinedPairReader(PairScorer):
    """Scores rows by several readers; token ids are those of all, one behind another, each's number before it.

    `parts`: what their folders are called. It is not trained: train each, then fit the weights.
    """

    def __init__(
        self, readers: Sequence[PairScorer], weights: Sequence[float], parts: Sequence[str] = PARTS
    ) -> None:
        if not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise ValueError(f"weights: given {tuple(weights)}; allowed: 0 or more, one of them above 0")
        if not len(readers) == len(weights) == len(parts) == len(set(parts)):
            raise ValueError(
                f"readers: given {len(readers)} with {len(weights)} weights under the names {', '.join(parts)}; "
                "allowed: as many weights and different names"
            )
        self.readers, self.weights, self.parts = tuple(readers), tuple(weights), tuple(parts)
        self.device = readers[0].device
        self.around = any(reader.around for reader in readers)
        self.model = nn.ModuleList([reader.model for reader in readers])

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of each text by all readers."""
        each = [reader.tokenize(texts) for reader in self.readers]
        return [tuple(id_ for own in one for id_ in (len(own), *own)) for one in zip(*each, strict=True)]

    def scores(self, rows: Sequence[PairRow]) -> Floats:
        """The weighted sum of the readers' scores, each within SCORE_LIMIT. [N]"""
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
        """Refused with ValueError: its readers are trained apart."""
        raise ValueError("a combined pair reader is not trained; train each of its readers")


def save_combined(
    reader: CombinedPairReader, folder: Path, about: Mapping[str, Any], *, own_words: bool = True,
    few: bool = False,
) -> Path:  # fmt: skip
    """Write the readers beneath the folder, then what says how they count."""
    for name, part in zip(reader.parts, reader.readers, strict=True):
        save_pair_reader(part, folder / name, about, own_words=own_words, few=few)
    return put_weights(folder, reader.weights, about, reader.parts)


def put_weights(
    folder: Path, weights: Sequence[float], about: Mapping[str, Any], parts: Sequence[str] = PARTS
) -> Path:
    """Write the configuration of a folder that has these readers, or will have them."""
    folder.mkdir(parents=True, exist_ok=True)
    told = "\n".join(
        f"| weight of {name} | {value:.4f} |" for name, value in zip(parts, weights, strict=True)
    )
    (folder / CARD).write_text(
        "# Several pair readers as one\n\nA weighted sum of their scores (docs/policy.md); each has its own "
        f"card beneath.\n\n| what | value |\n| --- | --- |\n{told}\n",
        encoding="utf-8",
    )
    body = {
        KEY: FORMAT, "kind": COMBINED, "parts": list(parts), "weights": list(weights), "about": dict(about)
    }  # fmt: skip
    put_json(body, folder / CONFIG)
    return folder


def parts_of(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The folders of the readers that a configuration names; ValueError for what is no plain name."""
    parts = tuple(body.get("parts", PARTS))
    if wrong := [name for name in parts if not isinstance(name, str) or not _NAME.fullmatch(name)]:
        raise ValueError(
            f"parts: given {wrong[0]!r}; allowed: names of folders beneath, as {', '.join(PARTS)}"
        )
    return parts


def load_combined(
    folder: Path, body: Mapping[str, Any], device: str, base: Path | None, words: Tensor | None = None
) -> CombinedPairReader:
    """The reader of a folder whose configuration is `body`; ValueError names what does not fit.

    `words`: as for `load_pair_reader`.
    """
    check_format(body, folder / CONFIG)
    try:
        parts = parts_of(body)
        weights = [float(weight) for weight in body["weights"]]
        if len(weights) != len(parts):
            raise ValueError(f"given {len(weights)} for {', '.join(parts)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"pair_reader: {folder} needs a weight for each reader: {error}") from None
    readers = [load_pair_reader(folder / name, device, base, words=words)[0] for name in parts]
    return CombinedPairReader(readers, weights, parts)


def _of(ids: TokenIds, at: int) -> TokenIds:
    """One reader's token ids of those of all; none of none."""
    if not ids:
        return ()
    start = 0
    for _ in range(at):
        start += 1 + ids[start]
    return ids[start + 1 : start + 1 + ids[start]]
