"""Vectors of texts, kept on disk by embedder and text: what was embedded once is not embedded again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.embed import Embedder

_KEY_BYTES = 16
_BATCH = 512


class VectorCache:
    """Two files an embedder identity: keys (16-byte hashes of texts) and float16 rows, both only appended to."""

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self._embedder = embedder
        base = folder / re.sub(r"[^A-Za-z0-9._-]", "_", embedder.identity)
        folder.mkdir(parents=True, exist_ok=True)
        self._keys_path, self._rows_path = base.with_suffix(".keys"), base.with_suffix(".f16")
        self._rows, self._row_of = self._load()

    def encode(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float16]:
        """Vectors float16 [N, D] in the order of `texts`; `progress` is told (embedded now, to be embedded)."""
        keys = [_key(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._row_of}
        # Texts of like length share a batch, so little is padded.
        todo = sorted(new, key=lambda key: len(new[key]))
        for begin in range(0, len(todo), _BATCH):
            batch = todo[begin : begin + _BATCH]
            self.put(batch, self._embedder.encode([new[key] for key in batch]).astype(np.float16))
            if progress is not None:
                progress(begin + len(batch), len(todo))
        rows = np.array([self._row_of[key] for key in keys], dtype=np.int64)
        return np.asarray(self._rows[rows])

    def put(self, keys: Sequence[bytes], vectors: NDArray[np.float16]) -> None:
        """Keep vectors; the rows are written before their keys, so a torn write loses rows and mixes none."""
        with self._rows_path.open("ab") as file:
            file.write(np.ascontiguousarray(vectors).tobytes())
        with self._keys_path.open("ab") as file:
            file.write(b"".join(keys))
        self._row_of.update(zip(keys, range(len(self._rows), len(self._rows) + len(keys)), strict=True))
        self._rows = np.concatenate([self._rows, vectors])

    def _load(self) -> tuple[NDArray[np.float16], dict[bytes, int]]:
        dim = self._embedder.dim
        keys = self._keys_path.read_bytes() if self._keys_path.exists() else b""
        data = self._rows_path.read_bytes() if self._rows_path.exists() else b""
        count = min(len(keys) // _KEY_BYTES, len(data) // (2 * dim))
        for path, size in ((self._keys_path, count * _KEY_BYTES), (self._rows_path, count * 2 * dim)):
            if path.exists() and path.stat().st_size != size:
                with path.open("r+b") as file:
                    file.truncate(size)
        rows = np.frombuffer(data, dtype=np.float16, count=count * dim).reshape(count, dim)
        return rows, {keys[at * _KEY_BYTES : (at + 1) * _KEY_BYTES]: at for at in range(count)}


def _key(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())
