"""Weights that come with the project, under models/weights; each folder has a card (README.md).

The folder may be absent: what Ray uploads for a job leaves it out. Check before use.
"""

from __future__ import annotations

from pathlib import Path

READER_LORA = Path(__file__).parent / "weights" / "reader-lora"
"""LoRA adapter of Gemma-3-270M that reads chosen sentences and answers; under Gemma's terms."""

COMPRESSORS = Path(__file__).parent / "weights" / "compressors"
"""Learned projection and autoencoder of Gemma-3-270M's pairs (models/cache/learned.py); under Gemma's terms."""

RANKER = Path(__file__).parent / "weights" / "ranker"
"""Learned ranker of Gemma-3-270M's keys (models/cache/ranker.py); under Gemma's terms."""

SUBQ = Path(__file__).parent / "weights" / "subq"
"""The sub-quadratic backbone, matrices in 8 bits, with its tokenizer (models/subq); trained by us on open text."""
