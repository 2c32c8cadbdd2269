"""What a landmark head is taught with: an embedder's vectors of many texts and queries, made where there is a GPU.

    python3 -m infra.training.landmark_taught --data build/landmark-data --reader READER --out WORK/taught

DATA is what `infra.training.landmark_data` wrote: corpus.xz (passages that may be read, and training questions
without a label), train.json.xz and the judged files. OUT gets the texts' token ids, the teacher's vectors [N, 384]
and its main directions, and its vectors of the judged texts, so that no run needs the teacher again. Made whole or
not at all: `about.json` is written last.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.training.landmark_queries import made_of
from infra.training.learners.landmark_pairs import (
    CORPUS,
    TRAIN,
    Pairs,
    judged_files,
    load_pairs,
    read_corpus,
)
from infra.training.learners.landmark_peers import main_directions
from infra.training.side_by_side import tell

ABOUT = "about.json"
OF_A_PASSAGE = 4
"""Rows of a passage: itself, its sentence, two queries."""

Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]
Ids = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class Taught:
    """Rows of texts: `passages` times (passage, sentence, query, query), the texts of train.json.xz, then `asked`.

    `ids` [tokens] by `starts` [rows + 1]; `vectors` [rows, D] of unit length, `directions` [D, dim].
    """

    passages: int
    labelled: int
    asked: int
    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float16]
    directions: npt.NDArray[np.float32]

    @property
    def first_labelled(self) -> int:
        """The row of train.json.xz's first text."""
        return OF_A_PASSAGE * self.passages

    @property
    def first_asked(self) -> int:
        """The row of the first question without a label."""
        return self.first_labelled + self.labelled

    def row(self, at: int) -> list[int]:
        """Token ids of a row."""
        row: list[int] = self.ids[self.starts[at] : self.starts[at + 1]].tolist()
        return row

    @classmethod
    def load(cls, folder: Path) -> Taught:
        """What `make` wrote; ValueError where it is not there or not whole."""
        if not (folder / ABOUT).is_file():
            raise ValueError(
                f"taught: {folder} holds no {ABOUT}; make it: python3 -m infra.training.landmark_taught --help"
            )
        about = json.loads((folder / ABOUT).read_text())
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("ids", "starts", "vectors", "directions")
        }
        return cls(about["passages"], about["labelled"], about["asked"], **arrays)


def make(
    data: Path,
    out: Path,
    encode: Encode,
    ids_of: Ids,
    *,
    passages: int,
    dim: int,
    most_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """Write OUT of at most `passages` passages; what was made. What is there whole is left as it is."""
    if (out / ABOUT).is_file():
        found: dict[str, Any] = json.loads((out / ABOUT).read_text())
        return found
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    corpus, asked = read_corpus(data / CORPUS)
    chance = random.Random(f"{seed}:taught")
    chance.shuffle(corpus)
    made = [each for title, text in corpus[:passages] if (each := made_of(title, text, chance)) is not None]
    train = load_pairs(data / f"{TRAIN}.json.xz")
    texts = [text for each in made for text in (each.passage, each.sentence, *each.queries)]
    texts += [*train.texts, *asked]
    tell(f"{len(made):,} passages, {len(texts):,} texts to teach by ({time.monotonic() - began:.0f} s)")
    vectors = encode(texts)
    tell(f"taught vectors {vectors.shape} after {time.monotonic() - began:.0f} s")
    rows = [row[:most_tokens] or [0] for row in ids_of(texts)]
    np.save(out / "ids.npy", np.fromiter((i for row in rows for i in row), np.int32))
    np.save(out / "starts.npy", np.cumsum([0, *map(len, rows)]).astype(np.int64))
    np.save(out / "vectors.npy", vectors.astype(np.float16))
    directions = main_directions(vectors[: OF_A_PASSAGE * min(4096, len(made))], dim)
    if directions.shape[1] < dim:
        raise ValueError(
            f"dim: given {dim}; {len(made)} passages and {vectors.shape[1]} numbers of a vector give "
            f"{directions.shape[1]} directions: give more passages, or a smaller dim"
        )
    np.save(out / "directions.npy", directions)
    for name, path in judged_files(data).items():
        np.save(out / f"judged-{name}.npy", encode(load_pairs(path).texts).astype(np.float16))
    np.save(out / "train-head.npy", encode(train.texts[:4096]).astype(np.float16))
    about = {
        "passages": len(made), "labelled": len(train.texts), "asked": len(asked), "dim": int(vectors.shape[1]),
        "tokens": int(sum(map(len, rows))), "seconds": round(time.monotonic() - began, 1), "seed": seed,
    }  # fmt: skip
    (out / ABOUT).write_text(json.dumps(about))
    return about


class KnownVectors:
    """The teacher's vectors of judged texts and of the first training texts, looked up: an embedder's `encode`."""

    def __init__(self, folder: Path, judged: dict[str, Pairs], train_texts: Sequence[str]) -> None:
        self._rows: dict[str, npt.NDArray[np.float16]] = {}
        for name, pairs in judged.items():
            self._rows.update(zip(pairs.texts, np.load(folder / f"judged-{name}.npy"), strict=True))
        head = np.load(folder / "train-head.npy")
        self._rows.update(zip(train_texts[: len(head)], head, strict=True))

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors [N, D]; KeyError for a text that was not embedded."""
        return np.stack([self._rows[text] for text in texts]).astype(np.float32)


def reader_ids(folder: Path) -> Ids:
    """Many texts at once to ids of a decoder's folder; tokens that a cut vocabulary lacks are left out."""
    from tokenizers import Tokenizer

    from models.hf.cut import VOCABULARY, is_cut

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    new: npt.NDArray[np.int64] | None = None
    if is_cut(folder):
        kept = np.load(folder / VOCABULARY).astype(np.int64)
        new = np.full(max(tokenizer.get_vocab_size(), int(kept.max()) + 1), -1)
        new[kept] = np.arange(len(kept))

    def ids_of(texts: Sequence[str]) -> list[list[int]]:
        whole = [each.ids for each in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        if new is None:
            return whole
        return [[i for i in new[row].tolist() if i >= 0] if row else [] for row in whole]

    return ids_of


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what infra.training.landmark_data wrote")
    parser.add_argument("--reader", type=Path, required=True, help="folder of the decoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--embedder", default="minilm", help="the teacher")
    parser.add_argument("--passages", type=int, default=100_000, help="passages, at most")
    parser.add_argument("--dim", type=int, default=128, help="width of a landmark")
    parser.add_argument("--most-tokens", type=int, default=160, help="tokens of a text that is taught")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    from models.embed import EmbedderConfig, load_embedder

    about = make(
        given.data, given.out, load_embedder(EmbedderConfig(model=given.embedder)).encode,
        reader_ids(given.reader), passages=given.passages, dim=given.dim, most_tokens=given.most_tokens,
        seed=given.seed,
    )  # fmt: skip
    tell(json.dumps(about))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
