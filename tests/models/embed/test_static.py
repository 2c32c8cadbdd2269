"""The distilled static embedder is made from whatever precision a host's MiniLM is in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from models.embed import EmbedderConfig, load_embedder, static

WORDS = ["rain", "harbour", "vote", "council", "bridge", "storm", "grain", "pier"]
HIDDEN = 16


def tiny_bert(folder: Path, dtype: torch.dtype) -> Path:
    """A seeded BERT of 16 dimensions over eight words, its weights in `dtype`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_static_is_distilled_from_weights_of_any_precision(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU host carries MiniLM in half precision; `static` is made there from it all the same."""
    folder = tiny_bert(tmp_path / "model", dtype)
    monkeypatch.setattr(static, "minilm_folder", lambda: folder)
    embedder = load_embedder(EmbedderConfig(model="static", cache_dir=str(tmp_path / "cache")))
    vectors = embedder.encode(["Rain on the harbour", "The council vote"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert abs(float(vectors[0] @ vectors[1])) < 0.999
