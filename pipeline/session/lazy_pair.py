"""A policy's pair reader as sessions have it: loaded when first needed, out of the way where it cannot be had."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.log import get_logger


class LazyPair:
    """The pair features of a policy; the pair reader in `folder` is loaded when a question first needs it.

    LookupError from then on where it turns out to be broken, or its device has no room for a question.
    """

    def __init__(self, folder: Path, base: Callable[[], Path] | None, device: str, words: Any = None) -> None:
        self._folder, self._base, self._device, self._words = folder, base, device, words
        self._lock = threading.Lock()
        self._broken = False
        self._reader: Any = None

    def load(self) -> Any:
        """The reader; OSError, RuntimeError or ValueError say why it cannot be had."""
        from models.retriever.pair_pins import reads_by_decoder
        from models.retriever.pair_reader import load_pair_reader

        with self._lock:
            if self._reader is None:
                base = self._base() if self._base else None
                if reads_by_decoder(self._folder):
                    words = self._words
                    self._reader = load_pair_reader(self._folder, self._device, base, words=words)[0]
                else:
                    self._reader = load_pair_reader(self._folder, base=base)[0]
            return self._reader

    def __call__(self, question: str, texts: Sequence[str]) -> Any:
        """The columns of `table.PAIR_FEATURES` of each text. [K, 6]"""
        import torch

        if self._broken:
            raise LookupError
        try:
            reader = self.load()
        except (OSError, RuntimeError, ValueError) as error:
            if not self._broken:
                self._broken = True
                get_logger().warning("pair_reader_not_loaded", folder=str(self._folder), reason=str(error))
            raise LookupError from None
        try:
            return reader.features(question, texts)
        except torch.OutOfMemoryError as error:
            get_logger().warning("pair_reader_without_memory", reason=str(error).split("\n")[0])
            raise LookupError from None
