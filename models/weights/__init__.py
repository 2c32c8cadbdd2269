"""Weights that come with the project; each folder has a card (README.md)."""

from __future__ import annotations

from pathlib import Path

READER_LORA = Path(__file__).parent / "reader-lora"
"""LoRA adapter of Gemma-3-270M that reads chosen sentences and answers; under Gemma's terms."""
