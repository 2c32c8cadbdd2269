"""The tiny decoder of the fault harness, for tests of sessions and of serving."""

from __future__ import annotations

from infra.bench.faults.tiny_model import VOCABULARY, save_tiny_model

__all__ = ["VOCABULARY", "save_tiny_model"]
