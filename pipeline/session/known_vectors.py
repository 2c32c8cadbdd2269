"""Vectors of sentences that were embedded before: questions to a stream meet the same sentences again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.session.chooser import Embed

MOST = 4096
"""So many texts are known, the last used ones: 6 MB at MiniLM's 384 numbers each."""


class KnownVectors:
    """`embed`, asked only for what it has not been asked before. Texts are not kept, only their hashes.

    May be called from several threads; `embed` must give a text the same vector for as long as this lives.
    """

    def __init__(self, embed: Embed, most: int = MOST) -> None:
        self._embed, self._most = embed, most
        self._known: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32] | None:
        """The texts' vectors in order [N, D], or None where `embed` gives none."""
        keys = [xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")) for text in texts]
        found: dict[bytes, npt.NDArray[np.float32]] = {}
        with self._lock:
            for key in keys:
                if key in self._known:
                    self._known.move_to_end(key)
                    found[key] = self._known[key]
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if fresh or not keys:
            made = self._embed(list(fresh.values()))
            if made is None or not keys:
                return made
            found.update(zip(fresh, made, strict=True))
            with self._lock:
                for key in fresh:
                    self._known[key] = found[key].copy()  # a row alone, not the batch that it was made in
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
        return np.stack([found[key] for key in keys])
