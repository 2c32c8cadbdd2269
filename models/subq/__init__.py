"""A backbone trained from scratch whose cost per token does not grow with the stream.

Lower blocks (sliding window, linear attention, state space) turn tokens into chunks; upper blocks read the few
chunks that a landmark search finds. `SubqModel` is the model, `SubqStream` reads, `SubqBackbone` speaks text.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from models.subq.config import SubqConfig

if TYPE_CHECKING:
    from models.subq.backbone import SubqBackbone
    from models.subq.model import SubqModel
    from models.subq.streaming import SubqStream

__all__ = ["SubqBackbone", "SubqConfig", "SubqModel", "SubqStream"]
_AT = {"SubqBackbone": "backbone", "SubqModel": "model", "SubqStream": "streaming"}


def __getattr__(name: str) -> Any:
    """Imported when asked for: names of compared backbones are wanted where torch is not."""
    if name not in _AT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"models.subq.{_AT[name]}"), name)
