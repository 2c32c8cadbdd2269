"""Any `transformers` decoder as a backbone. Names load on first use, so that a configuration needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.hf.config import HfConfig

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

__all__ = ["HfBackbone", "HfConfig"]


def __getattr__(name: str) -> Any:
    if name == "HfBackbone":
        from models.hf.backbone import HfBackbone

        return HfBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
