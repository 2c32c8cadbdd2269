"""What every pair reader does: scores of (question, given, candidate) rows in batches of like length, and features.

Scores are logits against "none of these", which stands at 0. What differs (`PairReader` over MiniLM,
`DecoderPairReader` over a decoder) is how text becomes tokens, how rows become a batch, and what is trained.

`K` candidates, `N` rows, `T` tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.retriever.around import as_read
from models.retriever.few_bits import from_few_bits
from models.retriever.table import Floats

QUESTION_TOKENS, GIVEN_TOKENS, TEXT_TOKENS = 48, 64, 96
AROUND_TOKENS = 64
"""So many tokens more of a candidate with the sentences around it."""
BATCH_WORTH = 4_000
"""Tokens of padding that one batch more is worth where something is learned: a batch's launches take as long."""
WIDTH_STEP = 8
"""Widths of batches are multiples of it."""
NEXT_CANDIDATES = 24
"""So many best candidates are read again beside the very best one."""
_SCALE = 8.0
SCORE_LIMIT = 2 * _SCALE
"""Scores beyond it count as it: what the first of the pair features keeps of one."""

_LEARNING = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention that gradients are taken through: all but cuDNN's."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair as token ids without special ones: a question, what was read already, a candidate."""

    question: TokenIds
    text: TokenIds
    given: TokenIds = ()


def alike(lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The places of all rows of these lengths, cut by length where padding and batches cost least together."""
    order = np.argsort(-lengths, kind="stable")
    widths = -(-lengths[order] // WIDTH_STEP) * WIDTH_STEP
    starts = np.flatnonzero(np.diff(widths, prepend=-1))  # of each width, the widest first
    ends = np.append(starts[1:], len(lengths))
    # cost[e]: of the first e widths; a batch from width s on is padded to that width
    cost, cut = np.zeros(len(starts) + 1), np.zeros(len(starts) + 1, np.int64)
    for end in range(1, len(starts) + 1):
        whole = cost[:end] + BATCH_WORTH + (ends[end - 1] - starts[:end]) * widths[starts[:end]]
        cut[end] = int(whole.argmin())
        cost[end] = whole[cut[end]]
    found, end = [], len(starts)
    while end:
        found.append(order[starts[cut[end]] : ends[end - 1]])
        end = int(cut[end])
    return found


def nothing() -> None:
    """Does nothing."""


def put(array: npt.NDArray[Any], device: str | torch.device) -> Tensor:
    """The array on the device, without waiting for what the device has still to do."""
    made = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return made.to(device)
    # a copy from pageable memory waits for all that was launched before it
    return made.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What an optimizer moves: parameters with the factor of their learning rate.

    `gather` is called after a step's backward passes, `merge` after the optimizer's step.
    """

    groups: Sequence[tuple[list[nn.Parameter], float]]
    gather: Callable[[], None] = nothing
    merge: Callable[[], None] = nothing


class PairScorer(ABC):
    """Scores of candidates for questions; `model` gives a score a row from what `collate` makes."""

    model: nn.Module
    device: str
    autocast = True
    """Whether a GPU computes in bf16 by autocast; without it in the dtype of the weights."""
    around = False
    """Whether it reads the sentences before and after a candidate too, where texts come `with_around`."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of each text, without special tokens."""

    def seen(self, texts: Sequence[str]) -> list[str]:
        """The texts as this reader reads them: with the sentences around a candidate, or cut before these."""
        return [as_read(text, around=self.around) for text in texts]

    @property
    def text_tokens(self) -> int:
        """Tokens of a candidate that are read, at most."""
        return TEXT_TOKENS + AROUND_TOKENS * self.around

    @abstractmethod
    def collate(self, rows: Sequence[PairRow]) -> tuple[Tensor, ...]:
        """What the model takes for these rows, on the device."""

    @abstractmethod
    def batches(self, rows: Sequence[PairRow]) -> list[list[int]]:
        """The places of all rows, those of like length together."""

    @abstractmethod
    def tuning(self) -> Tuning:
        """What is trained of the model."""

    def learn(self, rows: Sequence[PairRow]) -> Tensor:
        """Scores with their gradient, in order. [N]"""
        # torch 2.11 on an H200: cuDNN's attention under a mask gave NaN gradients in 3 of 8 batches of E5's (bf16).
        # Which attention a backward pass takes is settled in its forward pass.
        with sdpa_kernel(_LEARNING):
            return self._forward(rows)

    def learn_alike(self, rows: Sequence[PairRow], groups: Sequence[npt.NDArray[np.int64]]) -> Tensor:
        """Scores with their gradient, in order, each group of places (`alike`) in a batch of its own. [N]"""
        with sdpa_kernel(_LEARNING):
            scores = torch.cat([self._forward([rows[at] for at in group]) for group in groups])
        places = put(np.concatenate(groups), scores.device)
        return torch.zeros_like(scores).index_copy(0, places, scores)

    @torch.inference_mode()
    def scores(self, rows: Sequence[PairRow]) -> Floats:
        """A score for every row, in order; above 0: likelier than "none of them". [N]"""
        out = np.zeros(len(rows), np.float32)
        groups = self.batches(rows)
        if groups:
            # fetched at once: the next batch is made while the device works on this one
            found = torch.cat([self._forward([rows[at] for at in group]) for group in groups])
            out[np.concatenate(groups)] = found.cpu().numpy()
        return out

    def features(self, question: str, texts: Sequence[str]) -> Floats:
        """What `table.PAIR_FEATURES` names, of each candidate of a question. [K, 6]"""
        return self.features_of([(question, texts)])[0]

    def features_of(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[Floats]:
        """The same for many questions at once: two passes over all their candidates."""
        distinct = list(dict.fromkeys(text for question, texts in asked for text in (question, *texts)))
        ids = dict(zip(distinct, self.tokenize(distinct), strict=True))
        tokens = [(ids[question], [ids[text] for text in texts]) for question, texts in asked]
        flat = self.scores([PairRow(q, text) for q, texts in tokens for text in texts])
        ends = np.cumsum([len(texts) for _, texts in tokens])
        firsts = np.split(flat, ends[:-1]) if len(tokens) else []
        return self._after(tokens, firsts)

    def features_after(
        self, asked: Sequence[tuple[str, Sequence[str]]], firsts: Sequence[Floats]
    ) -> list[Floats]:
        """The same where the first pass is known already: its scores [K] of each question's candidates."""
        distinct = list(dict.fromkeys(text for question, texts in asked for text in (question, *texts)))
        ids = dict(zip(distinct, self.tokenize(distinct), strict=True))
        return self._after(
            [(ids[question], [ids[text] for text in texts]) for question, texts in asked], firsts
        )

    def _after(
        self, tokens: Sequence[tuple[TokenIds, Sequence[TokenIds]]], firsts: Sequence[Floats]
    ) -> list[Floats]:
        again: list[PairRow] = []
        places: list[npt.NDArray[np.int64]] = []
        for (question_ids, texts), first in zip(tokens, firsts, strict=True):
            order = np.argsort(-first, kind="stable")
            places.append(order[1:NEXT_CANDIDATES])
            if len(order):
                best = texts[int(order[0])]
                again += [PairRow(question_ids, texts[int(at)], best) for at in places[-1]]
        flat = self.scores(again)
        found, start = [], 0
        for first, place in zip(firsts, places, strict=True):
            second = np.full(len(first), np.nan, np.float32)
            second[place] = flat[start : start + len(place)]
            start += len(place)
            found.append(pair_columns(first, second))
        return found

    def _forward(self, rows: Sequence[PairRow]) -> Tensor:
        on_gpu = self.device.startswith("cuda")
        half = on_gpu and self.autocast
        with torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=half):
            found: Tensor = self.model(*self.collate(rows))
        return found


def pair_columns(first: Floats, second: Floats) -> Floats:
    """The pair features from scores of the first pass and of the second (NaN where not asked). [K, 6]"""
    if not len(first):
        return np.zeros((0, 6), np.float32)
    places = np.empty(len(first), np.int64)
    places[np.argsort(-first, kind="stable")] = np.arange(len(first))
    asked = ~np.isnan(second)
    shares, none_more = _shares(np.where(asked, second, -np.inf))
    after = np.where(asked, np.clip(np.nan_to_num(second) / _SCALE, -1, 2), -1.0)
    columns = [
        np.clip(first / _SCALE, -2, 2),
        _shares(first)[0],
        1 / (1 + places),
        after,
        shares,
        np.full(len(first), none_more),
    ]
    return np.stack(columns, 1).astype(np.float32)


def _shares(scores: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float]:
    """Probabilities of the scores beside a 0 for "none of them", and that one's own."""
    top = max(0.0, float(scores.max(initial=0.0)))
    weights, none = np.exp(scores - top), float(np.exp(-top))
    whole = float(weights.sum()) + none
    return weights / whole, none / whole


def in_eight_bits(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in 8 bits, a scale for each row (`<name>:scale`); vectors as they are, in float32."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = tensor.detach().cpu().float()
        if plain.ndim == 2 and plain.shape[0] > 1:
            scale = plain.abs().amax(1, keepdim=True).clamp_min(1e-9) / 127.0
            found[name] = (plain / scale).round().to(torch.int8).contiguous()
            found[f"{name}:scale"] = scale.contiguous()
        else:
            found[name] = plain.contiguous()
    return found


def from_eight_bits(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `in_eight_bits` made (or `few_bits.in_few_bits`), in float32."""
    plain = from_few_bits(packed)
    return {
        name: tensor.float() * plain[f"{name}:scale"] if f"{name}:scale" in plain else tensor.float()
        for name, tensor in plain.items()
        if not name.endswith(":scale")
    }
