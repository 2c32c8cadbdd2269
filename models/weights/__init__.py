"""Weights that come with the project; each folder has a card (README.md)."""

from models.shipped import READER_LORA

__all__ = ["READER_LORA"]
