"""A BERT of one layer over whole words, and questions that only a joint look answers."""

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
    "num_hidden_layers": 2,
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
    return PairReader(PairModel(SIZES), tokenizer())


def questions(count: int, seed: int) -> tuple[list[str], list[list[str]], TableBatch]:
    """ "what NAME has THING": the candidate with both tells; the others have one of them, or neither."""
    chance = np.random.default_rng(seed)
    asked, texts, tables = [], [], []
    for _ in range(count):
        who, what = chance.integers(0, 4, 2)
        pairs = [(who, what), (who, (what + 1) % 4), ((who + 1) % 4, what), ((who + 2) % 4, (what + 2) % 4)]
        order = chance.permutation(4)
        asked.append(f"what {NAMES[who]} {THINGS[what]}")
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
