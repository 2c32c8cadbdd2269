"""Parts of a block that need no memory of their own: normalisation and the feed-forward network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def rms(x: Tensor) -> Tensor:
    """x over its root mean square along the last dimension, without a learned factor."""
    return F.rms_norm(x, (x.shape[-1],))


class FeedForward(nn.Module):
    """SwiGLU on the normalised input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        opened, value = self.inner(rms(x)).chunk(2, -1)
        out: Tensor = self.out(F.silu(opened) * value)
        return out
