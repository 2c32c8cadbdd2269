"""What is made once from a model's weights: written whole or not at all, by one process at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK_TIMEOUT_S = 900.0


def cache_folder(configured: str = "") -> Path:
    """The cache: as configured, else $DYSRA_CACHE, else ~/.cache/dysra."""
    folder = configured or os.environ.get("DYSRA_CACHE") or "~/.cache/dysra"
    return Path(folder).expanduser()


def weights_hash(folder: Path) -> str:
    """12 hex digits of the SHA-256 over a model folder's weights and tokenizer; ValueError without any."""
    names = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".bin") or path.name in ("tokenizer.json", "vocab.txt")
    )
    if not any(path.suffix in (".safetensors", ".bin") for path in names):
        raise ValueError(f"{folder} holds no model weights (*.safetensors or *.bin); name a model's folder")
    digest = hashlib.sha256()
    for path in names:
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, filled by `make(temporary folder)` if it does not exist yet.

    Concurrent callers wait for the one that makes it, at most 15 minutes; a half-made folder is never seen.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(target) + ".lock", timeout=_LOCK_TIMEOUT_S)
    try:
        with lock:
            if target.is_dir():
                return target
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                make(temporary)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except Timeout:
        raise RuntimeError(
            f"another process has been making {target} for {_LOCK_TIMEOUT_S:.0f} s; "
            f"end it, or remove {target}.lock"
        ) from None
    return target
