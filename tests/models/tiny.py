"""A decoder small enough for tests: Gemma 3's kinds of layers, random weights, letters as tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from models.cache import CacheConfig
from models.hf import HfBackbone, HfConfig
from models.hf.captured import CapturedSteps

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,0123456789"
VOCABULARY = 3 + len(LETTERS)  # <eos>, <bos>, <turn>, then one token a letter
WINDOW = 12


def tokenizer() -> Tokenizer:
    """One token a letter; `<bos>` goes first when special tokens are wanted."""
    vocabulary = {text: i for i, text in enumerate(["<eos>", "<bos>", "<turn>", *LETTERS])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens(["<eos>", "<bos>", "<turn>"])
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return made


def config(**changes: Any) -> Gemma3TextConfig:
    """Four layers, every second one full, four query heads on two key heads."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "eos_token_id": 0,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()}
    return Gemma3TextConfig(**{**fields, **lists})


def save(folder: Path, *, seed: int = 0, model_config: Any = None) -> Path:
    """A folder that HfBackbone.load reads."""
    torch.manual_seed(seed)
    Gemma3ForCausalLM(model_config or config()).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@lru_cache(maxsize=4)
def backbone(seed: int = 0, **changes: Any) -> HfBackbone:
    """The tiny backbone in float32 on the CPU, made once a session."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        save(Path(folder) / "tiny", seed=seed, model_config=config(**changes))
        return HfBackbone.load(HfConfig(model=str(Path(folder) / "tiny"), device="cpu", prompt_block=32))


@contextlib.contextmanager
def in_fixed_shapes() -> Iterator[HfBackbone]:
    """The tiny backbone, which decodes in fixed shapes as a GPU's would, but not captured; as it was on leaving."""
    found = backbone()
    before = found.steps
    found.steps = CapturedSteps(found, enabled=True, capture=False)
    try:
        yield found
    finally:
        found.steps = before


def budgets(**changes: Any) -> CacheConfig:
    """Small budgets that evict early; rank 8 loses something."""
    fields: dict[str, Any] = {
        "sinks": 2,
        "ring": 24,
        "evict_block": 8,
        "rank": 4,
        "latent_blocks": 3,
        "read_block": 8,
        "heavy_per_block": 2,
    }
    return CacheConfig(**{**fields, **changes})


def ids(count: int, seed: int = 0) -> list[int]:
    """Random letters."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()
