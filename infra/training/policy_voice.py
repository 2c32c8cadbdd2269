"""The reader of a policy run on a GPU host, as `reader_parts` or `policy_carry` brought it.

Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.tasks.reading import Voice


def open_voice(carried: Path, device: str, adapter: Path | None = None) -> Voice:
    """The carried reader: cut vocabulary, adapter merged, its own tokenizer.

    `carried` is a folder of `reader_parts` or of `policy_carry --reader`; `adapter` a folder of peft's (default:
    the carried `reader-lora`, if there is one). FileNotFoundError for an adapter that was named and is not there.
    """
    from tokenizers import Tokenizer

    from infra.training.reader_gpu import cast_weights, load_base, start_from, unpack_weights
    from models.reader_training import add_lora

    unpack_weights(carried)
    on_gpu = device.startswith("cuda")
    model: Any = load_base(carried, torch.float32)
    folder = adapter or carried / "reader-lora"
    if adapter is not None and not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"adapter: given {folder}, which holds no adapter_config.json; name peft's folder"
        )
    if folder.is_dir():
        told = json.loads((folder / "adapter_config.json").read_text())
        model = add_lora(model, told["r"], told["lora_alpha"], 0.0)
        start_from(model, folder / "adapter_model.safetensors")
        model = model.merge_and_unload()
    model = cast_weights(model, torch.bfloat16 if on_gpu else torch.float32).to(device).eval()
    vocabulary = np.load(carried / "vocabulary.npy")
    packed = carried / "tokenizer.json.xz"
    tokenizer = Tokenizer.from_str(lzma.decompress(packed.read_bytes()).decode())
    new_id = np.full(max(tokenizer.get_vocab_size(), int(vocabulary.max()) + 1), 3, np.int64)
    new_id[vocabulary] = np.arange(len(vocabulary))
    return Voice(
        model=model,
        encode=lambda text: new_id[tokenizer.encode(text, add_special_tokens=False).ids].tolist(),
        decode=lambda ids: str(tokenizer.decode([int(vocabulary[at]) for at in ids])),
        begin=(int(new_id[2]),),
        device=device,
        form="adapted",
        tokens_per_batch=131072 if on_gpu else 2048,
    )
