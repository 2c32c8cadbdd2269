"""Embedders: texts to unit vectors, offline, each with an identity that a store remembers."""

from __future__ import annotations

from pathlib import Path

from models.embed.config import EmbedderConfig
from models.embed.embedder import Embedder, TextTokenizer, Vectors

__all__ = [
    "Embedder",
    "EmbedderConfig",
    "TextTokenizer",
    "Vectors",
    "load_embedder",
    "load_tokenizer",
    "warm_up",
]

NAMED = ("minilm", "static", "none")


def load_embedder(spec: str | EmbedderConfig) -> Embedder:
    """The embedder that `spec` names: "minilm", "static", "none" or a folder; ValueError for anything else."""
    config = EmbedderConfig(model=spec) if isinstance(spec, str) else spec
    if config.model == "minilm":
        from models.embed.minilm import MiniLmEmbedder

        return MiniLmEmbedder(config)
    if config.model == "none":
        from models.embed.none import NoEmbedder

        return NoEmbedder()
    from models.embed.static import StaticEmbedder, is_static_folder, load_distilled

    if config.model == "static":
        return load_distilled(config)
    folder = _folder(config.model)
    if is_static_folder(folder):
        return StaticEmbedder(folder)
    from models.embed.folder import FolderEmbedder

    return FolderEmbedder(folder, config)


def load_tokenizer(spec: str | EmbedderConfig) -> TextTokenizer:
    """The embedder's tokenizer without its weights (and without PyTorch, once `static` is cached)."""
    config = EmbedderConfig(model=spec) if isinstance(spec, str) else spec
    if config.model == "minilm":
        from models.embed.minilm import minilm_tokenizer

        return minilm_tokenizer()
    if config.model == "none":
        from models.embed.none import WordTokenizer

        return WordTokenizer()
    from models.embed.static import distilled_folder, is_static_folder, static_tokenizer

    if config.model == "static":
        return static_tokenizer(distilled_folder(config))
    folder = _folder(config.model)
    if is_static_folder(folder):
        return static_tokenizer(folder)
    from models.embed.folder import folder_tokenizer

    return folder_tokenizer(folder)


def warm_up(config: EmbedderConfig) -> str | None:
    """What making this embedder ready will do first, as a sentence, or None where nothing is to be made.

    Raises ValueError for a name that is neither known nor a folder, before anything heavy is started.
    """
    from models.embed.minilm import export_is_cached
    from models.embed.static import distilled_is_cached

    if config.model == "static" and not distilled_is_cached(config):
        return "distilling the static embedder from all-MiniLM-L6-v2, once on this machine (20 to 150 s)"
    if config.model == "minilm" and not export_is_cached(config):
        return "exporting all-MiniLM-L6-v2 to ONNX, compared with PyTorch, once on this machine (10 to 40 s)"
    if config.model not in NAMED:
        _folder(config.model)
    return None


def _folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"embedder {model!r} is neither {' nor '.join(repr(name) for name in NAMED)} nor a folder here; "
            "give one of these names or the path of a sentence-transformers or model2vec folder"
        )
    return folder
