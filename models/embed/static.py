"""Static embeddings by model2vec: a text is the weighted mean of its tokens' vectors.

`static` is distilled once from all-MiniLM-L6-v2 (256 dimensions, PCA and SIF weights; about 20 s on two idle
cores) and cached. Quick enough for load and tests; for quality the default is MiniLM.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from models.embed.artifacts import cache_folder, made_once, weights_hash
from models.embed.config import EmbedderConfig
from models.embed.embedder import FastTextTokenizer, Vectors, unit
from models.embed.minilm import minilm_folder

DISTILLED_DIM = 256
_RECIPE_VERSION = 1
_MAX_TOKENS = 100_000
_ENCODE_BATCH = 512


def is_static_folder(folder: Path) -> bool:
    """Whether model2vec wrote this folder."""
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "model2vec"


def distilled_folder(config: EmbedderConfig) -> Path:
    """The cached distillation of MiniLM, made now if it is missing."""
    return made_once(_distilled_path(config), _distill)


def distilled_is_cached(config: EmbedderConfig) -> bool:
    """Whether the next `distilled_folder` returns at once."""
    return _distilled_path(config).is_dir()


class StaticEmbedder:
    """A model2vec folder: token vectors summed and scaled to unit length."""

    def __init__(self, folder: Path, identity: str | None = None) -> None:
        tensors = load_file(str(folder / "model.safetensors"))
        if "embeddings" not in tensors:
            raise ValueError(
                f"{folder}/model.safetensors holds no tensor 'embeddings'; name a model2vec folder"
            )
        embeddings = tensors["embeddings"]
        if "mapping" in tensors:
            embeddings = embeddings[tensors["mapping"]]
        if "weights" in tensors:
            embeddings = embeddings * tensors["weights"][:, None]
        self._vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
        self.dim = int(self._vectors.shape[1])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokens = FastTextTokenizer(self._tokenizer, _MAX_TOKENS)
        self.max_tokens = _MAX_TOKENS
        self.batch_texts = _ENCODE_BATCH
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        if unknown is not None and (unknown_id := self._tokenizer.token_to_id(unknown)) is not None:
            self._vectors[unknown_id] = 0.0
        self.identity = identity or f"{folder.name}-{self.dim}-{weights_hash(folder)}"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return self._tokens.count_tokens(texts)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters [start, end) of each token of `text`."""
        return self._tokens.offsets(text)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 [N, D] of unit length. The direction of a sum is that of the mean."""
        result = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _ENCODE_BATCH):
            batch = list(texts[start : start + _ENCODE_BATCH])
            encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            for row, encoding in enumerate(encodings, start):
                if encoding.ids:
                    result[row] = self._vectors[encoding.ids].sum(axis=0)
        return unit(result)


def load_distilled(config: EmbedderConfig) -> StaticEmbedder:
    """The `static` embedder; its identity names recipe and source weights, so every host's copy agrees."""
    return StaticEmbedder(distilled_folder(config), _distilled_path(config).name)


def static_tokenizer(folder: Path) -> FastTextTokenizer:
    """The tokenizer of a model2vec folder alone."""
    return FastTextTokenizer.from_file(folder / "tokenizer.json", _MAX_TOKENS)


def _distilled_path(config: EmbedderConfig) -> Path:
    name = f"static-{DISTILLED_DIM}-{weights_hash(minilm_folder())}-v{_RECIPE_VERSION}"
    return cache_folder(config.cache_dir) / "embed" / name


def _distill(target: Path) -> None:
    from model2vec.distill import distill_from_model
    from transformers import AutoModel, AutoTokenizer

    source = str(minilm_folder())
    # It loads in the precision of the file; halves (as a GPU host carries them) meet float32 in there and fail.
    model = AutoModel.from_pretrained(source, use_safetensors=True).float()
    tokenizer = AutoTokenizer.from_pretrained(source)
    distill_from_model(model, tokenizer, device="cpu", pca_dims=DISTILLED_DIM).save_pretrained(target)
