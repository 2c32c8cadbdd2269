"""Checksums of weights: a bit that flipped on a disk or on the way is told by name, not answered with.

Three places hold them, the one that is written last in each: a folder's configuration (`files`), the metadata of a
single safetensors file (over its tensors and its other metadata), and `digests.json` beside files whose form
another library owns (peft's adapters). What was written before this was kept is read unchecked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.formats import FORMAT, KEY, NewerFormat, check_format, first_line

FILES = "files"
"""Where a configuration names its files' digests."""
DIGEST = "dysra_digest"
"""Where a safetensors file's metadata holds its own."""
BESIDE = "digests.json"


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of a folder, by name."""
    return {name: _file_digest(folder / name) for name in sorted(names)}


def check_files(folder: Path, files: object) -> None:
    """ValueError naming the file that is not as `files` says (digests by name; None: nothing was noted)."""
    if files is None:
        return
    if not isinstance(files, Mapping) or not all(isinstance(name, str) for name in files):
        raise ValueError(f"{folder}: digests are {type(files).__name__}; copy the folder again")
    for name, digest in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or _file_digest(path) != digest:
            raise ValueError(f"{path} is missing or differs from its checksum; copy it again")


def put_beside(folder: Path, names: Iterable[str]) -> None:
    """Write `digests.json` over files of a folder; call it once they are whole."""
    body = {KEY: FORMAT, FILES: digests_of(folder, names)}
    part = folder / f".{BESIDE}.part"
    part.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    os.replace(part, folder / BESIDE)


def check_beside(folder: Path) -> None:
    """ValueError where a file is not as `digests.json` says; nothing where there is none."""
    path = folder / BESIDE
    if not path.is_file():
        return
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        check_format(body, path)
        files = body[FILES]
        check_files(folder, files)
    except NewerFormat:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{first_line(error)} (noted in {path}: remove it if the files were changed on purpose)"
        ) from None


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata for a safetensors file of these tensors, with a digest over both."""
    return {**metadata, DIGEST: _digest(tensors, metadata)}


def read_sealed(path: Path, kind: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors (as stored) of a safetensors file of a kind.

    NewerFormat for a later version's; ValueError for no safetensors, another kind, or what differs from its digest.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None
    if metadata.get("kind") != kind:
        raise ValueError(f"{path} is of kind {metadata.get('kind')!r}; wanted {kind!r}")
    check_format(metadata, path)
    noted = metadata.pop(DIGEST, None)
    if noted is not None and noted != _digest(tensors, metadata):
        raise ValueError(f"{path} differs from its checksum; copy it again")
    return metadata, tensors


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
