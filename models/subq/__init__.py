"""A backbone trained from scratch whose cost per token does not grow with the stream.

Lower blocks (sliding window, linear attention, state space) turn tokens into chunks; upper blocks read the few
chunks that a landmark search finds. `SubqModel` is the model, `SubqStream` reads, `SubqBackbone` speaks text.
"""

from __future__ import annotations

from models.subq.backbone import SubqBackbone
from models.subq.config import SubqConfig
from models.subq.model import SubqModel
from models.subq.streaming import SubqStream

__all__ = ["SubqBackbone", "SubqConfig", "SubqModel", "SubqStream"]
