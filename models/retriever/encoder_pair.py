"""A pair reader over an encoder that does not ship: weights from a package, low-rank adapters and a head beside.

all-mpnet-base-v2 (110M weights, 12 layers of 768; MPNet, arXiv 2004.09297; Apache-2.0) reads a question and a
candidate together, as MiniLM does (`pair_reader.py`: the layout of a row, the head and the scores are the same).
Its makers trained it on a billion pairs, questions with what answers them among these. What is trained here is an
adapter a linear layer (arXiv 2106.09685) and the head: some 5 MB in 8 bits, where the whole would be 110. The base
is no part of what is saved; a digest says which it was.

`N` rows, `T` tokens, `W` the model's width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.digests import FILES, digests_of
from models.formats import FORMAT, KEY
from models.reader_lowrank import LowRank
from models.retriever.files import put_json, put_weights
from models.retriever.mpnet_states import last_states
from models.retriever.pair_base import (
    GIVEN_TOKENS,
    QUESTION_TOKENS,
    WIDTH_STEP,
    PairRow,
    Tuning,
    alike,
    from_eight_bits,
    in_eight_bits,
)
from models.retriever.pair_reader import CARD, CONFIG, ENCODER, TOKENIZER, WEIGHTS, PairReader

BASE = "all-mpnet-base-v2"
"""What the folder of the encoder's weights is called, a dash and digits behind it."""
TARGETS = ("q", "k", "v", "o", "dense")
"""MPNet's linear layers by the ends of their names: attention, and both of each MLP."""
_TIMES = 10.0
"""How much faster the head learns than the adapters."""
BATCH_BYTES = 1 << 29
"""What a batch of rows that are only scored may take beside the weights, by `bytes_of`."""
_HEAD = "head."
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "relative_attention_num_buckets",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderPairConfig:
    """What is trained beside the encoder."""

    rank: int = field(default=32, metadata={"help": "rank of the adapters"})
    alpha: float = field(default=64.0, metadata={"help": "alpha / rank times B·A is added to a weight"})

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: given {self.rank}; allowed: 1 or more")
        if not self.alpha > 0:
            raise ValueError(f"alpha: given {self.alpha}; allowed: above 0")


class EncoderPairModel(nn.Module):
    """MPNet and a linear head over its first token and the mean of all: a score a row. [N]"""

    def __init__(self, told: Mapping[str, Any]) -> None:
        from transformers import MPNetConfig, MPNetModel

        super().__init__()
        self.sizes: dict[str, Any] = {name: int(told[name]) for name in _SIZES}
        self.bert = MPNetModel(MPNetConfig(**self.sizes, layer_norm_eps=1e-5), add_pooling_layer=False)
        self.head = nn.Linear(2 * self.sizes["hidden_size"], 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        """Token ids and 1 for tokens, [N, T]; MPNet knows no kinds of tokens."""
        hidden = last_states(self.bert, ids, mask)
        weight = mask[..., None].to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        score: Tensor = self.head(torch.cat([hidden[:, 0], mean], -1))[:, 0].float()
        return score


class EncoderPairReader(PairReader):
    """A pair reader over MPNet; rows are laid out as MiniLM's, between <s> and </s>."""

    model: EncoderPairModel  # type: ignore[assignment]

    def __init__(
        self, model: EncoderPairModel, tokenizer: Tokenizer, digest: str, device: str = "cpu",
        config: EncoderPairConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, tokenizer, device)  # type: ignore[arg-type]
        self.digest, self.config = digest, config or EncoderPairConfig()
        self.model.bert.requires_grad_(False)
        self.batch_bytes = BATCH_BYTES
        self._trained: LowRank | None = None
        self._kept: dict[str, Tensor] = {}

    def learn(self, rows: Sequence[PairRow]) -> Tensor:
        """Scores with their gradient, in order: rows of like length in a batch of their own. [N]"""
        return self.learn_alike(rows, alike(self._lengths(rows)))

    def batches(self, rows: Sequence[PairRow]) -> list[list[int]]:
        """The places of all rows, the longest first, so many at once as `batch_bytes` hold (one at least)."""
        lengths = self._lengths(rows)
        order = np.argsort(-lengths, kind="stable").tolist()
        found, start = [], 0
        while start < len(order):
            width = -(-int(lengths[order[start]]) // WIDTH_STEP) * WIDTH_STEP
            most = self.batch_bytes // self.bytes_of(width)
            size = max(1, min(most, self.rows_per_batch))
            found.append(order[start : start + size])
            start += size
        return found

    def bytes_of(self, width: int) -> int:
        """Reckoned bytes of a row of so many tokens that is scored: what is added to its attention, and its states.

        The first twice, and of a layer at once eight states in float32, four and both of the MLP's in what is
        computed in: a tenth over what 12 and 30 rows of 288 tokens took on a CPU (2026-12-01).
        """
        sizes = self.model.sizes
        own = 2 if self.device.startswith("cuda") and self.autocast else 4
        added = int(sizes["num_attention_heads"]) * width * width * own
        hidden, inner = int(sizes["hidden_size"]), int(sizes["intermediate_size"])
        return 2 * added + width * (8 * 4 * hidden + own * (4 * hidden + 2 * inner))

    def _lengths(self, rows: Sequence[PairRow]) -> npt.NDArray[np.int64]:
        """Tokens of each row as `collate` lays it out, before padding. [N]"""
        return np.array(
            [
                min(len(row.question), QUESTION_TOKENS)
                + (min(len(row.given), GIVEN_TOKENS) + 1 if row.given else 0)
                + min(len(row.text), self.text_tokens)
                + 3
                for row in rows
            ],
            np.int64,
        )

    def tuning(self) -> Tuning:
        """The adapters, and the head ten times as fast; ValueError for a reader that was loaded to be used."""
        if self._trained is None:
            if self._kept:
                raise ValueError("the reader was loaded to be used; load it with learns=True to train it on")
            self._trained = self._tunable()
        head = list(self.model.head.parameters())
        low = self._trained
        return Tuning([(low.parameters(), 1.0), (head, _TIMES)], low.gather, low.merge)

    def state(self) -> dict[str, Tensor]:
        """What is saved: the adapters by their layers, and the head."""
        found = dict(self._kept)
        if self._trained is not None:
            for name, a, b in self._trained.each():
                found[f"{name}.A"], found[f"{name}.B"] = a, b
        return found | {f"{_HEAD}{name}": each for name, each in self.model.head.state_dict().items()}

    @torch.no_grad()
    def put(self, state: Mapping[str, Tensor], *, learns: bool) -> None:
        """Take what `state` gave; KeyError or RuntimeError where it is of another model."""
        head = {name.removeprefix(_HEAD): each for name, each in state.items() if name.startswith(_HEAD)}
        self.model.head.load_state_dict(head)
        told = {name: each for name, each in state.items() if not name.startswith(_HEAD)}
        low = self._tunable()
        for name, a, b in low.each():
            if told:  # a reader that was saved before it learned has none
                a.copy_(told[f"{name}.A"])
                b.copy_(told[f"{name}.B"])
        low.merge()
        if learns:
            self._trained = low
        else:
            self._kept = told
            self.model.bert.requires_grad_(False)
        self.model.eval()

    def _tunable(self) -> LowRank:
        return LowRank(self.model.bert, rank=self.config.rank, alpha=self.config.alpha, targets=TARGETS)


def from_encoder_folder(
    folder: Path, device: str = "cpu", config: EncoderPairConfig | None = None
) -> EncoderPairReader:
    """An untrained reader over the encoder in `folder` (config.json, model.safetensors, tokenizer.json).

    ValueError where the folder holds another kind of model.
    """
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if told.get("model_type") != "mpnet":
        raise ValueError(f"encoder: {folder} holds {told.get('model_type')!r}; allowed: mpnet")
    model = EncoderPairModel(told)
    state = {name: each.float() for name, each in load_file(folder / "model.safetensors").items()}
    model.bert.load_state_dict(state)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    return EncoderPairReader(model, tokenizer, digest_of(told, state), device, config)


def digest_of(told: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """The one that the folder's configuration notes: what was packed in 8 bits for a GPU host counts as the same
    encoder. Of the weights where it notes none."""
    if "digest" in told:
        return str(told["digest"])
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].half().contiguous().numpy().tobytes())
    return found.hexdigest()


def default_folder() -> Path:
    """Where `infra.training.encoders` puts the encoder; ValueError says how to get it."""
    root = Path(os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra") / "encoders"
    found = sorted(path for path in root.glob(f"{BASE}-*") if path.is_dir())
    if not found:
        raise ValueError(
            f"it stands over {BASE}, which is not in {root}: run `python -m infra.training.encoders mpnet` "
            "(405 MB from PyPI), or take a policy with a pair reader over MiniLM"
        )
    return found[0]


def save_encoder_pair(
    reader: EncoderPairReader, folder: Path, about: Mapping[str, Any], card: str = ""
) -> Path:
    """Write adapters and head with matrices in 8 bits, a scale for each row; the configuration last."""
    folder.mkdir(parents=True, exist_ok=True)
    put_weights(in_eight_bits(reader.state()), folder / WEIGHTS)
    (folder / CARD).write_text(card or _card(reader, about), encoding="utf-8")
    body = {
        KEY: FORMAT, "kind": ENCODER, "tuned": asdict(reader.config),
        "base": {"digest": reader.digest, "name": BASE}, FILES: digests_of(folder, [WEIGHTS]),
        "about": dict(about),
    }  # fmt: skip
    put_json(body, folder / CONFIG)
    return folder


def load_encoder_pair(
    folder: Path, body: Mapping[str, Any], device: str, base: Path | None, *, learns: bool = False
) -> EncoderPairReader:
    """The reader of a folder whose configuration is `body`, over `base` (default: the cache's); ValueError where
    the base is another one."""
    base = base_for(base)
    reader = from_encoder_folder(base, device, EncoderPairConfig(**body["tuned"]))
    check_base(body, base, reader.digest)
    reader.put(from_eight_bits(load_file(folder / WEIGHTS)), learns=learns)
    return reader


def base_for(given: Path | None) -> Path:
    """The folder of the encoder's weights: the one given, unless it is none or a decoder's, else `default_folder`.

    One of several readers is given the decoder's.
    """
    return given if given is not None and _is_mpnet(given) else default_folder()


def check_base(body: Mapping[str, Any], folder: Path, digest: str) -> None:
    """ValueError where a configuration names another base than the one in `folder`."""
    if (wanted := str(body["base"]["digest"])) != digest:
        raise ValueError(
            f"it was trained over {body['base']['name']} ({wanted}), given {folder} ({digest}): name that base's "
            "folder"
        )


def _is_mpnet(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("model_type") == "mpnet"


def _card(reader: EncoderPairReader, about: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    return (
        "# Pair reader over an encoder\n\nReads a question and a candidate sentence together (docs/policy.md); its "
        f"scores are features of the retriever's policy. Adapters and head over {BASE} ({reader.digest}; "
        "Apache-2.0), matrices in 8 bits, a scale for each row; the base is not among the files.\n\n"
        f"| what | value |\n| --- | --- |\n{rows}\n"
    )
