"""A tiny decoder over whole words in a folder, as a pair reader's base."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3ForCausalLM

from models.retriever.decoder_pair import DecoderPairConfig, DecoderPairReader, from_decoder
from tests.models import tiny
from tests.models.retriever.pair_case import NAMES, THINGS

WORDS = ("<pad>", "<eos>", "<bos>", "<unk>", "\n", "Question", ":", *NAMES, *THINGS, "has", "what")


def tokenizer() -> Tokenizer:
    """One token a word, a line's end and a colon."""
    made = Tokenizer(models.WordLevel({name: at for at, name in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(":", "isolated")]
    )
    return made


def base(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """A folder as `save_pretrained` writes it, with its tokenizer."""
    torch.manual_seed(seed)
    config = tiny.config(
        vocab_size=len(WORDS), num_hidden_layers=layers, sliding_window=32, bos_token_id=2,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2), initializer_range=0.2,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def reader(folder: Path, **settings: object) -> DecoderPairReader:
    """An untrained reader over the base in `folder`, made where there is none."""
    if not (folder / "config.json").is_file():
        base(folder)
    return from_decoder(folder, config=DecoderPairConfig(**{"rank": 8, "alpha": 16.0} | settings))  # type: ignore[arg-type]
