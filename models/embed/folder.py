"""Any sentence-transformers model from a folder, through the library's own pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.embed.artifacts import weights_hash
from models.embed.config import EmbedderConfig, cpu_threads
from models.embed.embedder import FastTextTokenizer, Vectors, unit

_CUDA_BATCH_FACTOR = 16
_DEFAULT_MAX_TOKENS = 512


def folder_tokenizer(folder: Path) -> FastTextTokenizer:
    """The tokenizer of a sentence-transformers folder alone."""
    limit = _DEFAULT_MAX_TOKENS
    config = folder / "sentence_bert_config.json"
    if config.is_file():
        limit = int(json.loads(config.read_text()).get("max_seq_length") or limit)
    return FastTextTokenizer.from_file(folder / "tokenizer.json", max(limit - 2, 1))


def refuse_pickled(folder: Path) -> None:
    """ValueError where a part of the model has its weights in PyTorch's pickled form alone."""
    for path in sorted(folder.rglob("*.bin")):
        if not any(path.parent.glob("*.safetensors")):
            raise ValueError(
                f"{path} is pickled, and nothing is unpickled here; save the model anew with safetensors "
                "(SentenceTransformer.save_pretrained writes them)"
            )


class FolderEmbedder:
    """A sentence-transformers folder; its modules (pooling, norm, projections) run as the model has them."""

    def __init__(self, folder: Path, config: EmbedderConfig) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        cuda = torch.cuda.is_available()
        if config.device == "cuda" and not cuda:
            raise ValueError(
                "device is 'cuda', but PyTorch finds no CUDA device here; use device 'auto' or 'cpu'"
            )
        device = "cuda" if cuda and config.device != "cpu" else "cpu"
        if device == "cpu":
            torch.set_num_threads(cpu_threads(config.threads))
        refuse_pickled(folder)
        self._model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
        self.batch_texts = config.batch_texts * (_CUDA_BATCH_FACTOR if device == "cuda" else 1)
        self._tokens = folder_tokenizer(folder)
        self.max_tokens = self._tokens.max_tokens
        self.dim = int(self._model.encode(["dimension"], show_progress_bar=False).shape[1])
        self.identity = f"{folder.name}-{self.dim}-{weights_hash(folder)}"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens not counted."""
        return self._tokens.count_tokens(texts)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters [start, end) of each token of `text`."""
        return self._tokens.offsets(text)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 [N, D] of unit length; the library sorts by length and keeps the order."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = self._model.encode(
            list(texts), batch_size=self.batch_texts, convert_to_numpy=True, show_progress_bar=False
        )
        return unit(np.asarray(vectors, dtype=np.float32))
