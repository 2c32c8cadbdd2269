"""What a run reads: token files, the tokenizer, names; and batches made by several processes in one order."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.formats import first_line
from models.subq.tokenizer import SubqTokenizer
from pipeline.errors import BadData
from pipeline.prepare.needle_stream import NeedleBatch, NeedleStream, NeedleStreamConfig
from pipeline.tasks.needle_grammar import REAL, Needle, NeedleGrammar

Ids = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class SubqData:
    """Token ids of a text, their tokenizer, words that name owners; if any, other wordings and real questions."""

    tokens: Ids
    tokenizer: SubqTokenizer
    names: tuple[str, ...]
    grammar: NeedleGrammar | None = None
    real: tuple[Needle, ...] = ()

    @classmethod
    def load(cls, folder: Path, part: str) -> SubqData:
        """`part` ("train" or "test") of a folder that `infra.training.subq_pack` wrote.

        Parts are `<part>-<n>.bin.xz` (uint16). Names of training and test differ. ValueError for what is missing,
        BadData for what is damaged or of another tokenizer.
        """
        files = sorted(folder.glob(f"{part}-*.bin.xz"))
        if not files or not (folder / "names.json").is_file():
            raise ValueError(
                f"{folder} holds no {part}-*.bin.xz and names.json; write it by infra.training.subq_pack, or take "
                "OUT/subq of `dysra prepare`"
            )
        tokenizer = SubqTokenizer.load(folder / "tokenizer.json")
        real: list[list[str]] = []
        try:
            tokens = np.concatenate(
                [np.frombuffer(lzma.decompress(path.read_bytes()), np.uint16) for path in files]
            )
            names = json.loads((folder / "names.json").read_text(encoding="utf-8"))[part]
            if (folder / "real.json.xz").is_file():
                real = json.loads(lzma.decompress((folder / "real.json.xz").read_bytes()))[part]
            needles = tuple(
                Needle(told, asked, answer, REAL, "real", name) for told, asked, answer, name in real
            )
        except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError) as error:
            raise BadData(
                f"{folder}: its files are damaged ({first_line(error)}); copy it again, or remove it "
                "and make it again"
            ) from None
        if len(tokens) and int(tokens.max()) >= tokenizer.vocabulary:
            raise BadData(
                f"{folder}: its tokens are of another tokenizer: id {int(tokens.max())}, and tokenizer.json has "
                f"{tokenizer.vocabulary}; give the tokenizer.json that was written with them"
            )
        return cls(tokens, tokenizer, tuple(names), real=needles)

    def stream(self, config: NeedleStreamConfig) -> NeedleStream:
        """Batches over this text."""
        return NeedleStream(
            self.tokens, self.tokenizer.encode_spans, config, self.names, self.grammar, self.real
        )


def batches(
    data: SubqData,
    config: NeedleStreamConfig,
    start: int,
    workers: int = 0,
    numbers: Sequence[int] | None = None,
) -> Iterator[NeedleBatch]:
    """Batches start, start + 1, … of all phases, or those of `numbers`; the same with any number of workers."""
    wanted = range(start, config.batches) if numbers is None else list(numbers)
    if not workers:
        stream = data.stream(config)
        for number in wanted:
            yield stream.batch(number)
        return
    from torch.utils.data import DataLoader

    loader: Iterable[NeedleBatch] = DataLoader(
        wanted,  # type: ignore[arg-type]
        batch_size=1,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4,
        collate_fn=_Maker(data, config),
    )
    yield from loader


class _Maker:
    """Makes the batch of a number; each process opens its stream once."""

    def __init__(self, data: SubqData, config: NeedleStreamConfig) -> None:
        self._data, self._config = data, config
        self._stream: NeedleStream | None = None

    def __call__(self, numbers: list[int]) -> NeedleBatch:
        if self._stream is None:
            self._stream = self._data.stream(self._config)
        return self._stream.batch(numbers[0])
