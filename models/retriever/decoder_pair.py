"""A pair reader over the reader's own decoder: Gemma-3-270M without its head over words, LoRA, one linear head.

A row is laid out **text first, question last**: <bos>, what was read already and a line's end (if anything), the
candidate and a line's end, "Question:", the question and a line's end; the score comes from the last token's state.
So what a stored text's tokens leave in the cache does not depend on the question: only the question's own tokens
would be new (the code here computes all of them). Attention is causal: rows are padded on the right, unmasked.

100M weights work on each token beside 168M that look words up: some ten times MiniLM's work. Scores and features
are those of every pair reader (`pair_base.py`). The base is no part of what is saved; a digest says which it was.

`N` rows, `T` tokens, `W` the decoder's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from models.digests import FILES, digests_of
from models.formats import FORMAT, KEY
from models.reader_lowrank import LowRank, MasterWeights
from models.retriever.decoder_base import DecoderBase, default_folder, open_base
from models.retriever.files import put_json, put_weights
from models.retriever.pair_base import (
    GIVEN_TOKENS,
    QUESTION_TOKENS,
    WIDTH_STEP,
    PairRow,
    PairScorer,
    TokenIds,
    Tuning,
    alike,
    from_eight_bits,
    in_eight_bits,
    put,
)
from models.retriever.pair_reader import CARD, CONFIG, DECODER, WEIGHTS

_TIMES = 10.0
"""How much faster the head learns than the decoder."""
_HEAD = "head."


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderPairConfig:
    """What of the decoder is trained."""

    tune: Literal["lora", "full"] = field(
        default="lora", metadata={"help": "lora: adapters on attention and MLP; full: all but the embedding"}
    )
    rank: int = field(default=32, metadata={"help": "rank of the adapters"})
    alpha: float = field(default=64.0, metadata={"help": "alpha / rank times B·A is added to a weight"})

    def __post_init__(self) -> None:
        if self.tune not in ("lora", "full"):
            raise ValueError(f"tune: given {self.tune!r}; allowed: lora, full")
        if self.rank < 1:
            raise ValueError(f"rank: given {self.rank}; allowed: 1 or more")
        if not self.alpha > 0:
            raise ValueError(f"alpha: given {self.alpha}; allowed: above 0")


class DecoderPairModel(nn.Module):
    """The decoder and a linear head over the state of a row's last token, set to length one in its mean square."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        _put_norms(decoder)
        width = int(decoder.config.hidden_size)
        self.head = nn.Linear(width, 1)
        chance = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.head.weight.copy_(0.02 * torch.randn(1, width, generator=chance))
            self.head.bias.zero_()

    def forward(self, ids: Tensor, last: Tensor) -> Tensor:
        """Token ids [N, T], padded on the right, and the place of each row's last token [N]: scores. [N]"""
        # causal and shorter than the window: no mask is needed, and the fastest attention takes none
        window = self.decoder.config.sliding_window
        plain = {"full_attention": None, "sliding_attention": None} if ids.shape[1] <= window else None
        hidden = self.decoder(input_ids=ids, attention_mask=plain, use_cache=False).last_hidden_state
        state = hidden[torch.arange(len(ids), device=ids.device), last].float()
        score: Tensor = self.head(functional.rms_norm(state, state.shape[-1:]))[:, 0]
        return score


class DecoderPairReader(PairScorer):
    """A pair reader over a decoder; see the module's text for the layout."""

    model: DecoderPairModel
    autocast = False

    def __init__(
        self, base: DecoderBase, config: DecoderPairConfig | None = None, device: str = "cpu"
    ) -> None:
        self.base, self.config, self.device = base, config or DecoderPairConfig(), device
        self.model = DecoderPairModel(base.model).to(device).eval()
        self._words = base.words
        self._line, self._asks = self._words.encode(["\n", "Question:"])
        on_gpu = device.startswith("cuda")
        self.tokens_per_batch = 65_536 if on_gpu else 2_048
        """Tokens of a batch with its padding, where nothing is learned."""
        self._trained: LowRank | MasterWeights | None = None
        self._kept: dict[str, Tensor] = {}

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of each text, without special tokens."""
        return self._words.encode(self.seen(texts))

    def collate(self, rows: Sequence[PairRow]) -> tuple[Tensor, ...]:
        """<bos> (given line) candidate line "Question:" question line: ids [N, T] and each row's last place [N]."""
        whole = [self._ids(row) for row in rows]
        lengths = np.fromiter(map(len, whole), np.int64, len(whole))
        ids = np.zeros((len(rows), _padded(int(lengths.max()))), np.int64)
        there = np.arange(ids.shape[1]) < lengths[:, None]
        ids[there] = np.fromiter(chain.from_iterable(whole), np.int64, int(lengths.sum()))
        return put(ids, self.device), put(lengths - 1, self.device)

    def batches(self, rows: Sequence[PairRow]) -> list[list[int]]:
        """The places of all rows by their length, so many tokens at once."""
        lengths = self._lengths(rows)
        found: list[list[int]] = []
        for at in np.argsort(-lengths, kind="stable").tolist():
            # the first of a batch is its longest
            if not found or (len(found[-1]) + 1) * lengths[found[-1][0]] > self.tokens_per_batch:
                found.append([])
            found[-1].append(at)
        return found

    def learn(self, rows: Sequence[PairRow]) -> Tensor:
        """Scores with their gradient, in order: rows of like length in a batch of their own. [N]"""
        return self.learn_alike(rows, self.alike(rows))

    def alike(self, rows: Sequence[PairRow]) -> list[npt.NDArray[np.int64]]:
        """The places of all rows, cut by length where padding and batches cost least together."""
        return alike(self._lengths(rows))

    def tuning(self) -> Tuning:
        """Adapters (or all of the decoder but its embedding), and the head ten times as fast."""
        if self._trained is None:
            if self._kept:
                raise ValueError("the reader was loaded to be used; load it with learns=True to train it on")
            self._trained = self._tunable()
        for parameter in self.model.head.parameters():
            parameter.requires_grad_(True)
        head = list(self.model.head.parameters())
        return Tuning(
            [(self._trained.parameters(), 1.0), (head, _TIMES)], self._trained.gather, self._trained.merge
        )

    def state(self) -> dict[str, Tensor]:
        """What is saved: adapters by their layers (or the decoder's weights), and the head."""
        found = dict(self._kept)
        if isinstance(self._trained, LowRank):
            found = dict(_sides(self._trained))
        elif self._trained is not None or self.config.tune == "full":
            found = dict(_tuned_whole(self.model.decoder))
        return found | {f"{_HEAD}{name}": each for name, each in self.model.head.state_dict().items()}

    def put(self, state: Mapping[str, Tensor], *, learns: bool) -> None:
        """Take what `state` gave; KeyError or RuntimeError where it is of another model."""
        self.model.head.load_state_dict(
            {name.removeprefix(_HEAD): each for name, each in state.items() if name.startswith(_HEAD)}
        )
        told = {name: each for name, each in state.items() if not name.startswith(_HEAD)}
        own = dict(_tuned_whole(self.model.decoder))
        with torch.no_grad():
            if self.config.tune == "full":
                if set(told) != set(own):
                    raise KeyError(f"weights of {len(own)} tensors, given {len(told)}")
                for name, each in told.items():
                    own[name].copy_(each)
            elif not learns:
                _merge(own, told, self.config)
            if learns:
                self._trained = self._tunable()
                if isinstance(self._trained, LowRank):
                    sides = dict(_sides(self._trained))
                    if set(sides) != set(told):
                        raise KeyError(f"adapters of {len(sides)} matrices, given {len(told)}")
                    for name, each in told.items():
                        sides[name].copy_(each)
                    self._trained.merge()
            else:
                self._kept = told
        self.model.eval()

    def _tunable(self) -> LowRank | MasterWeights:
        decoder = self.model.decoder
        if self.config.tune == "lora":
            return LowRank(decoder, rank=self.config.rank, alpha=self.config.alpha)
        return MasterWeights(_Layers(decoder))

    def _ids(self, row: PairRow) -> list[int]:
        before = [*row.given[:GIVEN_TOKENS], *self._line] if row.given else []
        text = [*row.text[: self.text_tokens], *self._line]
        return [
            self._words.begin, *before, *text, *self._asks, *row.question[:QUESTION_TOKENS], *self._line
        ]  # fmt: skip

    def _lengths(self, rows: Sequence[PairRow]) -> npt.NDArray[np.int64]:
        """The number of tokens that `_ids` gives each row. [N]"""
        line, rest = len(self._line), 1 + len(self._asks) + 2 * len(self._line)
        return np.array(
            [
                rest
                + (min(len(row.given), GIVEN_TOKENS) + line if row.given else 0)
                + min(len(row.text), self.text_tokens)
                + min(len(row.question), QUESTION_TOKENS)
                for row in rows
            ],
            np.int64,
        )


class _Norm(nn.Module):
    """A decoder's RMS norm in one kernel where there is one, with its gradient; it takes the weight of another."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """x / rms(x) · (1 + weight) in float32. [..., W]"""
        scale = 1.0 + self.weight.float()
        return functional.rms_norm(x.float(), scale.shape, scale, self.eps).type_as(x)


def _put_norms(decoder: Any) -> None:
    """Give the decoder norms of one kernel: transformers writes each as eight, and their gradients as more."""
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Gemma3RMSNorm":
                setattr(module, name, _Norm(child.weight, child.eps))


class _Layers(nn.Module):
    """A decoder's layers and last norm, without its embedding."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.layers, self.norm = decoder.layers, decoder.norm


def from_decoder(
    folder: Path, device: str = "cpu", config: DecoderPairConfig | None = None
) -> DecoderPairReader:
    """An untrained reader over the decoder in `folder`."""
    return DecoderPairReader(open_base(folder, device), config, device)


def save_decoder_pair(
    reader: DecoderPairReader, folder: Path, about: Mapping[str, Any], card: str = ""
) -> Path:
    """Write adapters and head with matrices in 8 bits, a scale for each row; the configuration last."""
    folder.mkdir(parents=True, exist_ok=True)
    put_weights(in_eight_bits(reader.state()), folder / WEIGHTS)
    (folder / CARD).write_text(card or _card(reader, about), encoding="utf-8")
    body = {
        KEY: FORMAT, "kind": DECODER, "tuned": asdict(reader.config),
        "base": {"digest": reader.base.digest, "name": reader.base.name},
        FILES: digests_of(folder, [WEIGHTS]), "about": dict(about),
    }  # fmt: skip
    put_json(body, folder / CONFIG)
    return folder


def load_decoder_pair(
    folder: Path, body: Mapping[str, Any], device: str, base: Path | None, *, learns: bool = False,
    words: Tensor | None = None,
) -> DecoderPairReader:  # fmt: skip
    """The reader of a folder whose configuration is `body`; ValueError names both bases where they differ.

    `words`: as for `open_base`.
    """
    config = DecoderPairConfig(**body["tuned"])
    opened = open_base(base or default_folder(), device, words)
    if (wanted := str(body["base"]["digest"])) != opened.digest:
        raise ValueError(
            f"it was trained over {body['base']['name']} ({wanted}), given {base or default_folder()} "
            f"({opened.digest}): name that base's folder, or take a pair reader of this one"
        )
    reader = DecoderPairReader(opened, config, device)
    reader.put(from_eight_bits(load_file(folder / WEIGHTS)), learns=learns)
    return reader


def _padded(length: int) -> int:
    return -(-length // WIDTH_STEP) * WIDTH_STEP


def _tuned_whole(decoder: Any) -> Iterator[tuple[str, Tensor]]:
    for name, weight in decoder.named_parameters():
        if not name.startswith("embed_tokens."):
            yield name, weight


def _sides(low: LowRank) -> Iterator[tuple[str, Tensor]]:
    for name, a, b in low.each():
        yield f"{name}.A", a
        yield f"{name}.B", b


def _merge(weights: Mapping[str, Tensor], sides: Mapping[str, Tensor], config: DecoderPairConfig) -> None:
    """Add s·B·A to the weights; KeyError for a layer that is not there."""
    for name in sides:
        if name.endswith(".A"):
            layer = name.removesuffix(".A")
            weight = weights[f"{layer}.weight"]
            a, b = sides[name].to(weight.device), sides[f"{layer}.B"].to(weight.device)
            weight.copy_(weight.float() + config.alpha / config.rank * (b @ a))


def _card(reader: DecoderPairReader, about: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    base = f"{reader.base.name} ({reader.base.digest}; Gemma's terms apply)"
    return (
        "# Pair reader over a decoder\n\nReads a candidate and then the question (docs/policy.md); its scores are "
        f"features of the retriever's policy. Adapters and head over {base}, matrices in 8 bits, a scale for each "
        f"row; the base is not among the files.\n\n| what | value |\n| --- | --- |\n{rows}\n"
    )
