"""A pair reader that reads apart: an encoder's vector of the question against its vector of the candidate.

E5 small as its makers trained it (arXiv 2212.03533) orders sentences by cosine; a cross-encoder made of it begins
anew with another use of the same weights. Here the use stays: a score is scale · (cosine - offset), against "none
of these" at 0, and training moves the weights, the scale and the offset a little. What was read already (`given`)
stands behind the question. A candidate's vector does not depend on the question: the vectors of texts that were
scored last are kept (`KEPT`), so the second pass over a question's candidates costs its questions alone.

`N` rows, `T` tokens, `W` the model's width.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.digests import FILES, digests_of
from models.formats import FORMAT, KEY
from models.retriever.few_bits import in_few_bits
from models.retriever.pair_base import (
    GIVEN_TOKENS,
    QUESTION_TOKENS,
    PairRow,
    PairScorer,
    TokenIds,
    Tuning,
    from_eight_bits,
    in_eight_bits,
    put,
)
from models.retriever.pair_reader import CARD, CONFIG, DUAL, TOKENIZER, WEIGHTS, PairModel, ends_of
from models.retriever.table import Floats

Pool = Literal["mean", "first"]
_TIMES = 10.0
"""How much faster the scale and the offset learn than the encoder."""
SCALE, OFFSET = 40.0, 0.8
"""Where they begin: E5's cosines are between .7 and .9."""
KEPT = 32_768
"""So many texts' vectors are kept, in half precision: 25 MB of E5's."""
_ROWS = 65_536
"""Rows whose products are made at once."""


class DualModel(nn.Module):
    """BERT over questions and over texts, and how cosines become scores. [N]"""

    def __init__(self, sizes: Mapping[str, Any], pool: Pool = "mean") -> None:
        super().__init__()
        within = PairModel(sizes)
        self.sizes, self.bert, self.pool = within.sizes, within.bert, pool
        self.log_scale = nn.Parameter(torch.tensor([math.log(SCALE)]))
        self.offset = nn.Parameter(torch.tensor([OFFSET]))

    def forward(
        self,
        asked: Tensor,
        asked_mask: Tensor,
        told: Tensor,
        told_mask: Tensor,
        question: Tensor,
        text: Tensor,
    ) -> Tensor:
        """Distinct questions and texts [., T] with their masks, and which of each a row is of [N]: scores. [N]"""
        a, b = self.unit(asked, asked_mask)[question], self.unit(told, told_mask)[text]
        score: Tensor = self.log_scale.exp() * ((a * b).sum(-1) - self.offset)
        return score

    def unit(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors of length one, float32. [., W]"""
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if self.pool == "first":
            return functional.normalize(hidden[:, 0], dim=-1)
        weight = mask[..., None].float()
        return functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


class DualPairReader(PairScorer):
    """A pair reader of two vectors a row; `asked` and `told`: what stands before a question and before a text."""

    model: DualModel

    def __init__(
        self, model: DualModel, tokenizer: Tokenizer, asked: str = "", told: str = "", device: str = "cpu"
    ) -> None:
        self.model, self.device, self.before = model.to(device).eval(), device, (asked, told)
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._ends = ends_of(tokenizer)[:2]
        self._asked, self._told = self.tokenize([asked, told])
        self._kept: dict[TokenIds, npt.NDArray[np.float16]] = {}
        self.rows_per_batch = 1024 if device.startswith("cuda") else 32

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of each text, without special tokens."""
        made = self._tokenizer.encode_batch(self.seen(texts), add_special_tokens=False)
        return [tuple(each.ids) for each in made]

    def collate(self, rows: Sequence[PairRow]) -> tuple[Tensor, ...]:
        """Each distinct question (with what was read) and text once, then their places; see `DualModel.forward`."""
        first, last = self._ends
        asked: dict[tuple[int, ...], int] = {}
        told: dict[tuple[int, ...], int] = {}
        question, text = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        for at, row in enumerate(rows):
            whole, other = self._ids(row, first, last)
            question[at], text[at] = asked.setdefault(whole, len(asked)), told.setdefault(other, len(told))
        return (
            *self._padded(list(asked)), *self._padded(list(told)), put(question, self.device),
            put(text, self.device),
        )  # fmt: skip

    def batches(self, rows: Sequence[PairRow]) -> list[list[int]]:
        """The places of all rows by their length, so many at once."""
        order = sorted(range(len(rows)), key=lambda at: len(rows[at].text))
        size = self.rows_per_batch
        return [order[start : start + size] for start in range(0, len(order), size)]

    def learn(self, rows: Sequence[PairRow]) -> Tensor:
        """Scores with their gradient, in order. [N]"""
        self._kept.clear()
        return super().learn(rows)

    @torch.inference_mode()
    def scores(self, rows: Sequence[PairRow]) -> Floats:
        """A score for every row, in order, from vectors made one distinct question and text at a time. [N]"""
        if not rows:
            return np.zeros(0, np.float32)
        first, last = self._ends
        asked: dict[tuple[int, ...], int] = {}
        told: dict[tuple[int, ...], int] = {}
        places = np.zeros((2, len(rows)), np.int64)
        for at, row in enumerate(rows):
            question, text = self._ids(row, first, last)
            places[:, at] = asked.setdefault(question, len(asked)), told.setdefault(text, len(told))
        a, b = self._vectors(list(asked)), self._known(list(told))
        cosine = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            cosine[part] = np.einsum("nw,nw->n", a[places[0, part]], b[places[1, part]])
        scale, offset = float(self.model.log_scale.exp()), float(self.model.offset)
        return np.asarray(scale * (cosine - offset), np.float32)

    def tuning(self) -> Tuning:
        """The whole encoder; the scale and the offset ten times as fast."""
        self._kept.clear()
        return Tuning(
            [(list(self.model.bert.parameters()), 1.0), ([self.model.log_scale, self.model.offset], _TIMES)]
        )

    def _ids(self, row: PairRow, first: int, last: int) -> tuple[TokenIds, TokenIds]:
        """[CLS] question [SEP] (given [SEP]) and [CLS] candidate [SEP], what stands before each included."""
        given = (*row.given[:GIVEN_TOKENS], last) if row.given else ()
        question = (first, *self._asked, *row.question[:QUESTION_TOKENS], last, *given)
        return question, (first, *self._told, *row.text[: self.text_tokens], last)

    def _known(self, texts: Sequence[TokenIds]) -> Floats:
        """The vectors of distinct texts; those that are not kept are made, and the last KEPT of all stay. [., W]"""
        new = [text for text in texts if text not in self._kept]
        for text, vector in zip(new, self._vectors(new), strict=True):
            self._kept[text] = vector.astype(np.float16)
        found = np.stack([self._kept[text] for text in texts]).astype(np.float32)
        for text in list(self._kept)[: max(0, len(self._kept) - KEPT)]:
            del self._kept[text]
        return found

    def _vectors(self, whole: Sequence[TokenIds]) -> Floats:
        """Vectors of length one of token ids, those of like length together. [., W]"""
        out = np.zeros((len(whole), int(self.model.sizes["hidden_size"])), np.float32)
        order = sorted(range(len(whole)), key=lambda at: len(whole[at]))
        half = self.device.startswith("cuda")
        for start in range(0, len(order), self.rows_per_batch):
            chosen = order[start : start + self.rows_per_batch]
            with torch.autocast("cuda" if half else "cpu", torch.bfloat16, enabled=half):
                out[chosen] = self.model.unit(*self._padded([whole[at] for at in chosen])).cpu().numpy()
        return out

    def _padded(self, whole: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = -(-max(map(len, whole)) // 8) * 8
        ids = np.zeros((len(whole), width), np.int64)
        mask = np.zeros((len(whole), width), np.int64)
        for at, each in enumerate(whole):
            ids[at, : len(each)] = each
            mask[at, : len(each)] = 1
        return put(ids, self.device), put(mask, self.device)


def from_encoder(
    folder: Path, device: str = "cpu", *, asked: str = "", told: str = "", pool: Pool = "mean",
    offset: float = OFFSET,
) -> DualPairReader:  # fmt: skip
    """An untrained reader over the encoder in `folder` (config.json, model.safetensors, tokenizer.json)."""
    model = DualModel(json.loads((folder / "config.json").read_text(encoding="utf-8")), pool)
    state = load_file(folder / "model.safetensors")
    model.bert.load_state_dict({name.removeprefix("bert."): tensor.float() for name, tensor in state.items()})
    with torch.no_grad():
        model.offset.fill_(offset)
    return DualPairReader(model, Tokenizer.from_file(str(folder / TOKENIZER)), asked, told, device)


def save_dual_pair(
    reader: DualPairReader, folder: Path, about: Mapping[str, Any], card: str = "", *, few: bool = False
) -> Path:
    """Write the reader with matrices in 8 bits, a scale for each row, or in `few`; the configuration last."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = (in_few_bits if few else in_eight_bits)(reader.model.state_dict())
    save_file(packed, folder / f"{WEIGHTS}.part", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS}.part", folder / WEIGHTS)
    (folder / TOKENIZER).write_text(reader._tokenizer.to_str(), encoding="utf-8")
    (folder / CARD).write_text(card or _card(about), encoding="utf-8")
    body = {
        KEY: FORMAT, "kind": DUAL, "model": reader.model.sizes, "pool": reader.model.pool,
        "before": list(reader.before), FILES: digests_of(folder, [WEIGHTS, TOKENIZER]), "about": dict(about),
    }  # fmt: skip
    (folder / f"{CONFIG}.part").write_text(json.dumps(body, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(folder / f"{CONFIG}.part", folder / CONFIG)
    return folder


def load_dual_pair(folder: Path, body: Mapping[str, Any], device: str) -> DualPairReader:
    """The reader of a folder whose configuration is `body`; KeyError or RuntimeError where it does not fit."""
    model = DualModel(body["model"], body["pool"])
    model.load_state_dict(from_eight_bits(load_file(folder / WEIGHTS)))
    asked, told = body["before"]
    return DualPairReader(model, Tokenizer.from_file(str(folder / TOKENIZER)), asked, told, device)


def _card(about: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    return (
        "# Pair reader of two vectors\n\nAn encoder's cosine of a question and a candidate sentence, scaled "
        "(docs/policy.md); its scores are features of the retriever's policy. Matrices in 8 bits or fewer, with "
        f"scales.\n\n| what | value |\n| --- | --- |\n{rows}\n"
    )
