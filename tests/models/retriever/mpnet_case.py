"""A small MPNet over whole words, saved as `infra.training.encoders` leaves the real one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tests.models.retriever import pair_case


def small_mpnet(folder: Path, words: list[str] | None = None, *, seed: int = 0) -> Path:
    """One layer of 32 over these words (default: those of `pair_case`)."""
    from transformers import MPNetConfig, MPNetModel

    named = words or [*pair_case.NAMES, *pair_case.THINGS, "has", "what"]
    names = ["<s>", "<pad>", "</s>", "[UNK]", *named]
    made = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(names[:4])
    config = MPNetConfig(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = MPNetModel(config, add_pooling_layer=False)
    for weight in model.parameters():
        if weight.ndim == 2:  # at its own scale of 0.02 it is nearly linear, and learns for ever
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    state = {name: each for name, each in model.state_dict().items() if not name.endswith("position_ids")}
    save_file(state, folder / "model.safetensors")
    made.save(str(folder / "tokenizer.json"))
    return folder
