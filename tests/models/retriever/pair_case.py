"""A small BERT over whole words, and questions with one candidate that tells."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from models.retriever.pair_reader import PairModel, PairReader
from models.retriever.table import FEATURES, GOLD, CandidateTable, TableBatch

NAMES = ("ann", "bob", "cid", "dee")
THINGS = ("key", "hat", "map", "pen")
SIZES = {
    "vocab_size": 14,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def tokenizer() -> Tokenizer:
    """One token a word."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *NAMES, *THINGS, "has", "what"]
    made = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def reader(seed: int = 0) -> PairReader:
    """An untrained pair reader."""
    torch.manual_seed(seed)
    model = PairModel(SIZES)
    for weight in model.bert.parameters():
        if (
            weight.ndim == 2
        ):  # a small model at BERT's own scale of 0.02 is nearly linear, and learns for ever
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return PairReader(model, tokenizer())


def questions(count: int, seed: int) -> tuple[list[str], list[list[str]], TableBatch]:
    """The candidate that names the key tells; the others name something else."""
    chance = np.random.default_rng(seed)
    asked, texts, tables = [], [], []
    for _ in range(count):
        what = 0
        pairs = [(int(chance.integers(0, 4)), (what + at) % 4) for at in range(4)]
        order = chance.permutation(4)
        asked.append(f"what {THINGS[what]}")
        texts.append([f"{NAMES[pairs[at][0]]} has {THINGS[pairs[at][1]]}" for at in order])
        tables.append(
            CandidateTable(
                query=np.zeros(4, np.float16),
                vectors=np.zeros((4, 4), np.float16),
                features=np.zeros((4, len(FEATURES)), np.float32),
                tokens=np.full(4, 3),
                groups=np.arange(4),
                heads=np.zeros(4, np.int64),
                labels=np.where(order == 0, GOLD, 0).astype(np.int8),
            )
        )
    return asked, texts, TableBatch.stack(tables)
