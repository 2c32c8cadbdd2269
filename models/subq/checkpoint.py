"""A model on disk: safetensors in parts of at most 16 MiB, its configuration, checksums, its tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.formats import FORMAT, KEY, NewerFormat, check_format, first_line
from models.subq.config import SubqConfig
from models.subq.model import SubqModel
from models.subq.tokenizer import SubqTokenizer

STORAGES = ("float32", "bfloat16", "int8")
PART_BYTES = 15 << 20  # with its header a file stays under 16 MiB
_EXACT = ("log_scale", "decay", "step_bias")
"""Logarithms that stay in float32 whatever the model's dtype."""
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


def save_checkpoint(
    model: SubqModel,
    folder: Path,
    *,
    tokenizer: SubqTokenizer | None = None,
    storage: str = "bfloat16",
    about: dict[str, Any] | None = None,
) -> list[Path]:
    """Write the model; config.json comes last, so that a folder with one is whole. Returns the files.

    int8: matrices in 8 bits with a scale a row. Vectors stay float32. `about` is kept as it is.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage: given {storage!r}; allowed: {', '.join(STORAGES)}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    room = PART_BYTES
    for name, tensor in model.state_dict().items():
        for piece, stored in _pieces(name, _stored(tensor.detach().cpu(), storage)):
            if stored.nbytes > room and parts[-1]:
                parts.append({})
                room = PART_BYTES
            parts[-1][piece] = stored
            room -= stored.nbytes
    for old in folder.glob("model-*.safetensors"):
        old.unlink()
    paths = []
    for at, part in enumerate(parts):
        paths.append(folder / f"model-{at:05d}.safetensors")
        save_file(part, paths[-1])
    if tokenizer is not None:
        tokenizer.save(folder / _TOKENIZER)
        paths.append(folder / _TOKENIZER)
    described = {
        KEY: FORMAT,
        "config": model.config.to_dict(),
        "storage": storage,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "about": about or {},
    }
    temporary = folder / f".{_CONFIG}.partial"
    temporary.write_text(json.dumps(described, indent=1))
    os.replace(temporary, folder / _CONFIG)
    return [*paths, folder / _CONFIG]


def load_checkpoint(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[SubqModel, dict[str, Any]]:
    """The model of a folder, and its config.json. Raises ValueError where files are missing or damaged."""
    if not (folder / _CONFIG).is_file():
        raise ValueError(
            f"{folder} holds no {_CONFIG}: it is no subq checkpoint, or its writing was not finished"
        )
    try:
        described: dict[str, Any] = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        check_format(described, folder / _CONFIG)
        config, files = SubqConfig.from_dict(described["config"]), dict(described["files"])
    except NewerFormat:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _CONFIG} cannot be read ({first_line(error)}); copy it again") from None
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path} is missing or differs from its checksum; copy the checkpoint again")
    model = SubqModel(config)
    read: dict[str, Tensor] = {}
    for name in sorted(files):
        if name.endswith(".safetensors"):
            read |= load_file(folder / name)
    state = _joined(read, model.state_dict())
    model.load_state_dict(state)
    model = model.to(device, dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(_EXACT):
            parameter.data = state[name].to(device)
    return model, described


def load_tokenizer(folder: Path) -> SubqTokenizer:
    """The tokenizer of a checkpoint."""
    return SubqTokenizer.load(folder / _TOKENIZER)


def _stored(tensor: Tensor, storage: str) -> dict[str, Tensor]:
    """What is written for a tensor, by suffix."""
    if storage == "float32":
        return {"": tensor.float()}
    if tensor.ndim < 2:  # a few numbers, some of them logarithms: not worth rounding
        return {"": tensor.float()}
    if storage == "bfloat16" or tensor.ndim > 2:
        return {"": tensor.bfloat16()}
    scales = tensor.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127.0
    return {"": torch.round(tensor.float() / scales).to(torch.int8), "|scales": scales}


def _pieces(name: str, stored: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Cut into rows where a tensor alone is larger than a part may be."""
    found = []
    for suffix, tensor in stored.items():
        rows = tensor.shape[0] if tensor.ndim else 1
        count = min(rows, -(-tensor.nbytes // (PART_BYTES // 2)))
        cut = tensor.contiguous().chunk(count) if count > 1 else (tensor.contiguous(),)
        found += [(f"{name}{suffix}|{at}", piece.clone()) for at, piece in enumerate(cut)]
    return found


def _joined(read: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    whole: dict[str, list[tuple[int, Tensor]]] = {}
    for piece, tensor in read.items():
        name, at = piece.rsplit("|", 1)
        whole.setdefault(name, []).append((int(at), tensor))
    state = {}
    for name in wanted:
        if name not in whole:
            raise ValueError(f"the checkpoint lacks {name}; it was written by another version of the model")
        state[name] = _rows(whole[name]).float()
        if f"{name}|scales" in whole:
            state[name] = state[name] * _rows(whole[f"{name}|scales"])
    return state


def _rows(pieces: list[tuple[int, Tensor]]) -> Tensor:
    ordered = [tensor for _, tensor in sorted(pieces, key=lambda pair: pair[0])]
    return torch.cat(ordered) if len(ordered) > 1 else ordered[0]
