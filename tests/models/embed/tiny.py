"""A static embedder for tests: MiniLM's own tokenizer over small seeded vectors, made in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from models.embed.minilm import minilm_folder

TINY_DIM = 32


def make_tiny_embedder(folder: Path, seed: int = 0) -> Path:
    """Write a model2vec folder of 32 dimensions; other seeds make embedders of other identities."""
    folder.mkdir(parents=True, exist_ok=True)
    source = minilm_folder() / "tokenizer.json"
    shutil.copyfile(source, folder / "tokenizer.json")
    vocabulary = Tokenizer.from_file(str(source)).get_vocab_size()
    vectors = np.random.default_rng(seed).standard_normal((vocabulary, TINY_DIM)).astype(np.float16)
    save_file({"embeddings": vectors}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    return folder
